"""CARAFE's reassembly: a pixel of the enlarged map is its own mix of a field of the small one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def reassemble(x: Tensor, kernels: Tensor, scale: int) -> Tensor:
    """``y[c, s Y + i, s X + j] = sum_t kernels[g(c), t, (i, j), Y, X] x[c, (Y, X) + t]``.

    The sum runs over the taps at the small size, s^2 pixels at a time: nothing of k^2 times the
    map is ever stored.

    Args:
        x: ``(B, C, H, W)``; zero outside.
        kernels: ``(B, G, k^2, s^2, H, W)``; the taps row by row, g(c) = c // (C / G).
        scale: s.

    Returns:
        ``(B, C, s H, s W)``.
    """
    groups, taps = kernels.shape[1:3]
    k = int(int(taps) ** 0.5 + 0.5)
    height, width = x.shape[2:]
    padded = F.pad(x, [k // 2] * 4).unflatten(1, (groups, -1))[:, :, :, None]
    y: Tensor | None = None
    for t in range(k * k):
        row, column = divmod(t, k)
        moved = padded[..., row : row + height, column : column + width]
        weight = kernels[:, :, None, t]
        y = moved * weight if y is None else y.addcmul(moved, weight)
    assert y is not None
    return F.pixel_shuffle(y.flatten(1, 3), scale)
