"""Bilinear values of a map at points given in pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_attn.ops.precision import without_autocast

BORDERS = ("zeros", "border")


def sample_points(x: Tensor, rows: Tensor, columns: Tensor, border: str) -> Tensor:
    """Bilinear interpolation of `x` at (row, column), pixel centres at whole numbers.

    Positions are normalised for torch's grid sampling in float32 (float64) with the pixels' outer
    edges at -1 and 1: a map of one row needs no special case, sizes come from the map (so that an
    export takes other sizes), and half precision, whose step is up to half a pixel there, never
    holds a coordinate.

    Args:
        x: ``(B, C, H, W)``.
        rows: ``(B, h, w)``, in pixels.
        columns: ``(B, h, w)``, in pixels.
        border: Outside of the map there is ``zeros``, or the nearest pixel of its ``border``.

    Returns:
        ``(B, C, h, w)``, in float32 where x has half precision.
    """
    height, width = x.shape[2:]
    with without_autocast(x):
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        down = (2 * rows.to(x.dtype) + 1) / height - 1
        right = (2 * columns.to(x.dtype) + 1) / width - 1
        grid = torch.stack([right, down], dim=-1)
        return F.grid_sample(x, grid, padding_mode=border, align_corners=False)
