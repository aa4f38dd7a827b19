"""The GFLOPs that ``yolo`` prints, attention products included.

Ultralytics' own count is kept for stock layers (so that a model and its baseline are counted
alike). Our blocks are taken out for that count and counted by torch's ``FlopCounterMode`` on the
true map sizes, on the meta device. Older versions of Ultralytics see no matrix products at all, or
extrapolate them linearly in the image's area.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Callable

import torch
from torch import Tensor, nn

from yolo_attn.registry import find_block


def get_flops(original: Callable[..., float], model: nn.Module, imgsz: Any = 640) -> float:
    """GFLOPs of one image, 2 per multiply-add."""
    core = _unwrap(model)
    blocks = _blocks(core)
    if not blocks:
        return original(model, imgsz)
    height, width = imgsz if isinstance(imgsz, (list, tuple)) else (imgsz, imgsz)
    try:
        ours, shapes = _count(core, blocks, int(height), int(width))
        stock = original(_without(core, blocks, shapes), imgsz)
    except Exception:  # as Ultralytics: a model that cannot be counted prints no number
        return 0.0
    return stock + ours / 1e9 if stock else 0.0


def _unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP and torch.compile."""
    while True:
        for name in ("_orig_mod", "module"):
            inner = getattr(model, name, None)
            if isinstance(inner, nn.Module):
                model = inner
                break
        else:
            return model


def _blocks(model: nn.Module) -> list[str]:
    """Names of our blocks in a model that are not inside another one."""
    found: list[str] = []
    for name, module in model.named_modules():
        if _is_block(module) and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found


def _is_block(module: nn.Module) -> bool:
    cls = type(module)
    if cls.__module__.startswith(("torch.", "ultralytics.")):
        return False
    if cls.__module__.startswith("yolo_attn.blocks."):
        return True
    info = find_block(cls.__name__)
    return info is not None and info.cls is cls


def _count(
    model: nn.Module, blocks: list[str], height: int, width: int
) -> tuple[int, dict[str, list[tuple[int, float, float]]]]:
    """FLOPs of our blocks, and (channels, height ratio, width ratio) of their outputs."""
    from torch.utils.flop_counter import FlopCounterMode

    meta: Any = deepcopy(model).to("meta").eval().float()
    head = meta.model[-1]
    head.training = True  # the raw maps: decoding needs values
    shapes: dict[str, list[tuple[int, float, float]]] = {}
    total = 0

    def replacement(name: str, block: nn.Module) -> Callable[..., Any]:
        forward = block.forward

        def counted(x: Any) -> Any:
            nonlocal total
            with FlopCounterMode(display=False) as counter:
                y = forward(x)
            total += counter.get_total_flops()
            first = x if isinstance(x, Tensor) else x[0]
            shapes[name] = [
                (o.shape[1], o.shape[2] / first.shape[2], o.shape[3] / first.shape[3])
                for o in ([y] if isinstance(y, Tensor) else y)
            ]
            return y

        return counted

    for name in blocks:
        block = meta.get_submodule(name)
        block.forward = replacement(name, block)
    with torch.no_grad():
        meta(torch.empty(1, _image_channels(model), height, width, device="meta"))
    return total, shapes


def _image_channels(model: nn.Module) -> int:
    d = getattr(model, "yaml", {})
    return int(d.get("channels") or d.get("ch") or 3)


class _Costless(nn.Module):
    """Stands for a block in Ultralytics' count: right shapes, no arithmetic."""

    def __init__(self, outputs: list[tuple[int, float, float]]):
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Any) -> Any:
        first = x if isinstance(x, Tensor) else x[0]
        ys = [
            first.new_zeros(
                first.shape[0],
                c,
                max(1, round(first.shape[2] * h)),
                max(1, round(first.shape[3] * w)),
            )
            for c, h, w in self.outputs
        ]
        return ys[0] if len(ys) == 1 else ys


def _without(
    model: nn.Module, blocks: list[str], shapes: dict[str, list[tuple[int, float, float]]]
) -> nn.Module:
    """A copy of the model with costless stand-ins for our blocks."""
    copy = deepcopy(model)
    for name in blocks:
        block = copy.get_submodule(name)
        stand_in = _Costless(shapes[name])
        for attribute in ("i", "f", "type", "np"):
            if hasattr(block, attribute):
                setattr(stand_in, attribute, getattr(block, attribute))
        parent, _, child = name.rpartition(".")
        setattr(copy.get_submodule(parent) if parent else copy, child, stand_in)
    return copy
