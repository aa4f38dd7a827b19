"""Training goes on from what was loaded, and `freeze` counts layers of the base."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO

from tests.processes import python, yolo
from tests.transfer_harness import detection, inserts, lively, rows_by_hand
from yolo_attn.data.synthetic import make_smallshapes
from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml
from yolo_attn.seam.freeze import frozen_layers


def test_freeze_counts_layers_of_the_base() -> None:
    rows = [0, 1, 2, -1, 3, 4, 5, -1, 6]
    assert frozen_layers(4, rows) == [0, 1, 2, 4]
    assert frozen_layers(99, rows) == [0, 1, 2, 4, 5, 6, 8]
    assert frozen_layers([3, 6, "8.conv"], rows) == [4, 8, "8.conv"]
    assert frozen_layers(4, rows, replaced=[1]) == [0, 2, 4]
    with pytest.raises(YoloAttnError, match=r"yolov8.yaml has no layer 7 \(accepted: 0 to 6"):
        frozen_layers([7], rows, base="yolov8.yaml")


KEEP = {
    "data": "shapes.yaml", "epochs": 1, "imgsz": 96, "batch": 4, "workers": 0, "device": "cpu",
    "plots": False, "optimizer": "SGD", "lr0": 0, "lrf": 1.0, "warmup_epochs": 0,
}  # fmt: skip

LOAD = (
    "import sys; from ultralytics import YOLO\n"
    f"YOLO('yolov8n-mine.yaml').load('base.pt').train(project=sys.argv[1], name='load', **{KEEP})"
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set, a base with its classes and an overlay."""
    folder = tmp_path_factory.mktemp("transfer")
    make_smallshapes(folder / "shapes", image_size=96, train_images=4, val_images=4)
    (folder / "shapes.yaml").write_text(
        f"path: {folder / 'shapes'}\ntrain: images/train\nval: images/val\n"
        "names: [disk, square, triangle, cross, ring]\n"
    )
    d = {**load_model_yaml("yolov8n.yaml"), "nc": 5}
    torch.manual_seed(0)
    base = YOLO("yolov8n.yaml")
    base.model = lively(detection(d))
    base.model.args, base.model.task, base.ckpt = {}, "detect", {}
    base.model.names = dict(enumerate(["disk", "square", "triangle", "cross", "ring"]))
    base.save(folder / "base.pt")
    (folder / "yolov8-mine.yaml").write_text(
        "base: yolov8.yaml\nnc: 5\n" + inserts("P3", "P5", "N4")
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pretrained", "load"])
def test_training_at_rate_zero_keeps_what_was_loaded(shapes: Path, how: str) -> None:
    project = shapes / "runs"
    if how == "load":
        done = python("-c", LOAD, str(project), cwd=shapes)
    else:
        settings = [f"{key}={value}" for key, value in KEEP.items()]
        done = yolo(
            "detect", "train", "model=yolov8n-mine.yaml", "pretrained=base.pt", "freeze=8",
            *settings, f"project={project}", "name=pretrained", cwd=shapes,
        )  # fmt: skip
    text = done.stdout + done.stderr
    base = YOLO(shapes / "base.pt").model.float()
    (last,) = shapes.glob(f"**/{how}/weights/last.pt")
    model = YOLO(last).model.float()
    for i, j in rows_by_hand(base, model).items():
        ours = dict(model.model[j].named_parameters())
        for name, value in base.model[i].named_parameters():
            assert torch.equal(ours[name], value), (i, name)
        # Running statistics move in training at whatever rate.
        statistics = {k: v for k, v in base.model[i].named_buffers() if "anchors" not in k}
        model.model[j].load_state_dict(statistics, strict=False)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted, now = base.eval()(image)[0], model.eval()(image)[0]
    torch.testing.assert_close(now, wanted, rtol=1e-5, atol=1e-5)
    # Layers 0 to 7 of the base: the block behind layer 4 is not among them.
    layers = {int(i) for i in re.findall(r"Freezing layer 'model\.(\d+)\.", text)}
    assert layers == ({0, 1, 2, 3, 4, 6, 7, 8, 25} if how == "pretrained" else {25})  # 25: dfl
