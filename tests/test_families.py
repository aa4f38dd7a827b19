"""One overlay a family lives the whole life of a model under the stock `yolo` command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import yolo
from yolo_attn.data.synthetic import make_smallshapes

OVERLAYS = (
    "yolov5n-globalcontext",
    "yolov7-tiny-nonlocal",
    "yolov8n-p2-crisscross",
    "yolov9t-dasi",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set and no trace of us."""
    folder = tmp_path_factory.mktemp("families")
    make_smallshapes(folder / "shapes", image_size=128, train_images=16, val_images=4)
    (folder / "shapes.yaml").write_text(
        f"path: {folder / 'shapes'}\ntrain: images/train\nval: images/val\n"
        "names: [disk, square, triangle, cross, ring]\n"
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERLAYS)
def test_train_val_predict_export_in_fresh_processes(name: str, place: Path) -> None:
    options = ("imgsz=128", "device=cpu", f"project={place / 'runs'}", f"name={name}")
    data = (f"data={place / 'shapes.yaml'}", "workers=0", "plots=False")
    yolo("train", f"model={name}.yaml", "epochs=1", "batch=8", *data, *options, cwd=place)
    best = place / "runs" / name / "weights" / "best.pt"
    assert best.is_file()
    done = yolo("val", f"model={best}", *data, *options, cwd=place)
    assert "COCO AP by size" in done.stdout + done.stderr
    image = next((place / "shapes/images/val").iterdir())
    yolo("predict", f"model={best}", f"source={image}", "save=False", *options, cwd=place)
    yolo("export", f"model={best}", "format=onnx", "imgsz=128", "device=cpu", cwd=place)
    onnx = best.with_suffix(".onnx")
    yolo("predict", f"model={onnx}", f"source={image}", "save=False", *options, cwd=place)
