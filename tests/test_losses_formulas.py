"""Other option values than those of the golden files, against the formulas written out once more.

Proper boxes only, so that no guard is needed: what is compared is the mathematics.
"""

from __future__ import annotations

import math
from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from tests.test_losses import made

EPS = 1e-7
STRIDE = 8.0


def pairs(n: int = 300) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)

    def draw(kind: Callable[..., Tensor]) -> Tensor:
        return kind(n, 2, generator=g, dtype=torch.float64)

    centre, sides = draw(torch.rand) * 60, draw(torch.rand) * 12 + 0.3
    moved, scaled = centre + 3 * draw(torch.randn), sides * (0.4 * draw(torch.randn)).exp()
    target = torch.cat([centre - sides / 2, centre + sides / 2], 1)
    return torch.cat([moved - scaled / 2, moved + scaled / 2], 1), target


class Boxes:
    """Names of the papers for a pair."""

    def __init__(self, pred: Tensor, target: Tensor):
        x1, y1, x2, y2 = pred.T
        a1, b1, a2, b2 = target.T
        self.edges = (x1 - a1, y1 - b1, x2 - a2, y2 - b2)
        self.w, self.h, self.wg, self.hg = x2 - x1, y2 - y1 + EPS, a2 - a1, b2 - b1 + EPS
        wide = (torch.minimum(x2, a2) - torch.maximum(x1, a1)).clamp(0)
        inter = wide * (torch.minimum(y2, b2) - torch.maximum(y1, b1)).clamp(0)
        self.union = self.w * self.h + self.wg * self.hg - inter + EPS
        self.iou = inter / self.union
        self.cw = torch.maximum(x2, a2) - torch.minimum(x1, a1)
        self.ch = torch.maximum(y2, b2) - torch.minimum(y1, b1)
        self.d2 = self.cw**2 + self.ch**2
        self.dx, self.dy = (a1 + a2 - x1 - x2) / 2, (b1 + b2 - y1 - y2) / 2
        self.rho2 = self.dx**2 + self.dy**2
        self.ow = (self.w - self.wg).abs() / torch.maximum(self.w, self.wg)
        self.oh = (self.h - self.hg).abs() / torch.maximum(self.h, self.hg)


def shapeiou(b: Boxes, scale: float) -> Tensor:
    total = b.wg**scale + b.hg**scale
    ww, hh = 2 * b.wg**scale / total, 2 * b.hg**scale / total
    shape = (1 - torch.exp(-hh * b.ow)) ** 4 + (1 - torch.exp(-ww * b.oh)) ** 4
    return 1 - b.iou + (hh * b.dx**2 + ww * b.dy**2) / (b.d2 + EPS) + shape / 2


def siou(b: Boxes, theta: float) -> Tensor:
    sx, sy = b.dx + EPS, b.dy + EPS
    sigma = torch.hypot(sx, sy)
    s = torch.minimum(sx.abs(), sy.abs()) / sigma
    g = 2 - torch.sin(2 * torch.asin(s))
    distance = 2 - torch.exp(-g * (sx / b.cw) ** 2) - torch.exp(-g * (sy / b.ch) ** 2)
    shape = (1 - torch.exp(-b.ow)) ** theta + (1 - torch.exp(-b.oh)) ** theta
    return 1 - b.iou + (distance + shape) / 2


def alpha(b: Boxes, base: str, p: float) -> Tensor:
    loss = 1 - (b.iou + EPS) ** p
    if base == "giou":
        area = torch.maximum(b.cw * b.ch + EPS, b.union)
        return loss + ((area - b.union) / area + EPS) ** p
    loss = loss + b.rho2**p / (b.d2**p + EPS)
    v = 4 / math.pi**2 * (torch.atan(b.wg / b.hg) - torch.atan(b.w / b.h)) ** 2
    a = (v / (1 + EPS - b.iou + v)).detach()
    return loss + (a * v + EPS) ** p if base == "ciou" else loss


def piou2(b: Boxes, lamda: float) -> Tensor:
    x1, y1, x2, y2 = (edge.abs() for edge in b.edges)
    p = ((x1 + x2) / b.wg + (y1 + y2) / b.hg) / 4
    x = lamda * torch.exp(-p)
    return 3 * x * torch.exp(-(x**2)) * (2 - b.iou - torch.exp(-(p**2)))


def nwd(b: Boxes, c: float, k: float) -> Tensor:
    sides = ((b.w - b.wg) ** 2 + (b.h - b.hg) ** 2) / 4
    return 1 - torch.exp(-torch.sqrt(k**2 * (b.rho2 + sides) + EPS) / c)


CASES: list[tuple[dict[str, Any], Callable[[Boxes], Tensor]]] = [
    *(({"box": "shapeiou", "scale": s}, lambda b, s=s: shapeiou(b, s)) for s in (0.5, 2, 3)),
    *(({"box": "siou", "theta": t}, lambda b, t=t: siou(b, t)) for t in (2, 6)),
    *(
        ({"box": base, "alpha": p}, lambda b, base=base, p=p: alpha(b, base, p))
        for base in ("giou", "diou", "ciou")
        for p in (0.5, 1.5, 5)
    ),
    ({"box": "piou2", "lambda": 0.8}, lambda b: piou2(b, 0.8)),
    ({"box": "nwd", "nwd_c": 20, "nwd_units": "grid"}, lambda b: nwd(b, 20, 1)),
    ({"box": "nwd", "nwd_c": 20}, lambda b: nwd(b, 20, STRIDE)),
    (
        {"box": "siou", "focal": 0.8, "nwd": 0.3, "nwd_c": 9},
        lambda b: 0.7 * b.iou.detach() ** 0.8 * siou(b, 4) + 0.3 * nwd(b, 9, STRIDE),
    ),
]


@pytest.mark.parametrize(("spec", "formula"), CASES, ids=[str(spec) for spec, _ in CASES])
def test_options_do_what_the_formula_says(
    spec: dict[str, Any], formula: Callable[[Boxes], Tensor]
) -> None:
    pred, target = pairs()
    ours, theirs = pred.clone().requires_grad_(), pred.clone().requires_grad_()
    loss, expected = made(spec)(ours, target, STRIDE, (480, 640)), formula(Boxes(theirs, target))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-11, atol=1e-12)
