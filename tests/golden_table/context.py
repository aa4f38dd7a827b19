"""Blocks that gate with, or add, one global context: GCNet, CATNet, SE, coordinate attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden_harness import Arrays, Case, Golden
from yolo_attn import create


def _gcnet(config: dict[str, Any], golden: Golden):
    kinds = {tuple(sorted(k.replace("channel_", "") for k in config["fusion_types"]))}
    fusion = {("add",): "add", ("mul",): "mul", ("add", "mul"): "both"}[kinds.pop()]
    return create(
        "GlobalContext",
        config["inplanes"],
        rd_channels=int(config["inplanes"] * config["ratio"]),
        pooling=config["pooling_type"],
        fusion=fusion,
    )


def _gcnet_norms(config: dict[str, Any], params: Arrays) -> Arrays:
    """The reference's LayerNorm([P, 1, 1]) has affine parameters (P, 1, 1)."""
    return {k: v.reshape(-1) if ".1." in k else v for k, v in params.items()}


def _catnet(config: dict[str, Any], golden: Golden):
    channels = config["in_channels"]
    return create(
        "ContextAggregation", channels, rd_channels=max(channels // config["reduction"], 1)
    )


def _coordinate(config: dict[str, Any], golden: Golden):
    return create(
        "CoordAtt", config["inp"], rd_channels=max(8, config["inp"] // config["reduction"])
    )


def _coordinate_bias(config: dict[str, Any], params: Arrays) -> Arrays:
    """The bias of conv1 in front of its BN only shifts the running mean."""
    bias = params.pop("conv1.bias").astype(np.float64)
    params["bn1.running_mean"] = params["bn1.running_mean"] - bias
    return params


def _se_timm(config: dict[str, Any], golden: Golden):
    return create(
        "SE",
        config["channels"],
        rd_ratio=config.get("rd_ratio", 1 / 16),
        rd_channels=config.get("rd_channels"),
        rd_divisor=config.get("rd_divisor", 8),
        bias=config.get("bias", True),
        pool="avg_max" if config.get("add_maxpool") else "avg",
        norm="bn" if any(k.startswith("param/bn.") for k in golden.arrays) else "none",
        act=config.get("act", config.get("act_layer", "relu")),
        gate=config.get("gate", config.get("gate_layer", "sigmoid")),
    )


def _se_linear(config: dict[str, Any], golden: Golden):
    return create(
        "SE", config["channel"], rd_channels=config["channel"] // config["reduction"], bias=False
    )


def _as_conv(config: dict[str, Any], params: Arrays) -> Arrays:
    return {k: v[:, :, None, None] if v.ndim == 2 else v for k, v in params.items()}


def _se_torchvision(config: dict[str, Any], golden: Golden):
    gate = str(config.get("scale_activation", "Sigmoid")).lower()
    return create(
        "SE",
        config["input_channels"],
        rd_channels=config["squeeze_channels"],
        gate="hard_sigmoid" if "hard" in gate else "sigmoid",
    )


CASES = {
    "gcnet_context_block": Case(
        _gcnet,
        names={
            "mask": "conv_mask",
            **{
                f"{ours}.{part}": f"channel_{ours}_conv.{index}"
                for ours in ("add", "mul")
                for part, index in (("w1", 0), ("norm", 1), ("w2", 3))
            },
        },
        dropped={"conv_mask.bias": "cancelled by the softmax over the positions"},
        fix=_gcnet_norms,
    ),
    "catnet_context_aggregation": Case(
        _catnet,
        names={name: f"{name}.conv" for name in "akvm"},
        dropped={"k.conv.bias": "cancelled by the softmax over the positions"},
    ),
    "coord_att": Case(_coordinate, names={"norm": "bn1"}, fix=_coordinate_bias),
    "se_timm": Case(_se_timm, names={"norm": "bn"}),
    "se_linear": Case(_se_linear, names={"fc1": "fc.0", "fc2": "fc.2"}, fix=_as_conv),
    "se_torchvision": Case(_se_torchvision),
}
