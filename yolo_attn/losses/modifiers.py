"""What papers do to any box loss: another overlap term, a power, a focusing factor."""

from __future__ import annotations

import torch
from torch import Tensor

from yolo_attn.losses.box import aspect, trade_off
from yolo_attn.losses.geometry import EPS, Pair

# Terms that are at most 1 for proper boxes, before a power is taken: an inverted prediction may
# have any, and its power must not overflow.
MOST = 10.0


def inner(p: Pair, ratio: float) -> Tensor:
    """IoU of both boxes scaled by `ratio` about their centres (Zhang et al. 2023, 2311.02877).

    Formed an axis at a time from sides and centres: scaled corners cancel in float32.
    """

    def overlap(side: Tensor, side_g: Tensor, offset: Tensor) -> Tensor:
        least = torch.minimum(ratio * side, ratio * side_g)
        return torch.minimum(least, ratio * (side + side_g) / 2 - offset.abs()).clamp(min=0)

    # The sides without eps here, as in the paper's code.
    inter = overlap(p.w, p.wg, p.dx) * overlap(p.raw_h, p.raw_hg, p.dy)
    areas = ratio**2 * (p.w * p.raw_h + p.wg * p.raw_hg)
    return inter / (areas - inter + EPS).clamp(min=EPS)


def focaler(p: Pair, low: float, high: float) -> Tensor:
    """``clamp((IoU - d)/(u - d), 0, 1)`` (Zhang and Zhang 2024, 2401.10525, eq. 3)."""
    return ((p.iou - low) / (high - low)).clamp(0, 1)


def alpha(p: Pair, box: str, power: float) -> Tensor:
    """Every term of IoU, GIoU, DIoU or CIoU to a power (He et al. 2021, 2110.13675, eq. 4).

    Args:
        p: The pair.
        box: iou, giou, diou or ciou.
        power: The paper's alpha.
    """
    loss = 1 - (p.iou + EPS).pow(power)
    if box == "giou":
        area = torch.maximum(p.cw * p.ch + EPS, p.union).clamp(min=EPS)
        return loss + ((area - p.union) / area + EPS).clamp(max=MOST).pow(power)
    if box in ("diou", "ciou"):
        loss = loss + _distance(p, power)
    if box == "ciou":
        v = aspect(p)
        loss = loss + (trade_off(p, v) * v + EPS).pow(power)
    return loss


def _distance(p: Pair, power: float) -> Tensor:
    """``rho2^p/(d2^p + eps)``; of large boxes as ``(rho2/d2)^p``, whose powers cannot overflow."""
    # Below power 1 the slope is infinite at 0, where centres or both boxes are one point.
    least = EPS**2 if power < 1 else 0.0
    rho2, d2 = p.rho2.clamp(min=least), p.d2.clamp(min=least)
    large, one = d2 > 1, torch.ones_like(d2)
    safe = torch.where(large, d2, one)
    quotient = (torch.where(large, rho2, one) / safe).clamp(max=MOST).pow(power)
    rest = torch.where(large, one, rho2.clamp(max=MOST)).pow(power)
    return torch.where(
        large,
        quotient / (1 + EPS * safe.pow(-power)),
        rest / (torch.where(large, one, d2).pow(power) + EPS),
    )


def focal_factor(p: Pair, gamma: float) -> Tensor:
    """``IoU^gamma`` without gradient (Focal-EIoU, Zhang et al. 2021, 2101.08158, eq. 10)."""
    return p.iou.detach().clamp(min=0).pow(gamma)


def running_mean(before: Tensor, quality: Tensor, momentum: float) -> Tensor:
    """The mean of ``1 - S`` after one more batch; a batch without a finite mean changes nothing."""
    if quality.numel() == 0:
        return before
    after = (1 - momentum) * before + momentum * quality.mean()
    return torch.where(after.isfinite(), after, before)


def wise_factor(quality: Tensor, mean: Tensor, options: dict[str, float]) -> Tensor:
    """Focusing of WIoU (Tong et al. 2023, 2301.10051): by ``beta = (1-S)/mean``, no gradient.

    Version 2 is ``beta^gamma`` (eq. 8), version 3 ``beta/(delta alpha^(beta-delta))`` (eq. 10),
    which gives the most to boxes of middling quality, ``beta = 1/ln alpha``.
    """
    beta = quality.clamp(min=0) / mean.clamp(min=EPS)
    if options["version"] == 2:
        return beta.pow(options["gamma"])
    delta = options["delta"]
    # alpha^(beta-delta) as a negative power: it vanishes where the other would overflow.
    return beta / delta * torch.pow(options["alpha"], delta - beta)
