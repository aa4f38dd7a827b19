"""A training that saw some classes only, or all as one, is evaluated on what it saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from yolo_attn.data.synthetic import make_smallshapes
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.predict import predict


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classes") / "shapes"
    make_smallshapes(root, image_size=64, train_images=1, val_images=3, object_size=(6, 9))
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Untrained: it finds everything everywhere, every class."""
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel

    file = tmp_path_factory.mktemp("model") / "model.pt"
    net = YOLO("yolov8n.yaml")
    net.model = DetectionModel("yolov8n.yaml", nc=5, verbose=False)
    net.model.args = {"imgsz": 64}
    net.save(str(file))
    return str(file)


def labelled(root: Path) -> np.ndarray:
    files = sorted((root / "labels" / "val").glob("*.txt"))
    return np.array([int(row.split()[0]) for f in files for row in f.read_text().splitlines()])


def write_sidecar(root: Path) -> Path:
    """As a converter writes it, with other numbers of the classes: 11 is class 0."""
    names = yaml.safe_load((root / "data.yaml").read_text())["names"]
    images, rows = [], []
    for i, file in enumerate(sorted((root / "labels" / "val").glob("*.txt"))):
        images.append({"id": i, "file_name": f"{file.stem}.png", "width": 64, "height": 64})
        for line in file.read_text().splitlines():
            cls, x, y, w, h = map(float, line.split())
            box = [64 * (x - w / 2), 64 * (y - h / 2), 64 * w, 64 * h]
            rows.append({"id": len(rows) + 1, "image_id": i, "category_id": int(cls) + 11,
                         "bbox": box, "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
    content = {"images": images, "annotations": rows}
    content["categories"] = [{"id": n + 11, "name": name} for n, name in names.items()]
    file = root / "annotations" / "val.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("sidecar", [False, True])
def test_only_what_the_training_saw_is_compared(shapes: Path, model: str, sidecar: bool) -> None:
    file = write_sidecar(shapes) if sidecar else None
    try:
        data, first = str(shapes / "data.yaml"), 11 if sidecar else 0
        some = predict(model, data, classes=[1, 3], device="cpu")
        assert list(some.truth.gt.classes) == [first + 1, first + 3]
        assert len(some.truth.gt.boxes) == np.isin(labelled(shapes), [1, 3]).sum() > 0
        assert set(some.dets.category.tolist()) <= {first + 1, first + 3}
        one = predict(model, data, single_cls=True, device="cpu")
        assert one.truth.gt.classes == {0: "item"}
        assert len(one.truth.gt.boxes) == len(labelled(shapes))
        assert set(one.truth.gt.category.tolist()) == {0} >= set(one.dets.category.tolist())
        both = predict(model, data, single_cls=True, classes=[1, 3], device="cpu")
        assert len(both.truth.gt.boxes) == len(some.truth.gt.boxes)
        assert both.truth.gt.classes == {0: "item"}
        with pytest.raises(YoloAttnError, match="classes=9: .* has no class of that number"):
            predict(model, data, classes=9, device="cpu")
    finally:
        if file:
            file.unlink()
