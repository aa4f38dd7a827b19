"""``yolo-attn evaluate``: parses, calls the protocols, and prints them side by side."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yolo_attn.errors import YoloAttnError


def evaluate_command(
    gt: Path = typer.Option(..., help="Folder of VisDrone annotations, or a COCO JSON file."),
    pred: Path = typer.Option(..., help="Folder of VisDrone result files, or COCO results JSON."),
    protocol: Optional[List[str]] = typer.Option(
        None, help="coco, coco-500, tiny or visdrone; again for more. By default all."
    ),
    sizes: Optional[Path] = typer.Option(
        None, help="sizes.json {name: [width, height]}, for VisDrone's ignored regions."
    ),
    max_dets: Optional[str] = typer.Option(
        None, "--max-dets", help="Caps of the COCO protocol, e.g. 1,10,500."
    ),
    bins: Optional[str] = typer.Option(
        None, help="Edges of the COCO size bins in px (square root of the area), e.g. 0,8,16,32."
    ),
    errors: Optional[Path] = typer.Option(
        None, help="Add TIDE's error kinds by size bin, and draw them to this PNG."
    ),
    records: Optional[Path] = typer.Option(
        None, help="Write per-image match records (npz) for a bootstrap."
    ),
    save_visdrone: Optional[Path] = typer.Option(
        None, "--save-visdrone", help="Write result files in the official format to this folder."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for programs."),
) -> None:
    """Score prediction files under each protocol, in percent.

    Example: yolo-attn evaluate --protocol visdrone --gt annotations --pred detections
    --sizes sizes.json --json
    """
    from yolo_attn.evaluation import protocols
    from yolo_attn.evaluation.records import save_records

    chosen = _protocols(protocol, max_dets, bins)
    edges = _numbers("--bins", bins) if bins else None
    with Console(stderr=True).status("evaluating"):
        truth, dets, warnings = _read(gt, pred, sizes)
        results = protocols.evaluate(truth, dets, chosen)
        if errors:
            from yolo_attn.evaluation.errors import EDGES, error_analysis, plot_errors

            analysis = error_analysis(truth, dets, edges or EDGES)
            plot_errors(analysis, errors)
        if records:
            save_records(records, protocols.match_records(truth, dets, chosen))
        if save_visdrone:
            _save_visdrone(save_visdrone, truth, dets, warnings)
    if as_json:
        # One protocol as its golden file has it; several by name.
        answer = dict(results) if len(results) > 1 else dict(*results.values())
        if errors:
            answer["errors"] = analysis
        print(json.dumps({**answer, "warnings": warnings.as_dict()}, indent=2))
        return
    console = Console() if sys.stdout.isatty() else Console(width=200)
    for table in (_overall(results), _by_class(results)):
        console.print(table)
    if errors:
        console.print(_error_table(analysis))
    for line in [*warnings.lines(), *_notes(results)]:
        print(f"note: {line}", file=sys.stderr)


def _protocols(names: Optional[List[str]], max_dets: Optional[str], bins: Optional[str]) -> Any:
    from yolo_attn.evaluation.coco import CocoRules
    from yolo_attn.evaluation.protocols import PROTOCOLS, pick

    chosen = pick(names or PROTOCOLS)
    if max_dets is None and bins is None:
        return chosen
    coco = [name for name, rules in chosen.items() if rules]
    if len(coco) != 1:
        raise YoloAttnError(
            "--max-dets and --bins set one COCO protocol; name it, e.g. --protocol coco"
        )
    rules = chosen[coco[0]]
    caps = _numbers("--max-dets", max_dets) if max_dets else rules.max_dets
    if any(cap % 1 for cap in caps):
        raise YoloAttnError(f"--max-dets {max_dets}: accepted are whole numbers of 1 or more")
    edges = _numbers("--bins", bins) if bins else rules.edges
    chosen[coco[0]] = CocoRules(rules.name, tuple(int(cap) for cap in caps), edges)
    return chosen


def _numbers(option: str, text: str) -> tuple:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(abs(v) < 1e12 for v in values):
        raise YoloAttnError(f"{option} {text!r}: accepted are numbers with commas, e.g. 1,10,500")
    return tuple(int(v) if v % 1 == 0 else v for v in values)


def _read(gt: Path, pred: Path, sizes: Optional[Path]) -> Any:
    from yolo_attn.evaluation.coco_files import read_coco
    from yolo_attn.evaluation.visdrone_files import read_visdrone

    for path in (gt, pred):
        if not path.exists():
            raise YoloAttnError(f"{path}: no such file or folder")
    if gt.is_dir() != pred.is_dir():
        raise YoloAttnError(
            f"{gt} and {pred}: give two folders (VisDrone text files) or two JSON files (COCO)"
        )
    if gt.is_dir():
        return read_visdrone(gt, pred, sizes)
    if sizes is not None:
        raise YoloAttnError(f"--sizes {sizes}: goes with VisDrone folders; a COCO file has its own")
    return read_coco(gt, pred)


def _save_visdrone(folder: Path, truth: Any, dets: Any, warnings: Any) -> None:
    from yolo_attn.evaluation.submission import write_visdrone

    left_out = write_visdrone(folder, truth.names, dets)
    if left_out:
        what = "detection not written (beyond the 500 of an image, or of category 0 or 11)"
        warnings.count(what, str(folder), left_out)


def _columns(results: Dict[str, Any]) -> Dict[str, Dict[str, Any]]:
    """Column title -> metrics; VisDrone's plain class mean stands beside it."""
    columns = {}
    for result in results.values():
        caps = result.get("max_dets") or result["params"]["maxDets"]
        columns[f"{result['protocol']}, {caps[-1]} detections"] = result["metrics"]
        if "unweighted_mean" in result:
            columns[f"{result['protocol']}, plain class mean"] = result["unweighted_mean"]
    return columns


def _overall(results: Dict[str, Any]) -> Table:
    columns = _columns(results)
    # pycocotools writes AR_10 where the VisDrone toolkit writes AR10.
    same = {
        title: {re.sub(r"^AR_(\d+)$", r"AR\1", name): v for name, v in metrics.items()}
        for title, metrics in columns.items()
    }
    names = list(dict.fromkeys(name for metrics in same.values() for name in metrics))
    names.sort(key=lambda name: (name.startswith("AR"), _cap(name)))
    table = Table("percent", *columns, title="All classes")
    for name in names:
        table.add_row(name, *(_shown(metrics.get(name)) for metrics in same.values()))
    return table


def _cap(name: str) -> float:
    found = re.fullmatch(r"AR(\d+)", name)
    return float(found[1]) if found else 1e9 if name.startswith("AR") else 0


def _by_class(results: Dict[str, Any]) -> Table:
    titles = [f"{r['protocol']} {name}" for r in results.values() for name in ("AP", "AP50")]
    table = Table("class", *titles, title="By class")
    for number, first in next(iter(results.values()))["per_class"].items():
        rows = [r["per_class"][number] for r in results.values()]
        cells = [_shown(row[name]) for row in rows for name in ("AP", "AP50")]
        table.add_row(escape(first["name"]), *cells)
    return table


def _error_table(analysis: Dict[str, Any]) -> Table:
    from yolo_attn.evaluation.errors import KINDS

    table = Table("size in px", "objects", "AP50", *KINDS, title="dAP50 of each kind of error")
    for name, row in analysis.items():
        cells = [f"{row['dAP'][kind]:.2f} ({row['count'][kind]})" for kind in KINDS]
        table.add_row(name, str(row["objects"]), _shown(row["AP50"]), *cells)
    return table


def _notes(results: Dict[str, Any]) -> List[str]:
    """What the COCO columns did with ignored regions and boxes."""
    for result in results.values():
        note = result.get("ignored")
        if note and (note["regions"] or note["crowds"]):
            return [
                f"COCO protocols: {note['regions']} ignored regions; {note['objects_dropped']} "
                f"objects and {note['detections_dropped']} detections that they cover to a half or "
                f"more are dropped; {note['crowds']} ignored boxes are crowds"
            ]
    return []


def _shown(value: Optional[float]) -> str:
    return "-" if value is None or value < 0 else f"{value:.2f}"
