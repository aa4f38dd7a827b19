"""Non-local blocks: mmcv's, AlexHex7's and the authors' Caffe2 form are options of one block."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden_harness import Arrays, Case, Golden
from yolo_attn import create

PHI_BIAS = {r"phi(\.0)?(\.conv)?\.bias": "cancelled by the softmax over the keys"}


def _norm(on: Any) -> str:
    return "bn" if on else "none"


def _concat_weight(key: str):
    def fix(config: dict[str, Any], params: Arrays) -> Arrays:
        if key in params:
            params["w_f"] = params.pop(key).reshape(-1)
        return params

    return fix


def _mmcv(dimension: int, mode: str) -> Case:
    def build(config: dict[str, Any], golden: Golden):
        scale = "sqrt_d" if config["use_scale"] and mode == "embedded_gaussian" else "none"
        return create(
            "NonLocal",
            config["in_channels"],
            mode=mode,
            rd_channels=max(config["in_channels"] // config["reduction"], 1),
            scale=scale,
            sub_sample="after" if config["sub_sample"] else "none",
            norm=_norm(config["norm_cfg"]),
            dimension=dimension,
        )

    def fix(config: dict[str, Any], params: Arrays) -> Arrays:
        params = _concat_weight("concat_project.conv.weight")(config, params)
        # With sub-sampling, g and phi are Sequential(conv, pool) there.
        return {k.replace("g.0.", "g.").replace("phi.0.", "phi."): v for k, v in params.items()}

    return Case(
        build,
        names={
            "g": "g.conv",
            "theta": "theta.conv",
            "phi": "phi.conv",
            "out": "conv_out.conv",
            "norm": "conv_out.bn",
        },
        dropped=PHI_BIAS if mode == "embedded_gaussian" else {},
        fix=fix,
    )


def _alexhex7(mode: str) -> Case:
    def build(config: dict[str, Any], golden: Golden):
        channels = config["in_channels"]
        return create(
            "NonLocal",
            channels,
            mode=mode,
            rd_channels=config["inter_channels"] or max(channels // 2, 1),
            sub_sample="after" if config["sub_sample"] else "none",
            norm=_norm(config["bn_layer"]),
            dimension=config["dimension"],
        )

    def fix(config: dict[str, Any], params: Arrays) -> Arrays:
        params = _concat_weight("concat_project.0.weight")(config, params)
        params = {k.replace("g.0.", "g.").replace("phi.0.", "phi."): v for k, v in params.items()}
        return (
            _bias_into_norm(params, "W.0", "W.1") if config["bn_layer"] else _as(params, "W", "W.0")
        )

    return Case(
        build,
        names={"out": "W.0", "norm": "W.1"},
        dropped=PHI_BIAS if mode == "embedded_gaussian" else {},
        fix=fix,
    )


def _as(params: Arrays, old: str, new: str) -> Arrays:
    return {f"{new}{k[len(old) :]}" if k.startswith(old + ".") else k: v for k, v in params.items()}


def _bias_into_norm(params: Arrays, conv: str, norm: str) -> Arrays:
    """A convolution bias in front of a BN only shifts its running mean."""
    bias = params.pop(f"{conv}.bias", None)
    if bias is not None:
        params[f"{norm}.running_mean"] = params[f"{norm}.running_mean"] - bias.astype(np.float64)
    return params


def _caffe2() -> Case:
    def build(config: dict[str, Any], golden: Golden):
        softmax = config.get("use_softmax", True)
        return create(
            "NonLocal",
            config["dim_in"],
            mode="embedded_gaussian" if softmax else "dot_product",
            rd_channels=config["dim_inner"],
            scale="sqrt_d" if softmax and config.get("use_scale", True) else "none",
            sub_sample="before" if config.get("use_maxpool", True) else "none",
            norm=_norm(config.get("use_bn", True)),
            dimension=3,
            group_size=config.get("group_size") or 0,
        )

    def fix(config: dict[str, Any], params: Arrays) -> Arrays:
        if config.get("no_bias"):
            for name in ("theta", "phi", "g", "out"):
                params.setdefault(f"{name}.bias", np.zeros(len(params[f"{name}.weight"])))
        gain, shift = params.pop("bn_s", None), params.pop("bn_b", None)
        if config.get("use_bn", True):
            params = _bias_into_norm(params, "out", "bn")
        if gain is not None:
            # A per-channel affine behind the last layer is absorbed by that layer.
            last = "bn" if config.get("use_bn", True) else "out"
            weight = params[f"{last}.weight"].astype(np.float64)
            params[f"{last}.weight"] = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
            params[f"{last}.bias"] = (
                params[f"{last}.bias"].astype(np.float64) * gain.ravel() + shift.ravel()
            )
        if config.get("use_softmax", True):
            params.pop("phi.bias", None)  # cancelled by the softmax
        return params

    return Case(build, names={"norm": "bn"}, fix=fix)


MODES = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
CASES = {
    **{f"nonlocal{d}d_{mode}": _mmcv(d, mode) for d in (1, 2, 3) for mode in MODES},
    **{f"nonlocal_alexhex7_{mode}": _alexhex7(mode) for mode in MODES},
    "nonlocal3d_caffe2": _caffe2(),
}
