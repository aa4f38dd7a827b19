"""The report of a study: the same numbers in every form, one page that opens offline."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from yolo_attn.ablation.evaluate_trial import write_results
from yolo_attn.ablation.figures import figures_of, pareto
from yolo_attn.ablation.report import write_report
from yolo_attn.ablation.spec import Arm, Study
from yolo_attn.ablation.store import DONE, FAILED, STUDY, TrialFolder, write_json
from yolo_attn.cli import app
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.boxes import Detections, GroundTruth

ARMS = {"baseline": 0.5, "block": 0.85, "<b>odd&": 0.5}
SEEDS = (0, 1, 2)
IMAGES = 24


def draw_truth(rng: np.random.Generator) -> GroundTruth:
    n = IMAGES * 8
    boxes = np.c_[rng.random((n, 2)) * 80, rng.random((n, 2)) * 25 + 3]
    names = [f"{i}.png" for i in range(IMAGES)]
    return GroundTruth(
        names, {0: "ship", 1: "car"}, np.repeat(np.arange(IMAGES), 8), boxes, rng.integers(0, 2, n)
    )


def detect(rng: np.random.Generator, gt: GroundTruth, found: float) -> Detections:
    hit = rng.random(len(gt.boxes)) < found
    n = int(hit.sum())
    boxes = np.r_[gt.boxes[hit] + rng.normal(0, 0.3, (n, 4)), np.c_[rng.random((40, 4)) * 30 + 2]]
    image = np.r_[gt.image[hit], rng.integers(0, IMAGES, 40)]
    category = np.r_[gt.category[hit], rng.integers(0, 2, 40)]
    score = np.r_[rng.uniform(0.4, 1, n), rng.uniform(0, 0.6, 40)]
    boxes[:, 2:] = boxes[:, 2:].clip(1)
    return Detections(image, boxes, category, score)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of three arms; "block" finds far more than the baseline."""
    root = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    truth = draw_truth(rng)
    paths = {}
    for i in range(IMAGES):
        path = root / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (110, 110, 3), dtype=np.uint8)).save(path)
        paths[str(path)] = i
    names = [name.replace("<b>odd&", "odd_arm") for name in ARMS]
    study = Study(
        name="demo",
        arms=tuple(Arm(name, f"{name}.yaml") for name in names),
        baseline="baseline",
        seeds=SEEDS,
        data="<demo>.yaml",
        protocols=("coco", "tiny", "visdrone"),
        draws=200,
        project=str(root),
    )
    costs = {n: {"parameters": 1000 + i, "gflops": 1.0, "blocks": []} for i, n in enumerate(names)}
    content = {"study": study.as_dict(), "arms": costs, "flags": ["a <flag>"]}
    write_json(study.folder / STUDY, content)
    latency = {n: {"latency_ms": 5.0 + i, "latency_p95_ms": 6.0} for i, n in enumerate(names)}
    write_json(
        study.folder / "costs.json",
        {"arms": latency, "device": "CPU", "threads": 1, "rounds": 10, "imgsz": 96, "stamps": {}},
    )
    for name, found in zip(names, ARMS.values()):
        for seed in SEEDS:
            trial = TrialFolder(study.folder / name / str(seed))
            (trial.path / "train").mkdir(parents=True)
            rows = "".join(f"{e},{e * 2.0},{0.1 * e}\n" for e in (1, 2, 3))
            (trial.path / "train" / "results.csv").write_text(
                f"epoch,time,   metrics/mAP50-95(B)\n{rows}"
            )
            own = detect(rng, truth, found + rng.normal(0, 0.02))
            write_results(trial.path, truth, own, paths, list(study.protocols), {"notes": []})
            trial.write(
                arm=name, seed=seed, status=DONE, seconds=10.0, epochs=3, epoch_seconds=2.0,
                peak_memory=5e8, host="here", device="cpu", commit=None,
                command=["yolo", "detect", "train", f"model={name}.yaml", "data=my data.yaml"],
                versions={"ultralytics": "8", "torch": "2", "yolo_attn": "0"},
                dataset={"data": "d", "sha256": "abc"},
                metrics=json.loads((trial.path / "metrics.json").read_text()),
            )  # fmt: skip
    return study.folder


def test_the_verdicts_are_right_and_the_same_in_every_form(made: Path) -> None:
    results = write_report(made)
    said = {(p, c.metric, c.arm): c for p, c in results.comparisons}
    assert said["coco", "AP", "block"].verdict == "better"
    assert said["coco", "AP", "odd_arm"].verdict not in ("better", "worse")
    mean = results.mean("block", "coco", "AP")
    assert said["coco", "AP", "block"].arm_mean == pytest.approx(mean, abs=1e-9)
    with open(made / "table.csv", newline="") as file:
        rows = {(r["protocol"], r["metric"], r["arm"]): r for r in csv.DictReader(file)}
    assert len(rows) == 3 * (3 + 3 + 2)
    for key, c in said.items():
        if c.difference is None:
            continue
        row = rows[key]
        assert float(row["difference"]) == c.difference and row["verdict"] == c.verdict
        assert (float(row["low"]), float(row["high"])) == c.interval
        assert float(row["low"]) <= c.difference <= float(row["high"])
    assert rows["coco", "AP", "block"]["latency_ms"] == "6.0"
    tex = (made / "table.tex").read_text()
    assert f"{results.mean('block', 'coco', 'AP'):.2f}" in tex and "odd\\_arm" in tex
    assert tex.count("\\\\") == 1 + 3 + 2
    shown = CliRunner().invoke(app, ["report", str(made)]).stdout
    assert re.search(r"coco .* AP .* block .*better", shown) and "note: a <flag>" in shown
    answer = json.loads(CliRunner().invoke(app, ["report", str(made), "--json"]).stdout)
    assert len(answer["comparisons"]) == len(said)


def test_every_picture_is_written_as_png_and_svg(made: Path) -> None:
    results = write_report(made)
    keys = [figure.key for figure in figures_of(results)]
    assert keys == ["latency", "curves", "sizes", "classes", "errors"]
    for key in keys if (made / "report.html").is_file() else ():
        assert Image.open(made / "figures" / f"{key}.png").size == (1200, 675)
        assert (made / "figures" / f"{key}.svg").read_text().count("<svg") == 1
    assert pareto([(2, 5.0), (1, 3.0), (3, 4.0), (2, 6.0)]) == [(1, 3.0), (2, 6.0)]


def test_the_page_needs_nothing_else(made: Path) -> None:
    pytest.importorskip("plotly")
    write_report(made)
    page = (made / "report.html").read_text()
    own = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", own)
    assert "&lt;demo&gt;.yaml" in own and "a &lt;flag&gt;" in own
    assert own.count("<img ") == 3 * 4 and own.count('class="sortable"') == 3
    assert "yolo detect train model=block.yaml &#39;data=my data.yaml&#39; device=cpu" in own
    assert '<td class="better">better</td>' in own
    for key in ("latency", "curves", "sizes", "classes", "errors"):
        assert f'id="figure-{key}"' in own


def test_failed_and_missing_trials_are_said(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    error = {"what": "training ended with signal 9", "log": "x", "tail": ["last <line>"]}
    TrialFolder(folder / "block" / "1").write(status=FAILED, error=error)
    shutil.rmtree(folder / "block" / "2")
    shutil.rmtree(folder / "odd_arm")
    results = write_report(folder)
    assert results.study.folder == folder, "a folder that was moved"
    assert list(results.failed) == ["block/1"] and results.unfinished[0] == "block/2"
    (c,) = [c for p, c in results.comparisons if (p, c.metric) == ("coco", "AP")]
    assert c.seeds == (0,) and c.verdict == "too few seeds to tell"
    versions = {"ultralytics": "7", "torch": "2", "yolo_attn": "0"}
    TrialFolder(folder / "baseline" / "0").write(versions=versions, resumed=[1])
    flags = write_report(folder).flags
    assert "trials of several versions of ultralytics: 7, 8" in flags
    assert any("baseline/0" in flag and "resumed" in flag for flag in flags)


def test_records_without_the_protocol_name_the_way_out(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    stored = json.loads((folder / STUDY).read_text())
    stored["study"]["protocols"] = ["coco", "coco-500"]
    write_json(folder / STUDY, stored)
    with pytest.raises(YoloAttnError, match="without protocol coco-500; .*--force"):
        write_report(folder)
