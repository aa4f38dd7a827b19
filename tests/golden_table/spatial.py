"""Blocks that weigh positions: SNL, double attention, SimAM, EMA, EMAU, LSK."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden_harness import Arrays, Case, Golden
from yolo_attn import create


def _snl(config: dict[str, Any], golden: Golden):
    # Orders "pre" and "post" are one function.
    return create("SimplifiedNonLocal", config["channels"])


def _snl_biases(config: dict[str, Any], params: Arrays) -> Arrays:
    params.setdefault("wv.bias", np.zeros(config["channels"]))
    return params


def _double_attention(config: dict[str, Any], golden: Golden):
    return create(
        "DoubleAttention",
        config["in_channels"],
        rd_channels=config["c_m"],
        descriptors=config["c_n"],
        form="projected" if config.get("reconstruct", True) else "plain",
    )


def _simam(config: dict[str, Any], golden: Golden):
    channels = golden.arrays["x"].shape[1]
    return create("SimAM", channels, e_lambda=config.get("e_lambda", 1e-4), correction=1)


def _ema(config: dict[str, Any], golden: Golden):
    return create("EMA", config["channels"], factor=config.get("factor", 32))


def _emau(config: dict[str, Any], golden: Golden):
    # The reference moves its bases in the training script.
    return create("EMAU", config["c"], bases=config["k"], steps=config["stage_num"], momentum=1.0)


def _lsk(config: dict[str, Any], golden: Golden):
    return create("LSK", config["args"]["dim"])


def _lsk_encoder(config: dict[str, Any], golden: Golden):
    args = config["args"]
    return create("LSK", args["dim"], form="encoder", mlp_ratio=args.get("mlp_ratio", 4.0))


LSK_UNIT = {
    "small": "conv0",
    "large": "conv_spatial",
    "conv1": "conv1",
    "conv2": "conv2",
    "squeeze": "conv_squeeze",
    "out": "conv",
}


CASES = {
    "snl": Case(
        _snl,
        names={"key": "wk", "value": "wv"},
        dropped={"wk.bias": "cancelled by the softmax over the positions"},
        fix=_snl_biases,
    ),
    "double_attention": Case(
        _double_attention,
        names={"a": "convA", "b": "convB", "v": "convV", "out": "conv_reconstruct"},
        dropped={"convB.bias": "cancelled by the softmax over the positions"},
    ),
    "simam": Case(_simam),
    "lsk_block": Case(_lsk, names={f"unit.{ours}": name for ours, name in LSK_UNIT.items()}),
    "lsk_encoder_block": Case(
        _lsk_encoder,
        names={
            "": "",
            **{
                f"unit.{ours}": f"attn.spatial_gating_unit.{name}"
                for ours, name in LSK_UNIT.items()
            },
            "proj_in": "attn.proj_1",
            "proj_out": "attn.proj_2",
            "fc1": "mlp.fc1",
            "mix": "mlp.dwconv.dwconv",
            "fc2": "mlp.fc2",
            "scale1": "layer_scale_1",
            "scale2": "layer_scale_2",
        },
    ),
    "emau": Case(
        _emau,
        names={
            "bases": "mu",
            "reduce": "conv1",
            "out": "conv2.0",
            "norm": "conv2.1",
        },
    ),
    "ema": Case(_ema, names={"": "", "norm": "gn"}),
}
