"""Taps: names for places of a base, found by running it once without data.

``P2 .. P7``: the last backbone row of stride 4 .. 128; ``N2 .. N7``: the rows that the head reads,
by stride.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from yolo_attn.errors import YoloAttnError
from yolo_attn.seam.dry_run import SIDE, run

LEVELS = {2**k: k for k in range(2, 8)}  # stride -> level


def find_taps(base: dict[str, Any]) -> dict[str, int]:
    """Row index of each tap that the base has.

    Args:
        base: A plain model dictionary (``backbone``, ``head``, ...).

    Returns:
        Tap name -> row index, in the order P2, P3, ..., N2, N3, ...

    Raises:
        YoloAttnError: The base cannot be built.
    """
    try:
        _, outputs = run(base)
    except YoloAttnError as error:
        raise YoloAttnError(f"{error}; without taps, give `after` as layer indices") from error
    levels = [_level(output) for output in outputs]
    taps: dict[str, int] = {}
    for i, level in enumerate(levels[: len(base["backbone"])]):
        if level:
            taps[f"P{level}"] = i
    f = base["head"][-1][0]
    for source in f if isinstance(f, (list, tuple)) else [f]:
        i = source if source >= 0 else len(levels) + source
        if levels[i]:
            taps[f"N{levels[i]}"] = i
    return dict(sorted(taps.items(), key=lambda item: (item[0][0] != "P", item[0])))


def _level(output: Any) -> int:
    """Level of a layer's output; 0 if it is not one map of a stride that is a power of two."""
    if not isinstance(output, Tensor) or output.ndim != 4 or SIDE % output.shape[-1]:
        return 0
    return LEVELS.get(SIDE // output.shape[-1], 0)
