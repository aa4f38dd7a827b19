"""Linear resampling of maps as matrix products: deterministic everywhere and exportable.

Position i of an axis of n positions has its centre at ``(i + 1/2) / n`` of the axis. A new position
is the mean of the old ones, weighted with a triangle around its centre that reaches to the
neighbouring centres of the coarser of both grids. That is ``interpolate(mode="bilinear",
antialias=True)``, whose backward pass is not deterministic on CUDA and which ONNX lacks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_matrix(length: int, count: int, like: Tensor) -> Tensor:
    """The matrix that resamples an axis.

    Args:
        length: Number of old positions.
        count: Number of new positions.
        like: Gives dtype and device.

    Returns:
        ``(count, length)``; every row sums to 1. The unit matrix where both numbers are equal.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    # A tensor, since exporters follow sizes as such.
    ratio = torch.ones((), device=like.device, dtype=dtype) * (length / count)
    old = torch.arange(length, device=like.device, dtype=dtype)
    # Centres of the new positions, counted in old ones.
    new = (torch.arange(count, device=like.device, dtype=dtype)[:, None] + 0.5) * ratio - 0.5
    weights = (1 - (old - new).abs() / ratio.clamp(min=1)).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).to(like.dtype)


def resample(x: Tensor, height: int, width: int) -> Tensor:
    """``(..., H, W) -> (..., height, width)``; `x` itself where the size stays."""
    old_height, old_width = x.shape[-2:]
    # A file with dynamic axes gets maps of other sizes, whatever the traced one has.
    always = torch.onnx.is_in_onnx_export()
    if always or old_width != width:
        x = x @ linear_matrix(old_width, width, x).t()
    if always or old_height != height:
        x = linear_matrix(old_height, height, x) @ x
    return x
