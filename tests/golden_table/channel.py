"""Blocks that gate channels: SENetV2, selective kernels, ECA, CBAM, GAM, FcaNet, MLCA."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.golden_harness import Arrays, Case, Golden
from yolo_attn import create

BRANCHES = "abcd"


def _bias_into_norm(params: Arrays, conv: str, norm: str) -> None:
    """A convolution bias in front of a BN only shifts its running mean."""
    bias = params.pop(f"{conv}.bias").astype(np.float64)
    params[f"{norm}.running_mean"] = params[f"{norm}.running_mean"] - bias


def _rounded_width(config: dict[str, Any], channels: int) -> int:
    """timm's bottleneck: `rd_channels`, or a multiple of `rd_divisor` not far below the product."""
    width, divisor = channels * config.get("rd_ratio", 1 / 16), config.get("rd_divisor", 8)
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    if rounded < 0.9 * width:
        rounded += divisor
    return config.get("rd_channels") or rounded


def _senetv2(config: dict[str, Any], golden: Golden):
    channels = config["out"]
    return create("SEv2", channels, rd_channels=channels // config["red"])


def _senetv2_layers(config: dict[str, Any], params: Arrays) -> Arrays:
    """Our first layer is the four of the reference, one below the other."""
    for part in ("weight", "bias"):
        params[f"fc1.{part}"] = np.concatenate([params.pop(f"func1{i}.{part}") for i in BRANCHES])
    return params


def _sk_timm(config: dict[str, Any], golden: Golden):
    channels = config["in_channels"]
    out_channels = config.get("out_channels") or channels
    kernel_size = config.get("kernel_size") or [3, 5]
    return create(
        "SK",
        channels,
        rd_channels=_rounded_width(config, out_channels),
        kernel_size=kernel_size if isinstance(kernel_size, list) else [kernel_size] * 2,
        groups=config.get("groups", 1),
        out_channels=out_channels,
        stride=config.get("stride", 1),
        dilation=config.get("dilation", 1),
        keep_3x3=config.get("keep_3x3", True),
        split_input=config.get("split_input", True),
    )


def _sk_attention(config: dict[str, Any], golden: Golden):
    paths = config.get("num_paths", 2)
    block = create(
        "SK",
        config["channels"],
        rd_channels=config.get("attn_channels") or 32,
        kernel_size=[3] * paths,
    )
    return block.select


def _eca_official(config: dict[str, Any], golden: Golden):
    return create("ECA", golden.arrays["x"].shape[1], kernel_size=config.get("k_size", 3))


def _eca_timm(config: dict[str, Any], golden: Golden):
    if config.get("channels"):
        rule = {"gamma": config.get("gamma", 2), "beta": config.get("beta", 1)}
        return create("ECA", config["channels"], **rule)
    kernel_size = config.get("kernel_size", 3)
    return create("ECA", golden.arrays["x"].shape[1], kernel_size=kernel_size)


def _flat_kernels(config: dict[str, Any], params: Arrays) -> Arrays:
    return {k: v.reshape(-1) if k.endswith("weight") else v for k, v in params.items()}


def _cbam(config: dict[str, Any], golden: Golden):
    channels = config["gate_channels"]
    return create(
        "CBAM",
        channels,
        rd_channels=channels // config.get("reduction_ratio", 16),
        norm="bn",
        pools=config.get("pool_types", ["avg", "max"]),
        spatial=not config.get("no_spatial", False),
    )


def _gam(config: dict[str, Any], golden: Golden):
    channels = config["in_channels"]
    return create("GAM", channels, rd_channels=int(channels / config.get("rate", 4)))


def _gam_shuffle(config: dict[str, Any], golden: Golden):
    channels, rate = config["c1"], config.get("rate", 4)
    return create(
        "GAM",
        channels,
        rd_channels=int(channels / rate),
        groups=rate if config.get("group", True) else 1,
        shuffle=config.get("shuffle_groups", 4),
        channel_gate="none",
    )


def _gam_layers(config: dict[str, Any], params: Arrays) -> Arrays:
    """The Linear layers on the channel vectors are 1x1 convolutions here; no bias before a BN."""
    _bias_into_norm(params, "spatial_attention.0", "spatial_attention.1")
    _bias_into_norm(params, "spatial_attention.3", "spatial_attention.4")
    return {k: v[:, :, None, None] if v.ndim == 2 else v for k, v in params.items()}


GAM_NAMES = {
    "fc1": "channel_attention.0",
    "fc2": "channel_attention.2",
    "conv1": "spatial_attention.0",
    "norm1": "spatial_attention.1",
    "conv2": "spatial_attention.3",
    "norm2": "spatial_attention.4",
}


def _fcanet(config: dict[str, Any], golden: Golden):
    args = {"reduction": 16, "freq_sel_method": "top16", **config["args"]}
    return create(
        "FcaNet",
        args["channel"],
        rd_channels=args["channel"] // args["reduction"],
        frequencies=args["freq_sel_method"],
        dct_h=args["dct_h"],
        dct_w=args["dct_w"],
    )


def _mlca(config: dict[str, Any], golden: Golden):
    args = {"local_size": 5, "gamma": 2, "b": 1, "local_weight": 0.5, **config["args"]}
    # in_size sets the kernel's size alone; the map may have other channels.
    t = int(abs(math.log2(args["in_size"]) + args["b"]) / args["gamma"])
    learned = "param/local_weight" in golden.arrays
    return create(
        "MLCA",
        golden.arrays["x"].shape[1],
        local_size=args["local_size"],
        local_weight=0.5 if learned else args["local_weight"],
        learn_weight=learned,
        kernel_size=t if t % 2 else t + 1,
    )


CASES = {
    "senetv2_official": Case(_senetv2, names={"fc2": "func2"}, fix=_senetv2_layers),
    "sk_timm": Case(
        _sk_timm,
        names={
            "": "",
            **{
                f"branches.{i}.{ours}": f"paths.{i}.{theirs}"
                for i in range(8)
                for ours, theirs in (("conv", "conv"), ("norm", "bn"))
            },
            "select.reduce": "attn.fc_reduce",
            "select.norm": "attn.bn",
            "select.expand": "attn.fc_select",
        },
    ),
    "sk_attn_timm": Case(
        _sk_attention,
        names={"reduce": "fc_reduce", "norm": "bn", "expand": "fc_select"},
        call=lambda module, inputs, config: module(inputs[0].unbind(1)),
    ),
    "eca_official": Case(_eca_official, names={"": "conv"}, fix=_flat_kernels),
    "eca_timm": Case(_eca_timm, names={"": "conv"}, fix=_flat_kernels),
    "cbam_jongchan": Case(
        _cbam,
        names={
            "fc1": "ChannelGate.mlp.1",
            "fc2": "ChannelGate.mlp.3",
            "conv": "SpatialGate.spatial.conv",
            "norm": "SpatialGate.spatial.bn",
        },
    ),
    "cbam_spatial_jongchan": Case(
        lambda config, golden: create("SpatialGate", golden.arrays["x"].shape[1], norm="bn"),
        names={"conv": "spatial.conv", "norm": "spatial.bn"},
    ),
    "gam": Case(_gam, names=GAM_NAMES, fix=_gam_layers),
    "gam_shuffle": Case(_gam_shuffle, names=GAM_NAMES, fix=_gam_layers),
    "fcanet": Case(
        _fcanet,
        names={"fc1": "fc.0", "fc2": "fc.2"},
        dropped={r"dct_layer\.weight": "fixed DCT basis, computed by ours"},
    ),
    "mlca": Case(
        _mlca,
        names={"w_g": "conv.weight", "w_l": "conv_local.weight"},
        fix=_flat_kernels,
    ),
}
