"""Is a block used? How far its gate has opened, and how much it changes what it reads.

Three numbers for each row of a model that holds a block of ours:

- gate: mean of `identity_start`'s gates, |a| in `x + a (block(x) - x)`, which begin at 0
- gamma: mean |gamma| of what begins at 0 inside the block (the scale of its last norm, the weights
  of its last projection, or one number), as the block's `zero_started` tells
- change: ``|block(x) - x| / |x|`` (L2), x the (first) input, mean over images

A block that trained to nothing has a small one, whatever its parameters and GFLOPs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn, no_grad

from yolo_attn.blocks.identity_start import IdentityStart
from yolo_attn.explain.hooks import Subject, letterbox, read_image
from yolo_attn.explain.use_table import BlockUse
from yolo_attn.registry import block_info, list_blocks

IMAGES = 8  # of a validation set, where nobody says which


@dataclass
class BlockRow:
    """A row with blocks of ours: its module, the blocks in it, and what was measured."""

    layer: int
    name: str
    module: nn.Module
    repeats: list[nn.Module]
    where: str = ""
    same_shape: bool = True
    changes: list[float] = field(default_factory=list)

    @property
    def gate(self) -> float | None:
        """Mean |a| over the repeats."""
        return _mean([r.strength() for r in self.repeats if isinstance(r, IdentityStart)])

    @property
    def gamma(self) -> float | None:
        """Mean |gamma| over the repeats."""
        blocks = [r.block if isinstance(r, IdentityStart) else r for r in self.repeats]
        declared: list[Any] = [getattr(block, "zero_started", None) for block in blocks]
        started = [tell() for tell in declared if tell is not None]
        return _mean([float(t.detach().float().abs().mean()) for t in started if t is not None])


def block_rows(model: nn.Module) -> list[BlockRow]:
    """Rows of a model that are blocks of ours (or a user's registered ones)."""
    names = {block_info(name).cls: name for name in list_blocks()}
    found = []
    for layer, row in enumerate(getattr(model, "model", ())):
        repeats = list(row) if type(row) is nn.Sequential else [row]
        kinds = {type(r.block if isinstance(r, IdentityStart) else r) for r in repeats}
        if len(kinds) == 1 and kinds <= set(names):
            found.append(BlockRow(layer, names[kinds.pop()], row, repeats))
    return found


def relative_change(x: Tensor, y: Tensor) -> Tensor:
    """``|y - x| / |x|`` of each image, ``(B, C, ...) -> (B,)``; not finite for an empty x."""
    x, y = x.detach().flatten(1).float(), y.detach().flatten(1).float()
    return (y - x).norm(dim=1) / x.norm(dim=1)


def measure(
    subject: Subject,
    images: Sequence[str | Path],
    imgsz: int | None = None,
    seconds: float = math.inf,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[BlockUse], int]:
    """Run a model on images and measure its blocks.

    Args:
        subject: The model.
        images: Files.
        imgsz: Longer side of the input; by default of the training.
        seconds: No further image is begun after so many; one is always run.
        step: Called with the images that are done and all of them.

    Returns:
        One entry for each row with a block of ours, and the number of images that were run.

    Raises:
        YoloAttnError: A file is no image.
    """
    rows = block_rows(subject.model)
    begin, done = time.perf_counter(), 0
    device = next((p.device for p in subject.model.parameters()), None)
    for file in images if rows else ():
        if done and time.perf_counter() - begin > seconds:
            break
        x, _ = letterbox(read_image(file), imgsz or subject.imgsz, subject.stride)
        with _measuring(subject.model, rows, x.shape[2]), no_grad():
            subject.model(x.to(device))
        done += 1
        step(done, len(images))
    return [_result(row) for row in rows], done


def _result(row: BlockRow) -> BlockUse:
    change = _mean(row.changes) if row.same_shape else None
    return BlockUse(row.layer, row.name, row.where or "-", row.gate, row.gamma, change)


@contextmanager
def _measuring(model: nn.Module, rows: Sequence[BlockRow], height: int) -> Iterator[None]:
    """Within it, a run of the model adds to the rows what it finds."""

    def hook_of(row: BlockRow) -> Any:
        # At once: a later layer may write into the map.
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            first = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
            if not isinstance(output, Tensor):
                row.same_shape = False
                return
            row.where = _where(model, row.layer, height / output.shape[2])
            row.same_shape = row.same_shape and output.shape == first.shape
            if row.same_shape:
                row.changes += relative_change(first, output).tolist()

        return hook

    handles = [row.module.register_forward_hook(hook_of(row)) for row in rows]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _where(model: Any, layer: int, stride: float) -> str:
    """The place in the words of overlays, from the stride that the map turned out to have."""
    level = math.log2(stride)
    if level != int(level) or not 2 <= level <= 7:
        return f"stride {stride:g}"
    if layer < len((getattr(model, "yaml", None) or {}).get("backbone", ())):
        return f"P{level:.0f}"
    f = getattr(model.model[-1], "f", ())
    read = [i % len(model.model) for i in ([f] if isinstance(f, int) else f)]
    return f"N{level:.0f}" if layer in read else f"stride {stride:g}"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def spread(files: Sequence[str], count: int = IMAGES) -> list[str]:
    """At most `count` of these files, evenly over their sorted names: the same ones every time."""
    files = sorted(files)
    chosen = min(count, len(files))
    return [files[i * len(files) // chosen] for i in range(chosen)]
