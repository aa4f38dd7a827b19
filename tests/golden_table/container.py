"""CONTAINER."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from tests.golden_harness import Arrays, Case, Golden
from yolo_attn import create

MIXER_NAMES = {"query_value": "query_value", "key": "key", "static": "conv", "gate": "sa_weight"}


def _width(golden: Golden) -> int:
    return golden.arrays["param/conv1.weight"].shape[1]


def _kernel(golden: Golden, name: str) -> int:
    return golden.arrays[f"param/{name}.weight"].shape[-1]


def _block(form: str, static: str):
    def build(config: dict[str, Any], golden: Golden) -> nn.Module:
        attention = {}
        if form != "cblock":
            heads = config.get("num_heads", config.get("heads", 8))
            attention = {"num_heads": heads, "qk_scale": config.get("qk_scale") or None}
        if form != "mixer_core":
            hidden = golden.arrays["param/mlp.fc1.weight"].shape[0]
            attention["mlp_ratio"] = hidden / _width(golden) + 1e-9
        return create(
            "Container", _width(golden), form=form, kernel_size=_kernel(golden, static), **attention
        )

    return build


def _split_qkv(config: dict[str, Any], params: Arrays) -> Arrays:
    """``conv1`` (or ``qkv``) computes q, k, v; ours has q and v in one map and k without bias."""
    old = "conv1" if "conv1.weight" in params else "qkv"
    for kind in ("weight", "bias"):
        value = params.pop(f"{old}.{kind}", None)
        if value is None:
            continue
        q, k, v = np.split(value, 3)
        params[f"query_value.{kind}"] = np.concatenate([q, v])
        if kind == "weight":
            params["key.weight"] = k
    return params


def _as_maps(params: Arrays) -> Arrays:
    """Linear layers are 1 x 1 convolutions of ours."""
    linear = ("query_value.weight", "key.weight", "value.weight", "proj.weight", "w2.weight")
    return {k: v[:, :, None, None] if k in linear else v for k, v in params.items()}


def _pam(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create(
        "Container",
        golden.arrays["x"].shape[2],
        form="pam",
        num_heads=golden.arrays["param/static_a"].shape[1],
        qk_scale=config.get("qk_scale") or None,
        size=_map_size(golden.arrays["x"].shape[1]),
        qkv_bias="param/qkv.bias" in golden.arrays,
    )


def _general(config: dict[str, Any], golden: Golden) -> nn.Module:
    x, params = golden.arrays["x"], golden.params
    dynamic, static = "wq.weight" in params, "static" in params
    options: dict[str, Any] = {"qk_scale": config.get("qk_scale") or None} if dynamic else {}
    if static:
        options["size"] = _map_size(x.shape[1])
    if dynamic and static:
        options["static"] = "dense"
    return create(
        "Container",
        x.shape[2],
        form={(1, 1): "general", (1, 0): "transformer", (0, 1): "mlp_mixer"}[dynamic, static],
        num_heads=params["static"].shape[0] if static else config.get("heads"),
        **options,
    )


def _map_size(n: int) -> list[int]:
    """A map of n positions, as square as may be: tokens have no shape of their own."""
    height = next(h for h in range(math.isqrt(n), 0, -1) if n % h == 0)
    return [height, n // height]


def _pam_params(config: dict[str, Any], params: Arrays) -> Arrays:
    params = _split_qkv(config, params)
    params["static_a"] = params["static_a"].reshape(-1, params["static_a"].shape[-1])
    return _as_maps(params)


def _general_params(config: dict[str, Any], params: Arrays) -> Arrays:
    value = params.pop("w1.weight")
    if "wq.weight" in params:
        params["query_value.weight"] = np.concatenate([params.pop("wq.weight"), value])
        params["key.weight"] = params.pop("wk.weight")
    else:
        params["value.weight"] = value
    if "static" in params:
        params["static"] = params["static"].reshape(-1, params["static"].shape[-1])
    return _as_maps(params)


def _tokens(module: nn.Module, inputs: list[Tensor], config: dict[str, Any]) -> Tensor:
    """The reference takes and gives B, N, C."""
    x = inputs[0].transpose(1, 2)
    return module(x.unflatten(2, _map_size(x.shape[2]))).flatten(2).transpose(1, 2)


def _mixer(names: dict[str, str]) -> dict[str, str]:
    return {"": "", **{f"mixer.{ours}": name for ours, name in names.items()}}


TOKEN_NAMES = {"query_value": "query_value", "key": "key", "value": "value"}

CASES = {
    "container_mixblock": Case(
        _block("mixblock", "conv"), names=_mixer({**MIXER_NAMES, "out": "conv2"}), fix=_split_qkv
    ),
    "container_mixer_core": Case(
        _block("mixer_core", "conv"), names=_mixer({**MIXER_NAMES, "out": "conv2"}), fix=_split_qkv
    ),
    "container_cblock": Case(
        _block("cblock", "attn"),
        names=_mixer({"value": "conv1", "static": "attn", "out": "conv2"}),
    ),
    "container_pam": Case(
        _pam,
        names=_mixer({**TOKEN_NAMES, "static.weight": "static_a", "out": "proj"}),
        fix=_pam_params,
        call=_tokens,
    ),
    "container_general": Case(
        _general,
        names=_mixer(
            {
                **TOKEN_NAMES,
                "static.weight": "static",
                "alpha": "alpha",
                "beta": "beta",
                "out": "w2",
            }
        ),
        fix=_general_params,
        call=_tokens,
    ),
}
