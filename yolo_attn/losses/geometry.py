"""What a pair of boxes has in common: sides, overlap, centre offset, enclosing box.

All with Ultralytics' own placement of eps (the heights carry it, the widths do not), so that the
losses agree with the stock CIoU. A prediction may be inverted or empty (a head without DFL does
not force it to be a box): guards are made so that they change nothing for a proper pair.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPS = 1e-7


class _ToFloat32(torch.autograd.Function):
    """Half to float32; a gradient that half cannot hold is saturated instead of infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Cast."""
        ctx.dtype = x.dtype
        return x.float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Cast back."""
        most = torch.finfo(ctx.dtype).max
        return grads[0].clamp(-most, most).to(ctx.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is: eps is lost in the sums of a half."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return _ToFloat32.apply(x) if x.requires_grad else x.float()
    return x if x.is_floating_point() else x.float()


class Pair:
    """Predictions and targets, with the quantities that the papers name.

    Args:
        pred: (n, 4) float, x1 y1 x2 y2, in any unit.
        target: (n, 4), the same.

    Attributes, each (n,):
        w, h, wg, hg: Sides of prediction and target (g: ground truth), the heights plus eps.
        inter, union, iou: Overlap.
        cw, ch: Sides of the enclosing box; ``d2 = cw^2 + ch^2``.
        dx, dy: From the prediction's centre to the target's; ``rho2 = dx^2 + dy^2``.
    """

    def __init__(self, pred: Tensor, target: Tensor):
        x1, y1, x2, y2 = self.pred = pred.unbind(-1)
        a1, b1, a2, b2 = self.target = target.unbind(-1)
        self.w, self.wg = x2 - x1, a2 - a1
        self.raw_h, self.raw_hg = y2 - y1, b2 - b1
        self.h, self.hg = not_zero(self.raw_h + EPS), not_zero(self.raw_hg + EPS)
        self.inter = (torch.minimum(x2, a2) - torch.maximum(x1, a1)).clamp(min=0) * (
            torch.minimum(y2, b2) - torch.maximum(y1, b1)
        ).clamp(min=0)
        self.union = self.w * self.h + self.wg * self.hg - self.inter + EPS
        # Below eps for inverted predictions only, whose overlap is 0.
        self.iou = self.inter / self.union.clamp(min=EPS)
        self.cw = torch.maximum(x2, a2) - torch.minimum(x1, a1)
        self.ch = torch.maximum(y2, b2) - torch.minimum(y1, b1)
        self.d2 = self.cw.square() + self.ch.square()
        self.dx = (a1 + a2 - x1 - x2) / 2
        self.dy = (b1 + b2 - y1 - y2) / 2
        self.rho2 = self.dx.square() + self.dy.square()


def not_zero(x: Tensor) -> Tensor:
    """`x`, with eps/2 in place of what is nearer to zero: only a side of -eps can be there."""
    return torch.where(x.abs() < EPS / 2, EPS / 2, x)


def at_least_eps(x: Tensor) -> Tensor:
    """A side as a denominator; a proper one stays as it is, to the bit."""
    return x.clamp(min=EPS)
