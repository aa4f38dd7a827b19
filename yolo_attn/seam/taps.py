"""Taps: names for places of a base, found by running it once without data.

``P2 .. P7``: the last backbone row of stride 4 .. 128; ``N2 .. N7``: the rows that the head reads, by stride.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from yolo_attn.errors import YoloAttnError

SIDE = 256  # of the image that is run; every stride up to 128 divides it
STRIDES = {2**k: k for k in range(2, 8)}


def find_taps(base: dict[str, Any]) -> dict[str, int]:
    """Row index of each tap that the base has.

    Args:
        base: A plain model dictionary (``backbone``, ``head``, ...).

    Returns:
        Tap name -> row index, in the order P2, P3, ..., N2, N3, ...

    Raises:
        YoloAttnError: The base cannot be built.
    """
    strides = _row_strides(base)
    backbone = len(base["backbone"])
    taps: dict[str, int] = {}
    for i, stride in enumerate(strides[:backbone]):
        if stride in STRIDES:
            taps[f"P{STRIDES[stride]}"] = i
    last = len(strides)
    f = base["head"][-1][0]
    for source in f if isinstance(f, (list, tuple)) else [f]:
        i = source if source >= 0 else last + source
        if i < last and strides[i] in STRIDES:
            taps[f"N{STRIDES[strides[i]]}"] = i
    return dict(sorted(taps.items(), key=lambda item: (item[0][0] != "P", item[0])))


def _row_strides(base: dict[str, Any]) -> list[int]:
    """Stride of each row but the head; 0 for a row whose output is not one map."""
    from ultralytics.nn import tasks

    d = deepcopy(base)
    scales = d.get("scales")
    if isinstance(scales, dict) and d.get("scale") not in scales:
        d["scale"] = next(iter(scales))
    channels = d.get("channels", d.get("ch", 3))
    try:
        # No storage, no random numbers: the model that is built later starts as if this had not run.
        with torch.device("meta"), torch.no_grad():
            model, save = tasks.parse_model(d, channels, False)
            model.eval()
            return _run(model, save, torch.empty(1, channels, SIDE, SIDE))
    except YoloAttnError:
        raise
    except Exception as error:
        raise YoloAttnError(
            f"{base.get('yaml_file', 'base')}: cannot be run to find its taps "
            f"({type(error).__name__}: {error}); give `after` as layer indices instead"
        ) from error


def _run(model: torch.nn.Sequential, save: list[int], x: Any) -> list[int]:
    outputs: list[Any] = []
    strides: list[int] = []
    for layer in list(model)[:-1]:
        if layer.f != -1:
            f = layer.f
            x = outputs[f] if isinstance(f, int) else [x if j == -1 else outputs[j] for j in f]
        x = layer(x)
        outputs.append(x)
        strides.append(round(SIDE / x.shape[-1]) if isinstance(x, Tensor) and x.ndim == 4 else 0)
    return [s if s and math.log2(s).is_integer() else 0 for s in strides]
