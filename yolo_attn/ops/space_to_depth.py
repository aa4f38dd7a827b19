"""Space to depth, and the zeros that complete a map whose sides the scale does not divide."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, scale: int) -> Tensor:
    """Append zero rows and columns until `scale` divides both sides of ``(B, C, H, W)``."""
    down, right = -x.shape[2] % scale, -x.shape[3] % scale
    if not torch.jit.is_tracing() and not (down or right):
        return x
    return F.pad(x, (0, right, 0, down))


def space_to_depth(x: Tensor, scale: int) -> Tensor:
    """``(B, C, H, W) -> (B, scale^2 C, H/scale, W/scale)``, phase by phase, rows first.

    Channel ``(j scale + i) C + c`` holds the rows i, i + scale, ... and the columns j, j + scale,
    ... of channel c: (0, 0), (1, 0), (0, 1), (1, 1) for scale 2.
    """
    slices = [x[:, :, i::scale, j::scale] for j in range(scale) for i in range(scale)]
    return torch.cat(slices, 1)
