"""The key ``loss`` in real trainings: resume, checkpoints without us, two processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.processes import python, yolo
from yolo_attn.data.synthetic import make_smallshapes

LOSS = "{box: wiou, wise: {version: 3, momentum: 0.2}, cls: ema_slide}"
# All images in one batch, nothing random, nothing learnt, weights that a half holds: a resumed run
# sees what an uninterrupted one would have seen (Ultralytics resumes from the EMA, in half, and in
# another order of images).
TRAIN = """
import sys
from ultralytics import YOLO
m = YOLO("yolov8n-mine.yaml")
def round_weights(trainer):
    for net in (trainer.model, trainer.ema.ema):
        for p in net.parameters(): p.data = p.data.half().float()
m.add_callback("on_train_start", round_weights)
if sys.argv[2] == "cut":
    def interrupt(trainer):
        if trainer.epoch == 2: raise KeyboardInterrupt
    m.add_callback("on_train_epoch_start", interrupt)
m.train(data="shapes.yaml", epochs=4, batch=4, name=sys.argv[2], project=sys.argv[1], imgsz=64,
        device="cpu", workers=0, plots=False, optimizer="SGD", lr0=0.0, warmup_epochs=0, mosaic=0,
        hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, erasing=0, amp=False)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    make_smallshapes(folder / "shapes", image_size=96, train_images=4, val_images=2)
    (folder / "shapes.yaml").write_text(
        f"path: {folder / 'shapes'}\ntrain: images/train\nval: images/val\n"
        "names: [disk, square, triangle, cross, ring]\n"
    )
    (folder / "yolov8n-mine.yaml").write_text(f"base: yolov8.yaml\nloss: {LOSS}\n")
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    done = python("-c", TRAIN, str(place / "runs"), "whole", cwd=place)
    told = re.findall(r"yolo_attn loss: (.*)", done.stdout + done.stderr)
    assert len(told) == 1 and told[0].startswith("box wiou, wise v3 (alpha 1.9")
    return next(place.glob("**/whole/weights/last.pt"))


def state_in(weights: Path) -> dict[str, dict[str, float]]:
    checkpoint = torch.load(weights, map_location="cpu", weights_only=False)
    model = checkpoint["ema"] or checkpoint["model"]  # the latter when a training has ended
    assert model.yaml["loss"]["box"] == "wiou"
    state: dict[str, dict[str, float]] = model.yaml["loss_state"]
    return state


def test_the_running_mean_of_a_resumed_training_is_that_of_an_uninterrupted_one(
    place: Path, whole: Path
) -> None:
    assert python("-c", TRAIN, str(place / "runs"), "cut", cwd=place, ok=False).returncode != 0
    last = next(place.glob("**/cut/weights/last.pt"))
    before = state_in(last)["10"]
    assert before["updates"] == 2
    yolo("detect", "train", "resume", f"model={last}", cwd=place)
    after, expected = state_in(last)["10"], state_in(whole)["10"]
    assert after["updates"] == expected["updates"] == 4
    assert after["mean"] == pytest.approx(expected["mean"], rel=1e-6)
    assert after["mu"] == pytest.approx(expected["mu"], rel=1e-4)
    assert abs(after["mean"] - before["mean"]) > 1e-3, "the mean went on"


def test_a_further_training_starts_anew_and_keeps_the_loss(place: Path, whole: Path) -> None:
    more = ("imgsz=64", "device=cpu", "workers=0", "plots=False", "epochs=1", "batch=4")
    done = yolo(
        *("detect", "train", f"model={whole}", "data=shapes.yaml", "name=more", *more),
        f"project={place / 'runs'}",
        cwd=place,
    )
    assert "yolo_attn loss: box wiou" in done.stdout + done.stderr
    assert state_in(next(place.glob("**/more/weights/last.pt")))["10"]["updates"] == 1


def test_a_checkpoint_loads_without_us(place: Path, whole: Path) -> None:
    code = (
        "import sys\nfrom ultralytics import YOLO\n"
        "m = YOLO(sys.argv[1])\nprint('loss is', m.model.yaml['loss']['box'])\n"
        "assert not [n for n in sys.modules if n.startswith('yolo_attn.')]\n"
    )
    done = python("-c", code, str(whole), cwd=place, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert "loss is wiou" in done.stdout
    assert b"yolo_attn.seam" not in whole.read_bytes()


def test_two_processes_train_with_it(place: Path) -> None:
    worker = str(Path(__file__).with_name("ddp_worker.py"))
    done = python(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", worker),
        *("yolov8n-mine.yaml", "shapes.yaml", str(place / "ddp")),
        cwd=place,
    )
    said = done.stdout + done.stderr
    digests = re.findall(r"rank \d of 2 .*? md5 ([0-9a-f]{32})", said)
    assert len(digests) == 2 and len(set(digests)) == 1
    assert said.count("yolo_attn loss: box wiou") == 1
