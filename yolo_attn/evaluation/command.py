"""``yolo-attn evaluate``: parses, calls the protocols, and prints them side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import typer
from rich.console import Console

from yolo_attn.errors import YoloAttnError


def evaluate_command(
    model: Optional[str] = typer.Argument(
        None, help="A checkpoint, ours or stock, to run on --data."
    ),
    data: Optional[str] = typer.Option(None, help="Dataset YAML, with MODEL."),
    split: str = typer.Option("val", help="train, val or test, with MODEL."),
    imgsz: Optional[int] = typer.Option(
        None, help="Side of the input, with MODEL; by default that of its training."
    ),
    max_det: int = typer.Option(
        500, "--max-det", help="Detections an image that MODEL may give (Ultralytics: 300)."
    ),
    batch: int = typer.Option(16, help="Images at once, with MODEL."),
    device: Optional[str] = typer.Option(None, help="cpu, 0, 0,1 ..., with MODEL."),
    slice_size: Optional[int] = typer.Option(
        None, "--slice", help="Side of slices in px of the image, through SAHI, with MODEL."
    ),
    slice_overlap: Optional[float] = typer.Option(
        None, "--slice-overlap", help="Share of a slice that its neighbour has too; default 0.2."
    ),
    gt: Optional[Path] = typer.Option(
        None, help="Instead of MODEL: folder of VisDrone annotations, or a COCO JSON file."
    ),
    pred: Optional[Path] = typer.Option(
        None, help="With --gt: folder of VisDrone result files, or COCO results JSON."
    ),
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
    """Score a checkpoint, or prediction files, under each protocol, in percent.

    Example: yolo-attn evaluate best.pt --data datasets/VisDrone.yaml

    Example: yolo-attn evaluate best.pt --data datasets/VisDrone.yaml --slice 640

    Example: yolo-attn evaluate --protocol visdrone --gt annotations --pred detections
    --sizes sizes.json --json
    """
    from yolo_attn.evaluation import protocols, tables
    from yolo_attn.evaluation.records import save_records

    chosen = _protocols(protocol, max_dets, bins)
    edges = _numbers("--bins", bins) if bins else None
    found: Any = None
    extra, said = {}, []
    slices = _slices(slice_size, slice_overlap, model)
    if model is not None:
        if gt or pred or sizes or not data:
            raise YoloAttnError(
                f"{model}: goes with --data DATA.yaml, not with --gt, --pred, --sizes"
            )
        found = _predict(model, data, split, imgsz, max_det, batch, device, slices)
        truth, dets, warnings, said = found.truth.gt, found.dets, found.warnings, found.notes
        extra = {"ultralytics": found.ultralytics} if found.ultralytics else {}
    elif gt is None or pred is None:
        raise YoloAttnError("give a checkpoint and --data DATA.yaml, or --gt and --pred")
    else:
        truth, dets, warnings = _read(gt, pred, sizes)
    with Console(stderr=True).status("evaluating"):
        results = protocols.evaluate(truth, dets, chosen)
        if errors:
            from yolo_attn.evaluation.errors import EDGES, error_analysis, plot_errors

            analysis = error_analysis(truth, dets, edges or EDGES)
            plot_errors(analysis, errors)
        if records:
            save_records(records, protocols.match_records(truth, dets, chosen))
        if save_visdrone:
            _save_visdrone(save_visdrone, truth, dets, warnings)
    said = [*said, *tables.notes(results)]
    if as_json:
        # One protocol as its golden file has it; several by name.
        answer = dict(results) if len(results) > 1 else dict(*results.values())
        answer.update(extra)
        if found and found.slicing:
            answer["slicing"] = found.slicing
        if errors:
            answer["errors"] = analysis
        print(json.dumps({**answer, "notes": said, "warnings": warnings.as_dict()}, indent=2))
        return
    console = Console() if sys.stdout.isatty() else Console(width=200)
    results = {**results, **extra}
    for table in (tables.overall(results), tables.by_class(results)):
        console.print(table)
    if errors:
        console.print(tables.errors(analysis))
    for line in [*warnings.lines(), *said]:
        print(f"note: {line}", file=sys.stderr)


def _slices(
    size: Optional[int], overlap: Optional[float], model: Optional[str]
) -> Optional[Tuple[int, float]]:
    """Size and overlap of the slices; None without."""
    from yolo_attn.evaluation.slicing import OVERLAP, check_slices

    if size is None:
        if overlap is not None:
            raise YoloAttnError(f"--slice-overlap {overlap:g}: goes with --slice, e.g. --slice 640")
        return None
    if model is None:
        raise YoloAttnError(
            f"--slice {size}: goes with a checkpoint and --data, not with prediction files, which "
            "are evaluated as they are"
        )
    check_slices(size, OVERLAP if overlap is None else overlap)
    return size, OVERLAP if overlap is None else overlap


def _predict(
    model: str,
    data: str,
    split: str,
    imgsz: Optional[int],
    max_det: int,
    batch: int,
    device: Optional[str],
    slices: Optional[Tuple[int, float]],
) -> Any:
    from yolo_attn.evaluation.predict import predict
    from yolo_attn.evaluation.predict_sliced import predict_sliced

    common: Dict[str, Any] = {"split": split, "imgsz": imgsz, "max_det": max_det, "device": device}
    if slices is None:
        return predict(model, data, batch=batch, **common)
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images in slices", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return predict_sliced(
            model, data, slices[0], overlap=slices[1], progress=progress, **common
        )


def _protocols(names: Optional[List[str]], max_dets: Optional[str], bins: Optional[str]) -> Any:
    from dataclasses import replace

    from yolo_attn.evaluation.protocols import PROTOCOLS, pick

    chosen = pick(names or PROTOCOLS)
    if max_dets is None and bins is None:
        return chosen
    coco = [name for name, rules in chosen.items() if rules]
    if len(coco) != 1:
        raise YoloAttnError(
            "--max-dets and --bins set one COCO protocol; name it, e.g. --protocol coco"
        )
    rules: Any = chosen[coco[0]]
    caps = _numbers("--max-dets", max_dets) if max_dets else rules.max_dets
    if any(cap % 1 for cap in caps):
        raise YoloAttnError(f"--max-dets {max_dets}: accepted are whole numbers of 1 or more")
    edges = _numbers("--bins", bins) if bins else rules.edges
    caps = tuple(int(cap) for cap in caps)
    chosen[coco[0]] = replace(rules, max_dets=caps, edges=edges)
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

    # Label files number the classes from 0, the official files from 1.
    shift = int(min(truth.classes, default=1) == 0)
    left_out = write_visdrone(folder, truth.names, dets, shift=shift)
    if left_out:
        what = "detection not written (beyond the 500 of an image, or of category 0 or 11)"
        warnings.count(what, str(folder), left_out)
