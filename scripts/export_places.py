"""Where a block stands in the YOLOv8 that is exported: for the export tests, matrix and fuzzing."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from yolo_attn.registry import BlockInfo


def places(info: BlockInfo) -> tuple[str, ...]:
    """P5 and N3; RevColumns is the backbone; blocks with several inputs have one natural place."""
    if info.name == "RevColumns":
        return ("backbone",)
    # A map beside N3 on either side is missing: blocks with several inputs stand at N4.
    return ("P5",) if info.takes_list else ("P5", "N3")


def after(info: BlockInfo, place: str) -> str:
    """Taps of the row: `place`, or N4 with the neighbours whose sizes the block declares."""
    if not info.takes_list:
        return place
    count = max(info.min_inputs, min(3, info.max_inputs))
    scales = [*info.levels, *[info.levels[-1] if info.levels else 1.0] * count][:count]
    first = 5 if min(scales) >= 1 else 4
    return "[" + ", ".join(f"N{first - round(math.log2(scale))}" for scale in scales) + "]"


def write_config(info: BlockInfo, place: str, path: Path) -> None:
    """Write YOLOv8n with the block at this place."""
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
