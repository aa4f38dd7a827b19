"""Taps: names for places of a base, found by running it once without data.

``P2 .. P7``: the last backbone row of stride 4 .. 128, second ways of a down-sampling aside;
``N2 .. N7``: the rows that the head reads, by stride.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from torch import Tensor

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import SIDE, run
from yolo_attn.overlay.location import PROVENANCE

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
    # Hundreds of overlays share a few bases. File names and class names say nothing about strides.
    design = {k: v for k, v in base.items() if k not in ("yaml_file", "names", PROVENANCE)}
    try:
        return dict(_find_taps(json.dumps(design)))
    except (YoloAttnError, TypeError, ValueError):  # once more, so that errors name this file
        return _taps_of(base)


@lru_cache(maxsize=64)
def _find_taps(design: str) -> tuple[tuple[str, int], ...]:
    return tuple(_taps_of(json.loads(design)).items())


def _taps_of(base: dict[str, Any]) -> dict[str, int]:
    try:
        _, outputs = run(base)
    except YoloAttnError as error:
        raise YoloAttnError(f"{error}; without taps, give `after` as layer indices") from error
    levels = [_level(output) for output in outputs]
    taps: dict[str, int] = {}
    for i, level in enumerate(levels[: len(base["backbone"])]):
        if level and not _beside_down_sampling(i, base["backbone"], levels):
            taps[f"P{level}"] = i
    f = base["head"][-1][0]
    for source in f if isinstance(f, (list, tuple)) else [f]:
        i = source if source >= 0 else len(levels) + source
        if levels[i]:
            taps[f"N{levels[i]}"] = i
    return dict(sorted(taps.items(), key=lambda item: (item[0][0] != "P", item[0])))


def _beside_down_sampling(i: int, rows: list[Any], levels: list[int]) -> bool:
    """Whether row `i` is the start of a second way down from a stage that has ended before it.

    YOLOv7 halves a map twice, by pooling and by a 1x1 and a strided convolution, and joins both;
    that 1x1 convolution still has the stage's stride, but the stage's output is the row it reads.
    """
    source = _single_source(i, rows)
    return (
        source is not None
        and levels[source] == levels[i]
        and any(
            levels[j] > levels[i] and _single_source(j, rows) == source
            for j in range(source + 1, i)
        )
    )


def _single_source(i: int, rows: list[Any]) -> int | None:
    """The row that row `i` reads; None for several, and for the image."""
    f = rows[i][0]
    if not isinstance(f, int) or i == 0:
        return None
    return f if f >= 0 else i + f


def _level(output: Any) -> int:
    """Level of a layer's output; 0 if it is not one map of a stride that is a power of two."""
    if not isinstance(output, Tensor) or output.ndim != 4 or SIDE % output.shape[-1]:
        return 0
    return LEVELS.get(SIDE // output.shape[-1], 0)
