"""The report's pictures: every box in the colour of what it is, and where a block looks."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.evaluation_sets import write_model
from yolo_attn.ablation import pictures
from yolo_attn.ablation.evaluate_trial import write_results
from yolo_attn.ablation.pictures import FALSE, LEGEND, MISSED, OBJECT, QUERY, TRUE, pictures_of
from yolo_attn.ablation.results import collect
from yolo_attn.ablation.spec import Arm, Study
from yolo_attn.ablation.store import DONE, STUDY, TrialFolder, write_json
from yolo_attn.evaluation.boxes import Detections, GroundTruth
from yolo_attn.evaluation.matching import matches_at
from yolo_attn.evaluation.protocols import match_records, pick

pytest.importorskip("matplotlib")
SIZE = 100, 80  # of the images
SCALE = pictures.WIDTH / SIZE[0]
# image, left, top, width, height, class, ignored
OBJECTS = [
    (0, 10, 10, 8, 8, 0, 0),
    (0, 60, 40, 20, 20, 1, 0),
    (0, 30, 60, 10, 10, 0, 0),
    (0, 85, 60, 10, 10, 0, 1),
    (1, 40, 30, 4, 4, 0, 0),
    (1, 70, 10, 12, 12, 1, 0),
]
# image, box, class, score: right; beside everything; right but too unsure; in an ignored object;
# right but of another class
FOUND = [
    (0, 10, 10, 8, 9, 0, 0.9),
    (0, 80, 5, 10, 10, 0, 0.6),
    (0, 60, 40, 20, 20, 1, 0.1),
    (0, 86, 61, 8, 8, 0, 0.7),
    (0, 30, 60, 10, 10, 1, 0.5),
]


def truth_and_dets():
    o, d = np.array(OBJECTS, float), np.array(FOUND)
    truth = GroundTruth(
        ["0.png", "1.png"], {0: "car", 1: "person"}, o[:, 0], o[:, 1:5], o[:, 5], o[:, 6]
    )
    return truth, Detections(d[:, 0], d[:, 1:5], d[:, 5], d[:, 6])


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A finished study: a baseline without weights, and an arm with a Non-local block."""
    root = tmp_path_factory.mktemp("pictures")
    paths = {str(root / f"{i}.png"): i for i in range(2)}
    for path, i in paths.items():
        Image.new("RGB", SIZE, (90, 90 + 20 * i, 90)).save(path)
    truth, dets = truth_and_dets()
    made = Study(
        "s", (Arm("base", "a.yaml"), Arm("nl", "b.yaml")), "base", (0,), "d.yaml",
        protocols=("coco",), draws=100, project=str(root),
    )  # fmt: skip
    cost = {"parameters": 1, "gflops": 1.0}
    arms = {"base": {**cost, "blocks": []}, "nl": {**cost, "blocks": [{"block": "NonLocal"}]}}
    write_json(made.folder / STUDY, {"study": made.as_dict(), "arms": arms, "flags": []})
    for arm in arms:
        trial = TrialFolder(made.folder / arm / "0")
        trial.best.parent.mkdir(parents=True)
        write_results(trial.path, truth, dets, paths, ["coco"], {})
        trial.write(
            arm=arm, seed=0, status=DONE, seconds=1.0, epochs=1, host="here", commit=None,
            versions={"ultralytics": "8", "torch": "2", "yolo_attn": "0"},
            dataset={"data": "d", "sha256": "abc"},
            metrics=json.loads((trial.path / "metrics.json").read_text()),
        )  # fmt: skip
    shutil.copy(write_model(root), made.folder / "nl" / "0" / "train" / "weights" / "best.pt")
    return made.folder


def colours_at(png: bytes, box) -> set[tuple[int, int, int]]:
    """Colours at the upper left corner of the frame of a box (left, top, width, height)."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    x, y = (int(side * SCALE) - pictures.OUTSET for side in box[:2])
    return {image.getpixel((x + i, y + j)) for i in range(-1, 3) for j in range(-1, 3)}


def test_matches_are_those_of_the_protocol():
    rng = np.random.default_rng(0)
    truth, _ = truth_and_dets()
    boxes = truth.boxes[rng.integers(0, len(truth.boxes), 60)] + rng.normal(0, 1, (60, 4))
    image, category = rng.integers(0, 2, 60), rng.integers(0, 2, 60)
    dets = Detections(image, boxes.clip(1), category, rng.choice([0.3, 0.6, 0.9], 60))
    took = matches_at(truth, dets, 0.5)
    true = (took >= 0) & ~np.r_[truth.ignored, True][took]
    records = match_records(truth, dets, pick(["coco"]))["coco"]
    assert true.sum() == (records.outcome[0, 0] == 1).sum() > 0
    assert (took < 0).sum() == (records.outcome[0, 0] == 0).sum() > 0


def test_each_box_has_the_colour_of_what_it_is(study):
    first, second = pictures_of(collect(study))
    assert (first.name, second.name) == ("0.png", "1.png")
    (title, objects), (name, panel), *_ = first.panels
    assert title == "objects (4)"
    assert name == "base, seed 0: 1 true, 2 false, 2 missed (scores from 0.25)"
    assert all(OBJECT in colours_at(objects, row[1:5]) for row in OBJECTS[:4])
    assert TRUE in colours_at(panel, FOUND[0][1:5])
    assert FALSE in colours_at(panel, FOUND[1][1:5])
    assert MISSED in colours_at(panel, OBJECTS[1][1:5]), "its detection is below 0.25"
    # Of another class: the object is missed, and the detection, drawn over it, false.
    assert FALSE in colours_at(panel, OBJECTS[2][1:5])
    # In an ignored object: neither.
    assert colours_at(panel, FOUND[3][1:5]) == {(90, 90, 90)}
    assert len({colour for colour, _, _ in LEGEND}) == len(LEGEND) == 4


def test_arms_with_attention_show_the_smallest_object_that_the_baseline_missed(study):
    results = collect(study)
    _, second = pictures_of(results)
    assert not results.flags
    (title, png), = second.panels[3:]  # fmt: skip
    assert title.startswith("nl, 3 NonLocal ") and title.endswith("base missed (4 x 4 px)")
    assert QUERY in colours_at(png, OBJECTS[4][1:5])
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)
    # The map covers the grey image with colours.
    assert image.shape[:2] == (336, 420) and (np.ptp(image, axis=2) > 10).mean() > 0.5


def test_no_map_without_weights_or_without_a_miss(study, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(study, folder)
    best = TrialFolder(folder / "nl" / "0").best
    best.write_bytes(b"nothing")
    results = collect(folder)
    assert [len(p.panels) for p in pictures_of(results)] == [3, 3]
    assert len(results.flags) == 1 and "no query maps of nl" in results.flags[0]
    best.unlink()
    results = collect(folder)
    assert [len(p.panels) for p in pictures_of(results)] == [3, 3] and not results.flags
    truth, _ = truth_and_dets()
    dets = Detections(truth.image, truth.boxes, truth.category, np.full(len(truth.image), 0.9))
    root = study.parent
    paths = {str(root / f"{i}.png"): i for i in range(2)}
    write_results(folder / "base" / "0", truth, dets, paths, ["coco"], {})
    shutil.copy(TrialFolder(study / "nl" / "0").best, best)
    assert [len(p.panels) for p in pictures_of(collect(folder))] == [3, 3]


def test_an_arm_with_the_weights_of_another_shows_no_second_map(study, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(study, folder)
    TrialFolder(folder / "nl" / "0").write(weights_of="other/0")
    assert [len(p.panels) for p in pictures_of(collect(folder))] == [3, 3]
