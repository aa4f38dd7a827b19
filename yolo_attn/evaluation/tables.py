"""Results of the protocols side by side, for a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

MOST = 1e5  # px, COCO's edge of its largest bin
Results = Mapping[str, Mapping[str, Any]]


def overall(results: Results) -> Table:
    """All classes: a column a protocol, VisDrone's plain class mean beside its own."""
    columns = _columns(results)
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
    names.sort(key=lambda name: (not name.startswith("AP"), name.startswith("AR"), _cap(name)))
    table = Table("percent", *columns, title="All classes")
    for name in names:
        table.add_row(name, *(_shown(metrics.get(name)) for metrics in columns.values()))
    return table


def by_class(results: Results) -> Table:
    """AP and AP50 of each class under each protocol."""
    titles = [f"{r['protocol']} {name}" for r in results.values() for name in ("AP", "AP50")]
    table = Table("class", *titles, title="By class")
    for number, first in next(iter(results.values()))["per_class"].items():
        rows = [r["per_class"][number] for r in results.values()]
        if all(_shown(row["AP"]) == "-" for row in rows):
            continue  # no object of it
        cells = [_shown(row[name]) for row in rows for name in ("AP", "AP50")]
        table.add_row(escape(first["name"]), *cells)
    return table


def errors(analysis: Mapping[str, Mapping[str, Any]]) -> Table:
    """TIDE's kinds of errors by size bin."""
    from yolo_attn.evaluation.errors import KINDS

    table = Table("size in px", "objects", "AP50", *KINDS, title="dAP50 of each kind of error")
    for name, row in analysis.items():
        cells = [f"{row['dAP'][kind]:.2f} ({row['count'][kind]})" for kind in KINDS]
        table.add_row(name, str(row["objects"]), _shown(row["AP50"]), *cells)
    return table


def notes(results: Results) -> list[str]:
    """What each COCO protocol did with ignored regions and boxes, if there are any."""
    said: dict[str, list[str]] = {}
    for result in results.values():
        note = result.get("ignored")
        if note and (note["regions"] or note["crowds"]):
            text = (
                f"{note['rule']} ({note['regions']} regions, {note['crowds']} crowds; dropped: "
                f"{note['objects_dropped']} objects, {note['detections_dropped']} detections)"
            )
            said.setdefault(text, []).append(result["protocol"])
    return [f"{', '.join(names)}: {text}" for text, names in said.items()]


def _columns(results: Results) -> dict[str, Mapping[str, Any]]:
    """Title -> row -> value."""
    columns: dict[str, Mapping[str, Any]] = {}
    for result in results.values():
        caps = result.get("max_dets") or result["params"]["maxDets"]
        bins = result["params"]["areaRng"] if "params" in result else {}
        rows = {_row(name, bins): value for name, value in result["metrics"].items()}
        columns[f"{result['protocol']}, {caps[-1]} detections"] = rows
        if "unweighted_mean" in result:
            columns[f"{result['protocol']}, plain class mean"] = result["unweighted_mean"]
    return columns


def _row(metric: str, bins: Mapping[str, Any]) -> str:
    """The metric's name with its bin in px: "small" is another one in each protocol."""
    kind, _, view = metric.partition("_")
    if view in bins:
        low, high = (round(edge**0.5, 6) for edge in bins[view])
        return (
            f"{kind} {view}, {low:g}-{high:g} px" if high < MOST else f"{kind} {view}, {low:g}+ px"
        )
    # pycocotools writes AR_10 where the VisDrone toolkit writes AR10.
    return metric.replace("AR_", "AR")


def _cap(name: str) -> float:
    found = re.fullmatch(r"AR(\d+)", name)
    return float(found[1]) if found else 1e9 if name.startswith("AR") else 0


def _shown(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{value:.2f}"
