"""An overlay's ``backbone:``: other rows in place of the base's, under the neck that stays.

Neck rows read the new backbone where they read the old one, at the last row of the same stride.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolo_attn import __version__
from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.location import PROVENANCE, Location, check_rows
from yolo_attn.overlay.taps import find_taps


def with_backbone(base: dict[str, Any], rows: list[list[Any]], name: str) -> dict[str, Any]:
    """A base with another backbone.

    Args:
        base: A plain model dictionary; may carry the provenance of overlays below.
        rows: Rows of the new backbone, ``[from, repeats, module, args]``.
        name: The overlay's name, for messages.

    Returns:
        A plain model dictionary whose provenance has -1 for the new rows.

    Raises:
        YoloAttnError: A row is at fault, or the neck reads a stride that the backbone lacks.
    """
    labels = [[i, f"backbone {i + 1}: {row[2]}"] for i, row in enumerate(rows)]
    alone = {
        **base,
        "backbone": rows,
        "head": [[-1, 1, "Classify", [1]]],  # any head: the last row is not run
        "yaml_file": name,
        PROVENANCE: {"base": name, "rows": [-1] * (len(rows) + 1), "labels": labels},
    }
    check_rows(alone, Location(alone))
    old_taps = {i: tap for tap, i in _backbone_taps(base).items()}
    new_taps = _backbone_taps(alone)

    count, shift = len(base["backbone"]), len(rows) - len(base["backbone"])
    head = []
    for i, (f, *rest) in enumerate(base["head"], count):
        sources = []
        for source in f if isinstance(f, (list, tuple)) else [f]:
            at = source if source >= 0 else i + source
            if at < count:
                at = _of_same_stride(at, i, old_taps, new_taps, name)
                sources.append(-1 if source == -1 and at == i + shift - 1 else at)
            else:
                sources.append(source if source < 0 else source + shift)
        head.append([sources if isinstance(f, (list, tuple)) else sources[0], *rest])

    before = base.get(PROVENANCE) or {"version": __version__}
    origin = before.get("rows") or range(count + len(head))
    return {
        **base,
        "backbone": rows,
        "head": head,
        PROVENANCE: {
            **({"version": before["version"]} if "version" in before else {}),
            "base": before.get("base") or _file_name(base),
            "rows": [*[-1] * len(rows), *list(origin)[count:]],
            "replaced": [i + shift for i in before.get("replaced", ()) if i >= count],
            "labels": [
                *labels,
                *(
                    [i + shift, f"{_file_name(base)} {text}"]
                    for i, text in before.get("labels", ())
                    if i >= count
                ),
            ],
        },
    }


def _backbone_taps(d: dict[str, Any]) -> dict[str, int]:
    return {tap: i for tap, i in find_taps(d).items() if tap.startswith("P")}


def _of_same_stride(
    at: int, reader: int, old_taps: dict[int, str], new_taps: dict[str, int], name: str
) -> int:
    """The new row that stands for row `at` of the old backbone."""
    tap = old_taps.get(at)
    if tap is None:
        raise YoloAttnError(
            f"{name} backbone: row {reader} of the base reads its backbone at row {at}, which is "
            "not the last of its stride, so no row of another backbone stands for it (drop `base` "
            "to write all rows yourself)"
        )
    if tap not in new_taps:
        found = ", ".join(f"{t} in entry {i + 1}" for t, i in new_taps.items()) or "no map"
        raise YoloAttnError(
            f"{name} backbone: the base's neck reads {tap}, the new backbone has {found} (end the "
            "backbone with one row for each stride that the neck reads)"
        )
    return new_taps[tap]


def _file_name(base: dict[str, Any]) -> str:
    return Path(str(base["yaml_file"])).name
