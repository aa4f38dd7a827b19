"""The Haar transform of 2 x 2 cells, and its inverse.

Of a cell ``a b / c d`` the bands are ``(a + b + c + d) / 2``, ``(a + b - c - d) / 2`` (difference
of the rows), ``(a - b + c - d) / 2`` (of the columns) and ``(a - b - c + d) / 2``. The matrix is
symmetric and its own inverse.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def haar_bands(x: Tensor) -> Tensor:
    """``(B, C, H, W) -> (B, C, 4, H/2, W/2)`` of a map with even sides."""
    return torch.stack(_bands(x), dim=2)


def haar_by_band(x: Tensor) -> Tensor:
    """``(B, C, H, W) -> (B, 4 C, H/2, W/2)``, one band after the other."""
    return torch.cat(_bands(x), dim=1)


def haar_cells(bands: Tensor) -> Tensor:
    """``(B, C, 4, h, w) -> (B, C, 2 h, 2 w)``, the inverse of :func:`haar_bands`."""
    return F.pixel_shuffle(torch.stack(_transform(*bands.unbind(2)), dim=2).flatten(1, 2), 2)


def _bands(x: Tensor) -> list[Tensor]:
    """The four bands; rows first, which lie together."""
    even = x[:, :, ::2]
    mean = (even + x[:, :, 1::2]) * 0.5
    difference = even - mean
    a, b = mean[..., ::2], mean[..., 1::2]
    c, d = difference[..., ::2], difference[..., 1::2]
    return [a + b, c + d, a - b, c - d]


def _transform(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> list[Tensor]:
    """The four combinations."""
    upper, lower = (a + b) * 0.5, (c + d) * 0.5
    left, right = a - upper, c - lower
    return [upper + lower, upper - lower, left + right, left - right]


def haar_kernel(weight: Tensor) -> Tensor:
    """The 2 x 2 kernel with stride 2 that does what 1 x 1 weights do to the bands.

    Args:
        weight: ``(O, 4 C, 1, 1)`` for the bands one after the other, C channels each.

    Returns:
        ``(O, C, 2, 2)``.
    """
    # Sums, no product: autocast would halve its operands.
    by_band = weight.flatten(1).unflatten(1, (4, -1)).unbind(1)
    return torch.stack(_transform(*by_band), dim=2).unflatten(2, (2, 2))
