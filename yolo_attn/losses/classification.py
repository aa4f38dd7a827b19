"""Class losses, element by element, on logits z and soft targets t in [0, 1]; p = sigmoid(z).

All are binary cross-entropy times a weight. Where a published weight has an infinite slope at its
zero (a power below 1), it is held at 1e-12, where the cross-entropy vanishes as well.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from yolo_attn.losses.class_options import MIDDLE

TINY = 1e-12
LOWEST_MU = 0.2


def bce(z: Tensor, t: Tensor) -> Tensor:
    """``max(z,0) - z t + log(1 + e^-|z|)``."""
    return binary_cross_entropy_with_logits(z, t, reduction="none")


def focal(z: Tensor, t: Tensor, gamma: float = 1.5, alpha: float = 0.25) -> Tensor:
    """``BCE (1-p_t)^gamma (t alpha + (1-t)(1-alpha))`` (Lin et al. 2017, 1708.02002, eq. 5).

    ``p_t = t p + (1-t)(1-p)``; alpha of 0 or less drops the last factor, as in the stock FocalLoss.
    """
    p = torch.sigmoid(z)
    p_t = t * p + (1 - t) * (1 - p)
    loss = bce(z, t) * (1 - p_t).clamp(min=TINY).pow(gamma)
    return loss * (t * alpha + (1 - t) * (1 - alpha)) if alpha > 0 else loss


def varifocal(z: Tensor, t: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """BCE times t where t > 0, else ``alpha p^gamma`` (Zhang et al. 2020, 2008.13367, eq. 2)."""
    negative = alpha * torch.sigmoid(z).clamp(min=TINY).pow(gamma)
    return bce(z, t) * torch.where(t > 0, t, negative)


def quality_focal(z: Tensor, t: Tensor, beta: float = 2.0) -> Tensor:
    """``BCE |t-p|^beta`` (Li et al. 2020, 2006.04388, eq. 4)."""
    return bce(z, t) * (t - torch.sigmoid(z)).abs().clamp(min=TINY).pow(beta)


def slide(z: Tensor, t: Tensor, mu: float | Tensor, middle: str = MIDDLE[0]) -> Tensor:
    """BCE weighted by where t lies against the mean IoU mu (Yu et al. 2022, 2208.02019, eq. 8).

    With mu at least 0.2: 1 for ``t <= mu-0.1``, ``e^(1-mu)`` for ``mu-0.1 < t < mu``, ``e^(1-t)``
    from mu on. The authors' repository has ``e^mu`` in the middle (`middle`).
    """
    # A number is a float64 scalar: mu - 0.1 in float32 can miss the float32 that is nearest to it.
    mean = mu if isinstance(mu, Tensor) else torch.tensor(mu, dtype=torch.float64)
    mean = mean.clamp(min=LOWEST_MU)
    between = torch.exp(1 - mean) if middle == MIDDLE[0] else torch.exp(mean)
    weight = torch.where(t < mean, between.to(t.dtype), torch.exp(1 - t))
    return bce(z, t) * torch.where(t <= mean - 0.1, torch.ones_like(weight), weight)


def advanced(mu: Any, count: int, batch_mean: Any, decay: float, tau: float) -> Any:
    """EMA-Slide's mean after call number `count` (from 1): the first nearly replaces the start."""
    d = decay * (1 - math.exp(-count / tau))
    return d * mu + (1 - d) * batch_mean


def class_losses(
    spec: dict[str, Any], logits: Tensor, target: Tensor, mu: float | Tensor = 1.0
) -> Tensor:
    """The class loss of an expanded `spec`, unreduced, in float32 or float64.

    Args:
        spec: What class_options.expand_class returns.
        logits: Any shape.
        target: The same shape, in [0, 1].
        mu: The mean IoU of slide and ema_slide.
    """
    z = logits if logits.dtype == torch.float64 else logits.float()
    t = target.to(z.dtype)
    name = spec["cls"]
    with torch.autocast(z.device.type, enabled=False):
        if name == "focal":
            return focal(z, t, spec["gamma"], spec["alpha"])
        if name == "varifocal":
            return varifocal(z, t, spec["alpha"], spec["gamma"])
        if name == "quality_focal":
            return quality_focal(z, t, spec["beta"])
        if name in ("slide", "ema_slide"):
            return slide(z, t, mu, spec.get("middle", MIDDLE[0]))
        return bce(z, t)
