"""Toy tasks that need a far sign, a YOLO-like network for them and its training; all seeded.

A picture is a grid of cells with one glyph each, most of them empty. What a glyph's cell has to
answer stands at least `FAR` cells away, outside of what the convolutions see: without a block that
reads the whole map the answer is a guess.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import yolo_attn

SIDE, CELL = 8, 4  # cells along a side, pixels along a cell's side
FAR = 3  # cells: the head's cell sees 7 px to each side, so 2 cells are near and 3 are not
NOISE = 0.1
BATCH, STEPS = 16, 400
CHECK_EVERY, CHECK_IMAGES, KNOWN = 40, 128, 0.99  # a training that knows the task may end
TEST_IMAGES = 512
IGNORE = -100  # cells that nothing is asked of
# Ultralytics: learning rate, momentum, learning rate of biases when the warm-up begins. AdamW's
# learning rate is what `optimizer: auto` fits to the number of classes.
OPTIMIZERS: dict[str, tuple[float | None, float, float]] = {
    "SGD": (0.01, 0.937, 0.1),
    "AdamW": (None, 0.9, 0.0),
    "MuSGD": (0.01, 0.9, 0.0),
}
WEIGHT_DECAY, WARMUP_MOMENTUM, LRF, CLIP = 5e-4, 0.8, 0.01, 10.0
WARMUP = 0.1  # share of the steps
COLOURS = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])
TINTS = torch.tensor([[0.6, 0.0, -0.6], [-0.6, 0.0, 0.6]])


@dataclass(frozen=True)
class Task:
    """A kind of picture.

    Attributes:
        draw: ``(generator, images) -> glyphs, targets, tints``: of each cell ``(B, SIDE * SIDE)``
            the glyph's number (0 is empty), the class to answer or IGNORE, and the number of the
            tint behind it or None for a grey picture.
        glyphs: ``(n, 3, CELL, CELL)`` with values of -1..1; the first one is empty.
        classes: how many answers there are.
    """

    draw: Callable[[torch.Generator, int], tuple[Tensor, Tensor, Tensor | None]]
    glyphs: Tensor
    classes: int

    @property
    def chance(self) -> float:
        """Accuracy of a guess."""
        return 1 / self.classes


def _places(g: torch.Generator, allowed: Tensor, count: int) -> Tensor:
    """Different cells for each image, ``(B, count)``; `allowed` is ``(B, SIDE, SIDE)``."""
    order = torch.rand(allowed.shape, generator=g).masked_fill(~allowed, -1.0)
    return order.flatten(1).topk(count, 1).indices


def _anywhere(images: int) -> Tensor:
    return torch.ones(images, SIDE, SIDE, dtype=torch.bool)


def _far_from(cell: Tensor) -> Tensor:
    """Cells ``(B, SIDE, SIDE)`` that are far from one cell ``(B,)`` of each image."""
    r = torch.arange(SIDE)
    down = (r[None, :, None] - (cell // SIDE)[:, None, None]).abs() >= FAR
    across = (r[None, None] - (cell % SIDE)[:, None, None]).abs() >= FAR
    return down | across


def _blank(images: int) -> tuple[Tensor, Tensor]:
    cells = torch.zeros(images, SIDE * SIDE, dtype=torch.long)
    return cells, torch.full_like(cells, IGNORE)


def _sign(g: torch.Generator, images: int) -> tuple[Tensor, Tensor, None]:
    glyphs, targets = _blank(images)
    answer = torch.randint(2, (images, 1), generator=g)
    sign = _places(g, _anywhere(images), 1)
    glyphs.scatter_(1, sign, 1 + answer)
    discs = _places(g, _far_from(sign[:, 0]), 4)
    glyphs.scatter_(1, discs, 3)
    targets.scatter_(1, discs, answer.expand_as(discs))
    return glyphs, targets, None


def _band(g: torch.Generator, images: int) -> tuple[Tensor, Tensor, Tensor]:
    glyphs, targets = _blank(images)
    half = torch.arange(SIDE)[:, None].expand(SIDE, SIDE) * 2 // SIDE
    for band in range(2):
        inside = (half == band).expand(images, -1, -1)
        answer = torch.randint(2, (images, 1), generator=g)
        sign = _places(g, inside, 1)
        glyphs.scatter_(1, sign, 1 + answer)
        discs = _places(g, inside & _far_from(sign[:, 0]), 2)
        glyphs.scatter_(1, discs, 3)
        targets.scatter_(1, discs, answer.expand_as(discs))
    swapped = torch.randint(2, (images, 1), generator=g)
    return glyphs, targets, half.flatten() ^ swapped


def _copy(g: torch.Generator, images: int) -> tuple[Tensor, Tensor, None]:
    glyphs, targets = _blank(images)
    unmarked = _places(g, _anywhere(images), 6)
    glyphs.scatter_(1, unmarked, torch.randint(1, 4, unmarked.shape, generator=g))
    one = _places(g, _anywhere(images), 1)
    other = _places(g, _far_from(one[:, 0]), 1)
    marked = torch.cat([one, other], 1)
    colours = torch.randint(3, marked.shape, generator=g)
    glyphs.scatter_(1, marked, 4 + colours)
    targets.scatter_(1, marked, colours.flip(1))
    return glyphs, targets, None


def _match(g: torch.Generator, images: int) -> tuple[Tensor, Tensor, None]:
    glyphs, targets = _blank(images)
    one = _places(g, _anywhere(images), 1)
    other = _places(g, _far_from(one[:, 0]), 1)
    pair = torch.cat([one, other], 1)
    colours = torch.randint(2, pair.shape, generator=g)
    same = colours[:, :1] == colours[:, 1:]
    glyphs.scatter_(1, pair, 1 + colours)
    targets.scatter_(1, pair, same.long().expand_as(pair))
    return glyphs, targets, None


def _with_empty(*glyphs: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, 3, CELL, CELL), *glyphs])


def _squares(colours: Tensor) -> Tensor:
    return colours[:, :, None, None].expand(-1, -1, CELL, CELL)


def _in_frame(inner: Tensor, frame: float) -> Tensor:
    framed = torch.full_like(inner, frame)
    framed[:, :, 1:-1, 1:-1] = inner[:, :, 1:-1, 1:-1]
    return framed


_LYING = torch.tensor([1.0, 1, -1, -1])[:, None].expand(3, CELL, CELL)
_SIGNS_AND_DISC = _with_empty(
    torch.stack([_LYING, _LYING.mT]), _in_frame(torch.ones(1, 3, CELL, CELL), -1.0)
)
TASKS = {
    "sign": Task(_sign, _SIGNS_AND_DISC, 2),
    "band": Task(_band, _SIGNS_AND_DISC, 2),
    "copy": Task(
        _copy,
        _with_empty(_squares(COLOURS), _in_frame(_squares(COLOURS), 1.0)),
        3,
    ),
    "match": Task(_match, _with_empty(_squares(COLOURS[:2])), 2),
}


def draw(task: Task, g: torch.Generator, images: int) -> tuple[Tensor, Tensor]:
    """Pictures ``(B, 3, 32, 32)`` of about 0..1 and answers ``(B, 8, 8)``."""
    cells, targets, tints = task.draw(g, images)
    picture = task.glyphs[cells]
    if tints is not None:
        empty = (cells == 0)[..., None, None, None]
        tint = TINTS[tints][..., None, None]
        picture = tint + 0.7 * torch.where(empty, torch.zeros(()), picture)
    picture = picture.unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 4, 2, 5)
    picture = picture.reshape(images, 3, SIDE * CELL, SIDE * CELL)
    noise = torch.randn(picture.shape, generator=g)
    return 0.5 + 0.25 * picture + NOISE * noise, targets.view(images, SIDE, SIDE)


class Network(nn.Module):
    """Stride 4, one block, a head that sees 15 px; its norms are set as the host sets them."""

    def __init__(self, block: nn.Module, width: int, classes: int):
        from ultralytics.nn.modules import Conv
        from ultralytics.utils.torch_utils import initialize_weights

        super().__init__()
        self.model = nn.Sequential(
            Conv(3, 16, 3, 2),
            Conv(16, width, 3, 2),
            block,
            Conv(width, width, 3),
            nn.Conv2d(width, classes, 1),
        )
        initialize_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 3, H, W) -> (B, classes, H/4, W/4)``."""
        return self.model(x)


def make_block(name: str, width: int) -> nn.Module:
    """A block by its name, ``NonLocal:gaussian`` for a mode; ``none`` for the identity."""
    if name == "none":
        return nn.Identity()
    block, _, mode = name.partition(":")
    return yolo_attn.create(block, width, **({"mode": mode} if mode else {}))


@dataclass
class Optimiser:
    """Ultralytics' optimiser with its groups, and its schedule: warm-up, then down to LRF."""

    network: nn.Module
    name: str
    classes: int
    steps: int

    def __post_init__(self) -> None:
        from ultralytics.engine.trainer import BaseTrainer

        rate, self.momentum, self.bias_start = OPTIMIZERS[self.name]
        self.rate = round(0.002 * 5 / (4 + self.classes), 6) if rate is None else rate
        # The trainer itself is asked only where the name is "auto".
        self.inner = BaseTrainer.build_optimizer(
            None, self.network, self.name, self.rate, self.momentum, WEIGHT_DECAY
        )
        for group in self.inner.param_groups:
            group["initial_lr"] = group["lr"]

    def step(self, i: int, loss: Tensor) -> None:
        """Step number `i` down the gradient of a loss."""
        done = min(i / (WARMUP * self.steps), 1.0)
        for group in self.inner.param_groups:
            target = group["initial_lr"] * ((1 - i / self.steps) * (1 - LRF) + LRF)
            start = self.bias_start if group["param_group"] == "bias" else 0.0
            group["lr"] = start + done * (target - start)
            if "momentum" in group:
                group["momentum"] = WARMUP_MOMENTUM + done * (self.momentum - WARMUP_MOMENTUM)
        self.inner.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.inner.step()


def accuracy(network: nn.Module, task: Task, g: torch.Generator, images: int) -> float:
    """Share of right answers on fresh pictures, in evaluation mode."""
    network.eval()
    with torch.no_grad():
        pictures, targets = draw(task, g, images)
        asked = targets != IGNORE
        right = (network(pictures).argmax(1) == targets)[asked].float().mean().item()
    network.train()
    return right


def train(
    block: str, task_name: str, optimizer: str, seed: int, width: int, steps: int = STEPS
) -> dict[str, Any]:
    """One training on pictures that are never shown twice.

    Returns:
        What was trained, ``accuracy`` on fresh pictures, ``steps`` until the checks said that the
        task is known (or all), and ``seconds`` of the processor.
    """
    begin = time.process_time()
    task = TASKS[task_name]
    torch.manual_seed(seed)
    network = Network(make_block(block, width), width, task.classes)
    optimiser = Optimiser(network, optimizer, task.classes, steps)
    g, fresh = (torch.Generator().manual_seed(start + seed) for start in (1000, 2000))
    for i in range(steps):
        if i and not i % CHECK_EVERY and accuracy(network, task, fresh, CHECK_IMAGES) >= KNOWN:
            break
        pictures, targets = draw(task, g, BATCH)
        # The host's losses are sums over the batch.
        optimiser.step(i, BATCH * F.cross_entropy(network(pictures), targets))
    else:
        i = steps
    return {
        "block": block,
        "task": task_name,
        "optimizer": optimizer,
        "seed": seed,
        "accuracy": accuracy(network, task, fresh, TEST_IMAGES),
        "steps": i,
        "seconds": time.process_time() - begin,
    }
