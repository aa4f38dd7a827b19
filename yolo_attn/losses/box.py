"""Box losses as the papers write them: functions of a pair of boxes and its overlap term `s`.

`s` is the IoU, or what ``inner`` and ``focaler`` make of it (modifiers.py); sides, centres and the
enclosing box are always those of the boxes themselves. Each returns (n,), each is 0 for equal boxes
(NWD: up to its eps) and has finite gradients for every pair that geometry.py can be made of.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from yolo_attn.losses.geometry import EPS, Pair, at_least_eps, not_zero

# exp(-x) is 0 from here on, in float64, too; beyond it squares could overflow to 0 * inf.
FAR = 1e3
# The centre of a proper box lies inside of the enclosing one, so that R's exponent is below 1.
LARGEST_EXPONENT = 10.0


def iou(p: Pair, s: Tensor) -> Tensor:
    """``1 - S`` (Yu et al. 2016, UnitBox, 1608.01471; linear, as YOLOs use it)."""
    return 1 - s


def giou(p: Pair, s: Tensor) -> Tensor:
    """``1 - S + (C - U)/C``, C the enclosing area (Rezatofighi et al. 2019, 1902.09630, eq. 1)."""
    area = not_zero(p.cw * p.ch + EPS)
    return 1 - s + (area - p.union) / area


def diou(p: Pair, s: Tensor) -> Tensor:
    """``1 - S + rho^2/c^2``, c the enclosing diagonal (Zheng et al. 2020, 1911.08287, eq. 7)."""
    return 1 - s + p.rho2 / (p.d2 + EPS)


def aspect(p: Pair) -> Tensor:
    """``v = 4/pi^2 (atan wg/hg - atan w/h)^2`` of CIoU."""
    angle = torch.atan(p.wg / p.hg) - torch.atan(p.w / p.h)
    return 4 / math.pi**2 * angle.square()


def trade_off(p: Pair, v: Tensor) -> Tensor:
    """``a = v/(1 - IoU + v)`` of CIoU: always of the plain IoU, without gradient."""
    return (v / (1 - p.iou + v + EPS).clamp(min=EPS)).detach()


def ciou(p: Pair, s: Tensor) -> Tensor:
    """``1 - S + rho^2/c^2 + a v`` (Zheng et al. 2020, 1911.08287, eq. 8 to 11; 2005.03572)."""
    v = aspect(p)
    return diou(p, s) + trade_off(p, v) * v


def eiou(p: Pair, s: Tensor) -> Tensor:
    """DIoU plus the side differences over the enclosing sides (Zhang et al. 2021, 2101.08158).

    ``1 - S + rho^2/c^2 + (wg-w)^2/cw^2 + (hg-h)^2/ch^2`` (eq. 6).
    """
    sides = (p.wg - p.w).square() / (p.cw.square() + EPS)
    return diou(p, s) + sides + (p.hg - p.h).square() / (p.ch.square() + EPS)


def _side_differences(p: Pair) -> tuple[Tensor, Tensor]:
    """``|w-wg|/max(w,wg)`` and the same of the heights."""
    return (
        (p.w - p.wg).abs() / at_least_eps(torch.maximum(p.w, p.wg)),
        (p.h - p.hg).abs() / at_least_eps(torch.maximum(p.h, p.hg)),
    )


def siou(p: Pair, s: Tensor, theta: float = 4.0) -> Tensor:
    """Distance weighted by the angle between the centres, plus shape (Gevorgyan 2022, 2205.12740).

    ``1 - S + (Delta + Omega)/2``; the angle cost is ``sin(2 asin r) = 2 r sqrt(1 - r^2)`` with r
    the smaller of sine and cosine, at most sqrt(1/2), where both roots have finite derivatives.
    """
    sx, sy = p.dx + EPS, p.dy + EPS  # signed: |dx| + eps would be another loss at 1e-12
    sigma = (sx.square() + sy.square()).clamp(min=1e-20).sqrt()
    cosine, sine = sx.abs() / sigma, sy.abs() / sigma
    ratio = torch.where(cosine > math.sqrt(2) / 2, sine, cosine)
    g = 2 - 2 * ratio * (1 - ratio.square()).sqrt()
    x = (sx / at_least_eps(p.cw)).clamp(-FAR, FAR)
    y = (sy / at_least_eps(p.ch)).clamp(-FAR, FAR)
    distance = 2 - torch.exp(-g * x.square()) - torch.exp(-g * y.square())
    ow, oh = _side_differences(p)
    shape = (1 - torch.exp(-ow)).pow(theta) + (1 - torch.exp(-oh)).pow(theta)
    return 1 - s + (distance + shape) / 2


def mpdiou(p: Pair, s: Tensor, diagonal2: Tensor) -> Tensor:
    """``1 - S + (d1^2 + d2^2)/N``, d between corners of the same name (Ma and Xu 2023, 2307.07662).

    Args:
        p: The pair.
        s: Its overlap term.
        diagonal2: ``N = H^2 + W^2`` of the network's input in the unit of the boxes; (n,) or ().
    """
    (x1, y1, x2, y2), (a1, b1, a2, b2) = p.pred, p.target
    d1 = (x1 - a1).square() + (y1 - b1).square()
    d2 = (x2 - a2).square() + (y2 - b2).square()
    return 1 - s + (d1 + d2) / diagonal2


def shapeiou(p: Pair, s: Tensor, scale: float = 0.0) -> Tensor:
    """Distance and shape weighted by the target's own shape (Zhang and Zhang 2023, 2312.17663).

    ``ww = 2 wg^scale/(wg^scale + hg^scale)``, hh likewise (both 1 for scale 0); the cross-over, hh
    with x and ww with y, is the paper's.
    """
    largest = at_least_eps(torch.maximum(p.wg, p.hg))  # sides over it: powers cannot vanish both
    wide, high = ((side.clamp(min=0) / largest).pow(scale) for side in (p.wg, p.hg))
    total = at_least_eps(wide + high)
    ww, hh = 2 * wide / total, 2 * high / total
    distance = (hh * p.dx.square() + ww * p.dy.square()) / (p.d2 + EPS)
    ow, oh = _side_differences(p)
    shape = (1 - torch.exp(-hh * ow)).pow(4) + (1 - torch.exp(-ww * oh)).pow(4)
    return 1 - s + distance + shape / 2


def _edge_distance(p: Pair) -> Tensor:
    """``P``: mean distance of the four edges over the target's sides; the prediction sorted."""
    (x1, y1, x2, y2), (a1, b1, a2, b2) = p.pred, p.target
    left, right = torch.minimum(x1, x2), torch.maximum(x1, x2)
    top, bottom = torch.minimum(y1, y2), torch.maximum(y1, y2)
    across = ((left - a1).abs() + (right - a2).abs()) / at_least_eps(p.wg.abs())
    down = ((top - b1).abs() + (bottom - b2).abs()) / at_least_eps(p.hg.abs())
    return ((across + down) / 4).clamp(max=FAR)


def piou(p: Pair, s: Tensor) -> Tensor:
    """``2 - S - exp(-P^2)`` (Liu et al. 2024, Powerful-IoU, Neural Networks 170)."""
    return 1 - s + 1 - torch.exp(-_edge_distance(p).square())


def piou2(p: Pair, s: Tensor, lamda: float = 1.3) -> Tensor:
    """``3 x exp(-x^2) PIoU``, ``x = lambda exp(-P)``, not detached (Liu et al. 2024)."""
    x = lamda * torch.exp(-_edge_distance(p))
    return 3 * x * torch.exp(-x.square()) * piou(p, s)


def wiou(p: Pair, s: Tensor) -> Tensor:
    """``exp(rho^2/c^2) (1 - S)``, c without gradient (Tong et al. 2023, 2301.10051, eq. 4, v1)."""
    exponent = (p.rho2 / (p.d2 + EPS).detach()).clamp(max=LARGEST_EXPONENT)
    return torch.exp(exponent) * (1 - s)


def nwd(p: Pair, c: float = 12.8, to_pixels: Tensor | float = 1.0) -> Tensor:
    """``1 - exp(-W/C)``, W the Wasserstein distance of the boxes as Gaussians (2110.13389, eq. 7).

    Not free of scale: C is about the mean size of the objects, in pixels of the network's input.

    Args:
        p: The pair.
        c: The constant C.
        to_pixels: What the boxes are multiplied by before; (n,) or a number.
    """
    sides = (p.w - p.wg).square() + (p.h - p.hg).square()
    # eps is under the root after the multiplication: it is the one of pixels.
    squared = (p.rho2 + sides / 4) * to_pixels**2 + EPS
    return 1 - torch.exp(-squared.sqrt() / c)
