"""Feature Pyramid Transformer: self, grounding and rendering transformer, and their parts."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from tests.golden_harness import Arrays, Case, Golden
from yolo_attn import create
from yolo_attn.blocks._locality_constrained import LocalityConstrained
from yolo_attn.blocks._mixture_of_softmaxes import MixtureOfSoftmaxes


def _mos(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    return MixtureOfSoftmaxes(args["d_k"], args["n_mix"], prior="query")


def _mos_call(module: nn.Module, inputs: list[Tensor], config: dict[str, Any]) -> list[Tensor]:
    q, k, v = inputs
    return [module(q, k, v).transpose(1, 2), module.rows(q, k)]


def _st(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    assert args.get("value_transform", "conv") == "conv"
    return create(
        "FPTSelf",
        args["d_model"],
        rd_channels=args["d_k"],
        value_channels=args["d_v"],
        num_heads=args["n_head"],
        n_mix=args["n_mix"],
        prior="query",
        kq_transform=args.get("kq_transform", "conv"),
        pooling=args.get("pooling", True),
        concat=args.get("concat", False),
    )


def _st_biases(config: dict[str, Any], params: Arrays) -> Arrays:
    """A constant of the values only shifts the mean that the BN subtracts."""
    params = {k: v for k, v in params.items() if not k.startswith("conv_ks.")}
    out = params["conv.weight"][:, :, 0, 0].astype(np.float64)
    mean = params["norm_layer.running_mean"]
    params["norm_layer.running_mean"] = mean - out @ params.pop("conv_vs.bias")
    return params


def _gt(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    return create(
        "FPTGround",
        [args["in_channels"]] * 2,
        mode=args.get("mode", "dot"),
        rd_channels=args.get("inter_channels") or max(args["in_channels"] // 2, 1),
        norm="bn" if args.get("bn_layer", True) else "none",
        residual=False,
    )


def _gt_call(module: nn.Module, inputs: list[Tensor], config: dict[str, Any]) -> Tensor:
    """Sequences and volumes as maps: the block does not ask where a position is."""
    low, high = (x[..., None] if x.dim() == 3 else x.flatten(3) for x in inputs)
    return module([low, high]).reshape(inputs[0].shape)


def _gt_biases(config: dict[str, Any], params: Arrays) -> Arrays:
    """Constants of the values, the keys and the logits go where our block holds them."""
    mode = config["args"].get("mode", "dot")
    for name, value in params.items():
        if name.endswith("weight") and value.ndim in (3, 5):
            params[name] = value.reshape(*value.shape[:2], 1, 1)
    has_norm = config["args"].get("bn_layer", True)
    prefix = "W_z.0" if has_norm else "W_z"
    params["out.weight"] = params.pop(f"{prefix}.weight")
    constant = params.pop(f"{prefix}.bias").astype(np.float64)
    if mode in ("embedded", "gaussian"):
        out = params["out.weight"][:, :, 0, 0].astype(np.float64)
        constant = constant + out @ params.pop("g.bias")
        params.pop("phi.bias", None)
    if has_norm:
        params["W_z.1.running_mean"] = params["W_z.1.running_mean"] - constant
    else:
        params["out.bias"] = constant
    if mode == "concatenate":
        w_f = params.pop("W_f.0.weight").reshape(-1).astype(np.float64)
        biases = np.concatenate([params.pop("theta.bias"), params.pop("phi.bias")])
        params["w_f"] = w_f
        params["b_f"] = params.pop("W_f.0.bias") + w_f @ biases
    return params


def _lgt(config: dict[str, Any], golden: Golden) -> nn.Module:
    args, stem = config["args"], golden.block == "fpt_lgt_stem"
    assert args.get("stride", 1) == 1 and args.get("padding", 0) == args["kernel_size"] // 2
    return LocalityConstrained(
        args["in_channels"],
        args["in_channels"],
        args["out_channels"],
        args["kernel_size"],
        value_mix=args.get("m", 4) if stem else 0,
        embed_channels=args["out_channels"] // args.get("groups", 1),
        bias=args.get("bias", False),
    )


def _lgt_call(module: nn.Module, inputs: list[Tensor], config: dict[str, Any]) -> Tensor:
    return module(inputs[0], inputs[0])


def _lgt_shapes(config: dict[str, Any], params: Arrays) -> Arrays:
    params.pop("key_conv.bias", None)
    for name in ("rel_h", "rel_w"):
        if name in params:
            params[name] = params[name].reshape(params[name].shape[0], -1)
    for end in ("weight", "bias"):
        maps = []
        while f"value_conv.{len(maps)}.{end}" in params:
            maps.append(params.pop(f"value_conv.{len(maps)}.{end}"))
        if maps:
            params[f"value_conv.{end}"] = np.concatenate(maps)
    return params


LGT = Case(
    _lgt,
    names={"": "", "query": "query_conv", "key": "key_conv", "value": "value_conv"},
    fix=_lgt_shapes,
    call=_lgt_call,
)


def _rt(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    return create("FPTRender", [args["channels_high"], args["channels_low"]], order="conv_first")


def _rt_norm(config: dict[str, Any], params: Arrays) -> Arrays:
    """`upsample` only chooses which norm is used."""
    used = "bn_upsample" if config["args"].get("upsample", True) else "bn_reduction"
    renamed = {f"render_norm.{k[len(used) + 1 :]}": v for k, v in params.items() if used in k}
    return {**{k: v for k, v in params.items() if used not in k}, **renamed}


CASES = {
    "fpt_mos": Case(_mos, call=_mos_call),
    "fpt_st": Case(
        _st,
        names={
            "": "",
            "query": "conv_qs",
            "query.inner.conv": "conv_qs.0",
            "query.inner.norm": "conv_qs.1",
            "query.out": "conv_qs.3",
            "value": "conv_vs",
            "mixture": "attention",
            "out": "conv",
            "norm": "norm_layer",
        },
        fix=_st_biases,
    ),
    "fpt_gt": Case(_gt, names={"": "", "norm": "W_z.1"}, fix=_gt_biases, call=_gt_call),
    "fpt_lgt": LGT,
    "fpt_lgt_stem": LGT,
    "fpt_rt": Case(
        _rt,
        names={
            "gate": "conv1x1",
            "gate_norm": "bn_low",
            "refine": "conv3x3",
            "refine_norm": "bn_high",
            "render": "str_conv3x3",
            "render_norm": "render_norm",
        },
        dropped={
            r"(conv_cat|conv_reduction|conv_upsample|bn_reduction|bn_upsample)\..*": "never used"
        },
        fix=_rt_norm,
    ),
}
