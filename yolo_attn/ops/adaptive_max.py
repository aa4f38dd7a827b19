"""Adaptive max pooling as a gather and a maximum: deterministic everywhere, exportable at any size.

The bins are those of :mod:`yolo_attn.ops.adaptive_mean`. None along an axis of length L holds more
than ``ceil(L / s) + 1`` positions, so s lists of that many positions, a short bin's last one
repeated, hold them all with hardly more elements than the axis has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def maxima_of_bins(x: Tensor, bins: int, dim: int) -> Tensor:
    """Maxima of the bins along one axis, which they replace.

    Args:
        x: ``(..., H, W)``.
        bins: s.
        dim: The axis: -1, the last one, or -2.
    """
    length = x.shape[dim]
    index = torch.arange(bins, device=x.device)[:, None]
    start = torch.div(index * length, bins, rounding_mode="floor")
    end = torch.div((index + 1) * length + bins - 1, bins, rounding_mode="floor")
    longest = torch.arange((length + bins - 1) // bins + 1, device=x.device)
    positions = torch.minimum(start + longest, end - 1)
    return (x[..., positions] if dim == -1 else x[..., positions, :]).amax(dim)


def pyramid_max(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Maxima of `x` in ``s x s`` bins for every s of `sizes`.

    Args:
        x: ``(B, C, H, W)``.
        sizes: Grid sides.

    Returns:
        ``(B, C, S)`` with ``S = sum(s^2)``, in the order of
        :func:`~yolo_attn.ops.adaptive_mean.pyramid_pool`.
    """
    grids = [maxima_of_bins(maxima_of_bins(x, s, -2), s, -1) for s in sizes]
    return torch.cat([grid.flatten(2) for grid in grids], dim=2)
