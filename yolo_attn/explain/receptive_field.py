"""Effective receptive field: which pixels the centre of a map depends on, and how much.

Luo, Li, Urtasun, Zemel: Understanding the Effective Receptive Field in Deep Convolutional Neural
Networks, NIPS 2016, arXiv 1701.04128.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from yolo_attn.errors import YoloAttnError
from yolo_attn.explain.hooks import Subject, catching

SHARES = (0.5, 0.9, 0.99)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Field:
    """The effective receptive field of the centre of one map.

    Attributes:
        name: The map, e.g. ``"stride 8"`` or ``"after 5 NonLocal"``.
        gradient: ``(H, W)`` of the input, absolute, mean over the images; sums to 1.
        radii: Share of the gradient -> radius in input pixels that holds it.
        reached: Share of the input's pixels that the centre depends on at all.
        grid: Height and width of the map.
    """

    name: str
    gradient: Floats
    radii: dict[float, float]
    reached: float
    grid: tuple[int, int]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        radii = {f"r{round(100 * share)}": radius for share, radius in self.radii.items()}
        return {"map": self.name, "grid": list(self.grid), **radii, "reached": self.reached}


def field(name: str, gradient: Floats, grid: tuple[int, int]) -> Field:
    """Sum up a gradient ``(H, W)``.

    Raises:
        YoloAttnError: It is zero everywhere, or not finite.
    """
    total = gradient.sum()
    if not np.isfinite(total) or total <= 0:
        raise YoloAttnError(f"{name}: the gradient with respect to the image is {total:g}")
    held = radii(gradient, centre_pixel(gradient.shape, grid))
    return Field(name, gradient / total, held, float((gradient > 0).mean()), grid)


def centre_pixel(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the pixel that the central cell of a map stands on.

    A 3 x 3 convolution with stride 2 and a border of 1 puts cell i on pixel 2 i, so that a map of
    stride s has cell i on pixel s i.
    """
    (height, width), (h, w) = size, grid
    return -(-height // h) * (h // 2), -(-width // w) * (w // 2)


def radii(
    gradient: Floats, centre: tuple[int, int], shares: Sequence[float] = SHARES
) -> dict[float, float]:
    """The radius around the centre that holds each share of a gradient, in pixels.

    Args:
        gradient: ``(H, W)``, not negative.
        centre: Row and column.
        shares: From 0 to 1.
    """
    y, x = np.indices(gradient.shape)
    distance = np.hypot(y - centre[0], x - centre[1]).ravel()
    order = np.argsort(distance, kind="stable")
    held = np.cumsum(gradient.ravel()[order])
    # Rounding of the sum must not push the last pixel beyond the share.
    at = [np.searchsorted(held, share * held[-1] * (1 - 1e-12)) for share in shares]
    return {share: float(distance[order[i]]) for share, i in zip(shares, at)}


def centre_gradient(y: Tensor, x: Tensor) -> tuple[Floats, tuple[int, int]]:
    """|d centre / d pixel|, summed over the images, of a map that was computed from `x`.

    Args:
        y: ``(B, C, h, w)``; its channels are summed at the central cell.
        x: ``(B, 3, H, W)`` with ``requires_grad``.

    Returns:
        ``(H, W)``, and (h, w).
    """
    h, w = int(y.shape[2]), int(y.shape[3])
    (gradient,) = torch.autograd.grad(y[:, :, h // 2, w // 2].sum(), x, retain_graph=True)
    return gradient.abs().sum((0, 1)).double().cpu().numpy(), (h, w)


def level_fields(
    subject: Subject, inputs: Iterable[Tensor], progress: Callable[[], None] | None = None
) -> list[Field]:
    """One field for each level that the detection head reads.

    Args:
        subject: The model.
        inputs: Images ``(B, 3, H, W)`` from 0 to 1, all of one size.
        progress: Called after each of them.
    """

    def names(_: Subject, maps: Sequence[Tensor], x: Tensor) -> list[tuple[str, Tensor]]:
        return [(f"stride {round(x.shape[2] / y.shape[2])}", y) for y in maps]

    return _fields(subject, inputs, names, progress)


def block_fields(
    subject: Subject, inputs: Iterable[Tensor], progress: Callable[[], None] | None = None
) -> list[tuple[str, Field, Field]]:
    """For each block that keeps the shape of its one input: its name, the field before and behind.

    The field before the block is that of the same network, with the same weights, without it.
    """

    def names(subject: Subject, _: Sequence[Tensor], x: Tensor) -> list[tuple[str, Tensor]]:
        pairs = []
        for layer in subject.layers:
            if layer.info.min_inputs > 1 or not isinstance(layer.output, Tensor):
                continue
            if layer.output.shape == layer.first.shape:
                pairs += [
                    (f"before {layer.name}", layer.first),
                    (f"after {layer.name}", layer.output),
                ]
        return pairs

    found = _fields(subject, inputs, names, progress)
    return [(a.name[len("before ") :], a, b) for a, b in zip(found[::2], found[1::2])]


def _fields(
    subject: Subject,
    inputs: Iterable[Tensor],
    maps_of: Callable[[Subject, Sequence[Tensor], Tensor], list[tuple[str, Tensor]]],
    progress: Callable[[], None] | None,
) -> list[Field]:
    sums: dict[str, Floats] = {}
    grids: dict[str, tuple[int, int]] = {}
    for x in inputs:
        x = x.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            maps = _head_inputs(subject, x)
            for name, y in maps_of(subject, maps, x):
                gradient, grids[name] = centre_gradient(y, x)
                if name in sums and sums[name].shape != gradient.shape:
                    raise YoloAttnError(
                        f"receptive fields need images of one size, got {sums[name].shape} and "
                        f"{gradient.shape}"
                    )
                sums[name] = sums.get(name, 0) + gradient
        if progress:
            progress()
    for layer in subject.layers:
        layer.inputs = layer.output = None  # they hold the graph
    return [field(name, gradient, grids[name]) for name, gradient in sums.items()]


class _Reached(Exception):
    """The head has been reached; what it would compute is not needed."""


def _head_inputs(subject: Subject, x: Tensor) -> list[Tensor]:
    """The maps that the detection head reads."""
    maps: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
        read = args[0]
        maps.extend(read if isinstance(read, (list, tuple)) else [read])
        raise _Reached

    handle = subject.model.model[-1].register_forward_pre_hook(stop)
    try:
        with catching(subject.layers):
            subject.model(x)
    except _Reached:
        pass
    finally:
        handle.remove()
    return maps


def square_inputs(
    images: Sequence[npt.NDArray[np.uint8]], side: int, noise: int = 8, seed: int = 0
) -> list[Tensor]:
    """Square inputs ``(1, 3, side, side)`` from 0 to 1.

    Args:
        images: ``(H, W, 3)`` uint8, blue first; stretched to the square, so that no border has a
            gradient of its own.
        side: In pixels.
        noise: Without images, this many of uniform noise.
        seed: Of the noise.
    """
    if not len(images):
        generator = torch.Generator().manual_seed(seed)
        return [torch.rand(1, 3, side, side, generator=generator) for _ in range(noise)]
    import cv2

    out = []
    for image in images:
        square = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
        x = torch.from_numpy(np.ascontiguousarray(square[..., ::-1])).permute(2, 0, 1)[None]
        out.append(x.float() / 255)
    return out
