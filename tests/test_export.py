"""TorchScript and ONNX files of YOLOv8n with each block compute what eager mode does."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from ultralytics import YOLO

from yolo_attn import block_info, list_blocks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from export_places import places, randomise, write_config  # noqa: E402

SIZES = [(96, 96), (64, 128)]
QUICK = ("CrissCross", "DASI")
CASES = [
    pytest.param(name, place, marks=() if name in QUICK else pytest.mark.slow, id=f"{name}-{place}")
    for name in list_blocks()
    if not block_info(name).no_export
    for place in places(block_info(name))
]


def run(path: Path, image: torch.Tensor) -> np.ndarray:
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    with torch.no_grad():
        return torch.jit.load(str(path))(image).numpy()


def save_model(name: str, place: str, folder: Path) -> Path:
    """A checkpoint of YOLOv8n with the block and random weights."""
    config = folder / f"yolov8n-{name.lower()}.yaml"
    write_config(block_info(name), place, config)
    model = YOLO(str(config), verbose=False)
    assert any(type(m).__name__ == name for m in model.model.modules())
    randomise(model.model)
    torch.save({"model": model.model.eval()}, folder / "random.pt")
    return folder / "random.pt"


def eager_output(checkpoint: Path, image: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return YOLO(str(checkpoint)).model.eval()(image)[0].numpy()


def random_image(size: tuple[int, int]) -> torch.Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "place"), CASES)
def test_exports_equal_eager(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = save_model(name, place, tmp_path)
    for size in SIZES:
        image = random_image(size)
        eager = eager_output(checkpoint, image)
        for kind in ("torchscript", "onnx"):
            made = YOLO(str(checkpoint)).export(
                format=kind, imgsz=list(size), device="cpu", verbose=False
            )
            error = np.abs(run(Path(made), image) - eager) / np.maximum(np.abs(eager), 1)
            print(f"{name} {place} {size} {kind}: {error.max():.1e}")
            assert error.max() <= 1e-4


@pytest.mark.parametrize(("name", "place"), CASES)
def test_half_precision_onnx_is_close(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``yolo export format=onnx half=True`` on a CPU converts the numbers of the file."""
    monkeypatch.chdir(tmp_path)
    checkpoint, image = save_model(name, place, tmp_path), random_image(SIZES[0])
    eager = eager_output(checkpoint, image)
    made = YOLO(str(checkpoint)).export(
        format="onnx", imgsz=list(SIZES[0]), half=True, device="cpu", verbose=False
    )
    error = np.abs(run(Path(made), image) - eager) / np.maximum(np.abs(eager), 1)
    print(f"{name} {place} half onnx: {error.max():.1e}")
    # Not zero: the file has been halved.
    assert 1e-6 < error.max() <= 5e-2
