"""A finished study on disk whose detections are drawn, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from yolo_attn.ablation.evaluate_trial import write_results
from yolo_attn.ablation.spec import Arm, Study
from yolo_attn.ablation.store import DONE, STUDY, TrialFolder, write_json
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


def finished_study(root: Path) -> Path:
    """Its folder below `root`; of three arms "block" finds far more than the baseline."""
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
