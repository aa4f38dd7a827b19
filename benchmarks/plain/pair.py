"""A block of ours beside its plain counterpart: the same weights, inputs and (checked) results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Union

import torch
from torch import Tensor, nn

from yolo_attn import block_info, create

from ._common import Plain

Maps = Union[Tensor, list[Tensor]]
# Blocks that read the image, not a level of the pyramid.
IMAGE_BLOCKS = ("RevColumns",)


@dataclass
class Pair:
    """Both modules with the inputs that they are run on."""

    ours: nn.Module
    plain: Plain
    x: Maps

    def to(self, *args: Any) -> Pair:
        """Move everything to another dtype or device."""
        x = [t.to(*args) for t in as_list(self.x)]
        moved = x if isinstance(self.x, list) else x[0]
        return Pair(self.ours.to(*args), self.plain.to(*args), moved)


def as_list(x: Maps) -> list[Tensor]:
    """One map as a list of one."""
    return [x] if isinstance(x, Tensor) else list(x)


def input_shapes(
    name: str, level: int, width: Callable[[int], int], side: Callable[[int], int]
) -> list[tuple[int, int, int]]:
    """``(C, H, W)`` of every input of a block whose first input is pyramid level `level`.

    A block of `IMAGE_BLOCKS` gets the image (level 0) whatever the level.

    Args:
        name: Block.
        level: 3 for P3.
        width: Channels of a level.
        side: Height and width of a level.
    """
    if name in IMAGE_BLOCKS:
        return [(3, side(0), side(0))]
    info = block_info(name)
    count = max(info.min_inputs, min(3, info.max_inputs))
    scales = [*info.levels, *[info.levels[-1] if info.levels else 1.0] * count][:count]
    # A map twice as wide and high is one level up.
    levels = [level - round(math.log2(scale)) for scale in scales]
    return [(width(k), side(k), side(k)) for k in levels]


def make_pair(
    name: str,
    plain: Callable[..., Plain],
    shapes: list[tuple[int, int, int]],
    options: dict[str, Any],
    batch: int,
) -> Pair:
    """Build both with the same random weights, none of which is at its start.

    Args:
        name: Block.
        plain: Builds the counterpart.
        shapes: ``(C, H, W)`` of every input.
        options: Options of the block, which the counterpart takes too.
        batch: Images.
    """
    torch.manual_seed(0)
    takes_list = block_info(name).takes_list
    widths = [c for c, _, _ in shapes]
    channels: Any = widths if takes_list else widths[0]
    ours = create(name, channels, **options)
    randomise(ours)
    theirs = plain(channels, **options).load(ours)
    x = [torch.randn(batch, *shape) for shape in shapes]
    return Pair(ours, theirs, x if takes_list else x[0])


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Move parameters and running statistics off their starts, where branches vanish."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            # Keeps activations, and so the logits of a softmax, of the order of 1.
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for submodule in module.modules():
        if isinstance(submodule, nn.BatchNorm2d):
            submodule.running_mean.normal_(std=0.1)
            submodule.running_var.uniform_(0.5, 1.5)


def results(module: nn.Module, x: Maps) -> list[Tensor]:
    """Outputs and, in training mode, the gradients of the inputs."""
    torch.manual_seed(2)  # dropout
    maps = [t.detach().clone().requires_grad_(module.training) for t in as_list(x)]
    outputs = as_list(module(maps if isinstance(x, list) else maps[0]))
    if not module.training:
        return outputs
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator).to(y) for y in outputs]
    # A map without a path to the outputs has no gradient.
    grads = torch.autograd.grad(outputs, maps, weights, allow_unused=True)
    return [*(y.detach() for y in outputs), *(g for g in grads if g is not None)]


def disagreement(pair: Pair) -> float:
    """Largest ``|ours - plain| / |plain|`` of the tensors, in the Euclidean norm.

    Compared are the outputs in evaluation mode, and the outputs and the inputs' gradients in
    training mode. (Not the largest element: where a ReLU or a maximum is a tie but for rounding, a
    single element of a gradient may rightly be another one.)
    """
    worst = 0.0
    for training in (False, True):
        with torch.set_grad_enabled(training):
            mine = results(pair.ours.train(training), pair.x)
            theirs = results(pair.plain.train(training), pair.x)
        if [t.shape for t in mine] != [t.shape for t in theirs]:
            return float("inf")
        for a, b in zip(mine, theirs):
            difference = (a - b).norm() / b.norm().clamp_min(1e-30)
            # NaN must not pass.
            worst = max(worst, float(difference) if difference == difference else float("inf"))
    return worst
