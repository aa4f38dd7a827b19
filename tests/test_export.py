"""TorchScript and ONNX files of YOLOv8n with each block compute what eager mode does."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from ultralytics import YOLO

from yolo_attn import block_info, list_blocks
from yolo_attn.registry import BlockInfo

SIZES = [(96, 96), (64, 128)]
QUICK = ("CrissCross", "DASI")
CASES = [
    pytest.param(name, place, marks=() if name in QUICK else pytest.mark.slow, id=f"{name}-{place}")
    for name in list_blocks()
    if not block_info(name).no_export
    for place in (("backbone",) if name == "RevColumns" else ("P5", "N3"))
    # A map beside N3 on either side is missing: blocks with several inputs stand at N4.
    if place != "N3" or not block_info(name).takes_list
]


def after(info: BlockInfo, place: str) -> str:
    """Taps of the row: `place`, or N4 with the neighbours whose sizes the block declares."""
    if not info.takes_list:
        return place
    count = max(info.min_inputs, min(3, info.max_inputs))
    scales = [*info.levels, *[info.levels[-1] if info.levels else 1.0] * count][:count]
    first = 5 if min(scales) >= 1 else 4
    return "[" + ", ".join(f"N{first - round(math.log2(scale))}" for scale in scales) + "]"


def write_config(info: BlockInfo, place: str, path: Path) -> None:
    if place == "backbone":
        path.write_text(
            "nc: 80\nbackbone:\n  - [-1, 1, RevColumns, []]\n"
            + "".join(f"  - [0, 1, Index, [{c}, {i}]]\n" for i, c in ((1, 32), (2, 64), (3, 128)))
            + "head:\n  - [[1, 2, 3], 1, Detect, [nc]]\n"
        )
        return
    row = f"[{after(info, place)}, 1, {info.name}, []]"
    path.write_text(f"base: yolov8.yaml\nscale: n\ninsert:\n  - {row}\n")


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Move everything off its start, where many blocks are the identity."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1 * parameter.abs().mean().clamp(0.05))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)


def run(path: Path, image: torch.Tensor) -> np.ndarray:
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    with torch.no_grad():
        return torch.jit.load(str(path))(image).numpy()


@pytest.mark.parametrize(("name", "place"), CASES)
def test_exports_equal_eager(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / f"yolov8n-{name.lower()}.yaml"
    write_config(block_info(name), place, config)
    model = YOLO(str(config), verbose=False)
    assert any(type(m).__name__ == name for m in model.model.modules())
    randomise(model.model)
    model.model.eval()
    torch.save({"model": model.model}, tmp_path / "random.pt")
    for size in SIZES:
        image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            eager = YOLO(str(tmp_path / "random.pt")).model.eval()(image)[0].numpy()
        for kind in ("torchscript", "onnx"):
            made = YOLO(str(tmp_path / "random.pt")).export(
                format=kind, imgsz=list(size), device="cpu", verbose=False
            )
            error = np.abs(run(Path(made), image) - eager) / np.maximum(np.abs(eager), 1)
            print(f"{name} {place} {size} {kind}: {error.max():.1e}")
            assert error.max() <= 1e-4
