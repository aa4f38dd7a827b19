"""The report of a study: report.html, table.csv, table.tex and every picture as PNG and SVG.

Where blocks were measured, blocks.csv and blocks.tex say how much they are used.
"""

from __future__ import annotations

import importlib.util
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from yolo_attn.ablation import tables
from yolo_attn.ablation.costs import measure_study
from yolo_attn.ablation.figures import as_plotly, figures_of, save_with_matplotlib
from yolo_attn.ablation.pictures import LEGEND, data_uri, pictures_of
from yolo_attn.ablation.results import COSTS, Results, collect
from yolo_attn.ablation.store import DONE, TrialFolder, read_json, write_text
from yolo_attn.ablation.studies import load_study
from yolo_attn.evaluation.predict import image_paths

PAGE, FIGURES = "report.html", "figures"
NUMERIC = {3, 4, 5, 6, 7, 8, 10, 11}  # columns of `tables.cells`
USE_NUMERIC = {1, 4, 5, 6}  # columns of `tables.use_cells`


def write_report(folder: Path, device: str | None = None) -> Results:
    """Compare what is finished and write the report into the study's folder.

    Without plotly and jinja2 (the extra "report") there is no page, and a flag says so.

    Args:
        folder: of the study.
        device: where to measure latency; None leaves costs.json as it is.

    Raises:
        YoloAttnError: no study there; results that do not belong together.
    """
    if device is not None:
        _measure(folder, device)
    results = collect(folder)
    folder = results.study.folder
    write_text(folder / "table.csv", tables.as_csv(results))
    write_text(folder / "table.tex", tables.as_latex(results))
    if tables.use_cells(results):
        write_text(folder / "blocks.csv", tables.use_as_csv(results))
        write_text(folder / "blocks.tex", tables.use_as_latex(results))
    missing = [m for m in ("plotly", "jinja2", "matplotlib") if not importlib.util.find_spec(m)]
    if missing:
        results.flags.append(
            f"no {PAGE}: {', '.join(missing)} not installed (pip install 'yolo-attn[report]')"
        )
        return results
    (folder / FIGURES).mkdir(exist_ok=True)
    for figure in figures_of(results):
        save_with_matplotlib(figure, folder / FIGURES)
    write_text(folder / PAGE, page(results))
    return results


def page(results: Results) -> str:
    """The page: one file that opens offline; the pictures are also written as PNG."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(loader=templates, autoescape=True, undefined=StrictUndefined)
    figures = [
        {"title": figure.title, "html": as_plotly(figure, inline_library=i == 0)}
        for i, figure in enumerate(figures_of(results))
    ]
    return environment.get_template(PAGE).render(
        study=results.study,
        flags=results.flags,
        headers=tables.headers(),
        rows=[tables.cells(row) for row in tables.rows_of(results)],
        numeric=NUMERIC,
        use_headers=tables.use_headers(),
        use=tables.use_cells(results),
        use_numeric=USE_NUMERIC,
        cost_headers=list(tables.COST_COLUMNS.values()),
        costs=tables.cost_cells(results),
        cost_note=_cost_note(results),
        figures=figures,
        pictures=_pictures(results),
        legend=[(f"rgb{colour}", line, name) for colour, line, name in LEGEND],
        failed=results.failed,
        **_manifest(results),
    )


def _pictures(results: Results) -> list[dict[str, Any]]:
    out = []
    for i, picture in enumerate(pictures_of(results)):
        for j, (_, png) in enumerate(picture.panels):
            (results.study.folder / FIGURES / f"image{i}-{j}.png").write_bytes(png)
        panels = [(title, data_uri(png)) for title, png in picture.panels]
        out.append({"name": picture.name, "panels": panels})
    return out


def _manifest(results: Results) -> dict[str, Any]:
    trials, commands, digest = [], [], "-"
    for by_seed in results.trials.values():
        for trial in by_seed.values():
            r = trial.record
            versions = ", ".join(f"{name} {v}" for name, v in r["versions"].items())
            commit = r["commit"] or "-"
            seconds = f"{r['seconds']:.0f}"
            trials.append(
                [
                    r["arm"],
                    r["seed"],
                    r["status"],
                    r["epochs"],
                    seconds,
                    r["host"],
                    versions,
                    commit,
                ]
            )
            commands.append(shlex.join([*r["command"], f"device={r['device']}"]))
            digest = r["dataset"]["sha256"]
    for status, names in (("failed", results.failed), ("not finished", results.unfinished)):
        trials += [[*name.split("/"), status, "", "", "", "", ""] for name in names]
    return {"trials": trials, "commands": commands, "digest": digest}


def _cost_note(results: Results) -> str:
    costs = read_json(results.study.folder / COSTS)
    how = "Seconds per epoch include its validation; peak memory is of the training."
    if not costs:
        return how
    if "conf" in costs:
        return (
            "Latency, because an arm predicts slices: from an image file to its boxes, all slices, "
            f"NMS and merging counted, over {costs['rounds']} images of the split (median and 95th "
            f"percentile), inputs of {costs['imgsz']} px, confidence {costs['conf']}, float32, on "
            f"{costs['device']} ({costs['threads']} threads), arms interleaved; GFLOPs are of one "
            f"input, of which a sliced arm has many an image. {how}"
        )
    return (
        f"Latency: one image of {costs['imgsz']} px, float32, fused, without NMS, on "
        f"{costs['device']} ({costs['threads']} threads), {costs['rounds']} rounds with the arms "
        f"interleaved. {how}"
    )


def _measure(folder: Path, device: str) -> None:
    study, _ = load_study(folder)
    first = {}
    for arm in study.arms:
        done = [TrialFolder(study.folder / arm.name / str(seed)) for seed in study.seeds]
        done = [trial for trial in done if trial.status == DONE and trial.best.is_file()]
        if done:
            first[arm.name] = done[0]
    if first:
        imgsz = study.train.get("imgsz", 640)
        side = max(imgsz) if isinstance(imgsz, (list, tuple)) else int(imgsz)
        slices = {arm.name: (arm.slice, arm.slice_overlap) for arm in study.arms if arm.slice}
        images = partial(image_paths, study.data, study.split)
        measure_study(study.folder, first, side, device, slices, images)
