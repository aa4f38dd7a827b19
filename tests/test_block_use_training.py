"""The table after a real training, the same numbers in `explain --use` and in a trial."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.processes import python, yolo
from yolo_attn.data.synthetic import make_smallshapes

IMAGES = 5  # fewer than the table asks for, so that the folder has the same ones
ROW = re.compile(r"^ *(\d+)  (\w+) +(\S+(?: \d+)?) +(\S+) +(\S+) +(\S+) %$", re.MULTILINE)
TRAIN = (
    "data=shapes/data.yaml", "epochs=1", "imgsz=64", "batch=6", "device=cpu", "workers=0",
    "plots=False",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    make_smallshapes(folder / "shapes", image_size=96, train_images=12, val_images=IMAGES)
    (folder / "yolov8-two.yaml").write_text(
        "base: yolov8.yaml\ninsert:\n"
        "  - [P5, 1, NonLocal, []]\n  - [N3, 2, CBAM, [{identity_start: true}]]\n"
    )
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> str:
    """What the stock command prints."""
    done = yolo("detect", "train", "model=yolov8n-two.yaml", *TRAIN, f"project={place}", cwd=place)
    return done.stdout + done.stderr


def test_the_table_stands_after_a_training_and_fits(trained: str) -> None:
    lines = trained[trained.index("Blocks of best.pt:") :].splitlines()[:5]
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["layer", "block", "where", "|g|", "|gamma|", "change"]
    found = [m[:3] for m in ROW.findall(trained)]
    assert found == [("10", "NonLocal", "P5"), ("17", "CBAM", "N3")]
    assert f"mean of {IMAGES} validation images" in lines[4]


def test_explain_and_a_trial_say_the_same(place: Path, trained: str, tmp_path: Path) -> None:
    from yolo_attn.ablation.evaluate_trial import evaluate_trial
    from yolo_attn.explain.use_table import number

    (best,) = place.glob("**/weights/best.pt")
    images = place / "shapes" / "images" / "val"
    out = python("-m", "yolo_attn.cli", "explain", str(best), str(images), "--use", "--json")
    blocks = json.loads(out.stdout)["blocks"]
    shown = [(g, gamma, change) for *_, g, gamma, change in ROW.findall(trained)]
    assert shown == [
        (number(b["gate"]), number(b["gamma"]), number(100 * b["change"])) for b in blocks
    ]
    assert 0 < blocks[0]["gamma"] < 0.1 and 0 < blocks[1]["gate"] < 0.1

    weights = tmp_path / "trial" / "train" / "weights"
    weights.mkdir(parents=True)
    shutil.copy(best, weights)
    evaluate_trial(tmp_path / "trial", str(place / "shapes" / "data.yaml"), "val", ["coco"], "cpu")
    stored = json.loads((tmp_path / "trial" / "metrics.json").read_text())["blocks"]
    assert [b.pop("where") for b in stored] == ["P5", "N3"] and stored == blocks


def test_a_training_is_the_same_with_and_without_the_table(place: Path, tmp_path: Path) -> None:
    """Weights, results.csv and the random state that a program goes on with."""
    code = (
        "import random, sys, numpy, torch\n"
        "from ultralytics import YOLO\n"
        "from ultralytics.utils.callbacks.base import default_callbacks\n"
        "if sys.argv[2] == 'off': default_callbacks['on_train_end'].clear()\n"
        "m = YOLO('yolov8n-two.yaml')\n"
        "m.train(data='shapes/data.yaml', epochs=1, imgsz=64, batch=6, device='cpu', workers=0,\n"
        "    plots=False, project=sys.argv[1], name=sys.argv[2])\n"
        "print('state', random.random(), numpy.random.rand(), torch.rand(1).item())\n"
    )
    said = {}
    for table in ("on", "off"):
        done = python("-c", code, str(tmp_path), table, cwd=place)
        said[table] = re.search(r"^state .*", done.stdout, re.MULTILINE)[0]
        assert ("Blocks of best.pt" in done.stdout + done.stderr) == (table == "on")
    assert said["on"] == said["off"]
    on, off = (tmp_path / table for table in said)
    kept = [torch.load(f / "weights" / "best.pt", weights_only=False) for f in (on, off)]
    first, second = (checkpoint["model"].state_dict() for checkpoint in kept)
    assert all(torch.equal(first[k], second[k]) for k in first)
    curves = []
    for folder in (on, off):
        with open(folder / "results.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        curves.append([{k: v for k, v in r.items() if k.strip() != "time"} for r in rows])
    assert curves[0] == curves[1] and len(curves[0]) == 1


def test_a_stock_training_prints_nothing_of_ours(place: Path) -> None:
    done = yolo("detect", "train", "model=yolov8n.yaml", *TRAIN, "name=stock", cwd=place)
    said = done.stdout + done.stderr
    assert "Blocks of" not in said and "|gamma|" not in said and "yolo_attn: " not in said
