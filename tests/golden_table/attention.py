"""DANet, asymmetric non-local blocks, criss-cross attention, BiFormer."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from tests.golden_harness import Arrays, Case, Golden
from yolo_attn import create
from yolo_attn.blocks.criss_cross import CrissCrossHead

PROJECTIONS = {"query": "query_conv", "key": "key_conv", "value": "value_conv"}
KEY_BIAS = "cancelled by the softmax over the keys"


def _danet_pam(config: dict[str, Any], golden: Golden) -> nn.Module:
    channels = config["args"]["in_dim"]
    return create("PositionAttention", channels, rd_channels=channels // 8, gamma_step=1)


def _danet_cam(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create("ChannelGram", golden.arrays["x"].shape[1], sign="minus", gamma_step=1)


def _danet_head(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    return create(
        "DANet",
        args["in_channels"],
        rd_channels=args["in_channels"] // 4,
        out_channels=args["out_channels"],
        outputs="all",
        sign="minus",
        gamma_step=1,
    )


def _conv_norm(ours: str, reference: str, norm: str = "1") -> dict[str, str]:
    return {f"{ours}.conv": f"{reference}.0", f"{ours}.norm": f"{reference}.{norm}"}


def _pool_sizes(args: dict[str, Any]) -> list[int]:
    return args.get("psp_size") or [1, 3, 6, 8]


def _ann_apnb(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    block = create(
        "APNB",
        args["in_channels"],
        rd_channels=args["key_channels"],
        value_channels=args["value_channels"],
        pool_sizes=_pool_sizes(args),
        units=len(args.get("sizes") or [1]),
    )
    # The reference runs this norm twice a step: two updates of a tenth are one of 0.19.
    for unit in block.units:
        unit.key.norm.momentum = 1 - (1 - unit.key.norm.momentum) ** 2
    return block


def _ann_afnb(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    return create(
        "AFNB",
        [args["high_in_channels"], args["low_in_channels"]],
        rd_channels=args["key_channels"],
        value_channels=args["value_channels"],
        out_channels=args["out_channels"],
        pool_sizes=_pool_sizes(args),
        units=len(args.get("sizes") or [1]),
    )


def _ann_biases(config: dict[str, Any], params: Arrays) -> Arrays:
    """Constants per channel in front of a BN only shift its running mean."""
    shared = "low_in_channels" not in config["args"]
    if shared:  # the statistics after training list the shared module under both names
        params = {k: v for k, v in params.items() if ".f_query." not in k}
    norm = "conv_bn_dropout.1.0" if shared else "conv_bn_dropout.1"
    shift = params.pop("conv_bn_dropout.0.bias").astype(np.float64)
    fuse = params["conv_bn_dropout.0.weight"][:, :, 0, 0].astype(np.float64)
    stages = sorted({k.rsplit(".f_key", 1)[0] for k in params if ".f_key.0.weight" in k})
    for stage in stages:
        out = params[f"{stage}.W.weight"][:, :, 0, 0].astype(np.float64)
        context = out @ params.pop(f"{stage}.f_value.bias") + params.pop(f"{stage}.W.bias")
        shift = shift + fuse[:, : len(context)] @ context
        for branch in ("f_key",) if shared else ("f_key", "f_query"):
            bias = params.pop(f"{stage}.{branch}.0.bias").astype(np.float64)
            mean = f"{stage}.{branch}.1.0.running_mean"
            params[mean] = params[mean] - bias
    params[f"{norm}.running_mean"] = params[f"{norm}.running_mean"] - shift
    return params


def _ann_names(shared: bool) -> dict[str, str]:
    names = _conv_norm("fuse", "conv_bn_dropout", "1.0" if shared else "1")
    for i in range(4):
        ours, reference = f"units.{i}", f"stages.{i}"
        names |= _conv_norm(f"{ours}.key", f"{reference}.f_key", "1.0")
        names |= _conv_norm(f"{ours}.query", f"{reference}.f_query", "1.0")
        names |= {f"{ours}.value": f"{reference}.f_value", f"{ours}.out": f"{reference}.W"}
    return names


def _low_high(module: nn.Module, inputs: list[Tensor], config: dict[str, Any]) -> Tensor:
    low, high = inputs
    return module([high, low])


def _ccnet_cca(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    return create(
        "CrissCross",
        args["in_dim"],
        recurrence=args.get("recurrence", 1),
        rd_channels=args["in_dim"] // 8,
        gamma_step=1,
    )


def _ccnet_rcca(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    return CrissCrossHead(
        args["in_channels"], args["out_channels"], args["num_classes"], args.get("recurrence", 1)
    )


def _bra(config: dict[str, Any], channels: int, **options: Any) -> nn.Module:
    """BiFormer with the reference's options; its defaults for those that are not set."""
    args = config["args"]
    mode = args.get("kv_downsample_mode") or "identity"
    routing = "hard" if not args.get("soft_routing") else "soft"
    return create(
        "BiFormer",
        channels,
        num_heads=args.get("num_heads", 8),
        n_win=args.get("n_win", 7),
        topk=args.get("topk", 4),
        qk_dim=args.get("qk_dim"),
        qk_scale=args.get("qk_scale"),
        routing="differentiable" if args.get("diff_routing") else routing,
        param_routing=bool(args.get("param_routing", False)),
        kv_downsample_mode=mode,
        kv_per_win=(args.get("kv_per_win") or 4) if mode.startswith("ada") else 4,
        kv_downsample_ratio=max(int(args.get("kv_downsample_ratio") or 4), 1),
        param_attention=args.get("param_attention", "qkvo"),
        **options,
    )


def _bra_legacy(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    side = args.get("side_dwconv", 3)
    return _bra(config, args["dim"], side_dwconv=side, border="bias", attention_only=True)


def _bra_nchw(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    side = args.get("side_dwconv", 3)
    return _bra(config, args["dim"], side_dwconv=side, border="zero", attention_only=True)


def _biformer(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    scale = args.get("layer_scale_init_value") or 0.0
    return _bra(
        config,
        args["dim"],
        side_dwconv=args.get("side_dwconv", 5),
        border="bias",
        before_attn_dwconv=max(args.get("before_attn_dwconv", 3), 0),
        mlp_ratio=args.get("mlp_ratio", 4),
        mlp_dwconv=bool(args.get("mlp_dwconv", False)),
        layer_scale=scale if scale > 0 else 0.0,
        pre_norm=args.get("pre_norm", True),
    )


def _channels_last(module: nn.Module, inputs: list[Tensor], config: dict[str, Any]) -> Tensor:
    """The reference takes and gives B, H, W, C."""
    return module(inputs[0].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _as_linear(config: dict[str, Any], params: Arrays) -> Arrays:
    """1 x 1 convolutions are linear maps of ours."""
    linear = ("qkv_linear.weight", "output_linear.weight")
    return {k: v[:, :, 0, 0] if k in linear else v for k, v in params.items()}


BRA_NAMES = {"qkv": "qkv.qkv", "emb": "router.emb", "lepe": "lepe", "wo": "wo"}

CASES = {
    "danet_pam": Case(_danet_pam, names=PROJECTIONS, dropped={r"key_conv\.bias": KEY_BIAS}),
    "danet_cam": Case(_danet_cam),
    "danet_head": Case(
        _danet_head,
        names={
            **{f"position.{ours}": f"sa.{name}" for ours, name in PROJECTIONS.items()},
            "position": "sa",
            "channel": "sc",
            **_conv_norm("position_reduce", "conv5a"),
            **_conv_norm("channel_reduce", "conv5c"),
            **_conv_norm("position_conv", "conv51"),
            **_conv_norm("channel_conv", "conv52"),
            "position_out": "conv6.1",
            "channel_out": "conv7.1",
            "fused_out": "conv8.1",
        },
        dropped={r"sa\.key_conv\.bias": KEY_BIAS},
    ),
    "ann_apnb": Case(_ann_apnb, names=_ann_names(shared=True), fix=_ann_biases),
    "ann_afnb": Case(_ann_afnb, names=_ann_names(shared=False), fix=_ann_biases, call=_low_high),
    "ccnet_cca": Case(_ccnet_cca, names=PROJECTIONS, dropped={r"key_conv\.bias": KEY_BIAS}),
    "ccnet_rcca": Case(
        _ccnet_rcca,
        names={
            **_conv_norm("before", "conva"),
            **{f"cross.{ours}": f"cca.{name}" for ours, name in PROJECTIONS.items()},
            "cross": "cca",
            **_conv_norm("after", "convb"),
            **_conv_norm("bottleneck", "bottleneck"),
            "classify": "bottleneck.3",
        },
        dropped={r"cca\.key_conv\.bias": KEY_BIAS},
    ),
    "bra_legacy": Case(
        _bra_legacy,
        names={f"attn.{ours}": name for ours, name in BRA_NAMES.items()},
        call=_channels_last,
    ),
    "bra_nchw": Case(
        _bra_nchw,
        names={"attn.qkv": "qkv_linear", "attn.lepe": "lepe", "attn.wo": "output_linear"},
        fix=_as_linear,
    ),
    "biformer_block": Case(
        _biformer,
        names={
            "": "",
            **{f"attn.{ours}": f"attn.{name}" for ours, name in BRA_NAMES.items()},
            "mlp.fc1": "mlp.0",
            "mlp.dwconv": "mlp.1.dwconv",
            "mlp.fc2": "mlp.3",
        },
    ),
}
