"""Batch norms that stay as their paper has them, whatever the host does to batch norms."""

from __future__ import annotations

from torch import nn

from yolo_attn.versions import made_before

# What Ultralytics sets on every module whose type is exactly ``nn.BatchNorm2d``.
HOST_EPS, HOST_MOMENTUM = 1e-3, 0.03


class BlockNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that keeps its eps and momentum (defaults: torch's 1e-5 and 0.1).

    Ultralytics sets eps 1e-3 on plain ones, more than the variance that enters many a norm of an
    attention branch: such a norm only scales, and the branch never grows. A subclass is left alone.
    Models made before 0.2.0 were trained with the host's values, and are rebuilt with them.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        if made_before("0.2.0"):
            eps, momentum = HOST_EPS, HOST_MOMENTUM
        super().__init__(num_features, eps=eps, momentum=momentum)
