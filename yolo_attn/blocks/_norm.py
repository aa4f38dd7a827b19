"""Batch norms that stay as their paper has them, whatever the host does to batch norms."""

from __future__ import annotations

from torch import nn

from yolo_attn.versions import made_before


class BlockNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that keeps its eps and momentum.

    Ultralytics sets eps 1e-3 and momentum 0.03 on every module whose type is exactly
    ``nn.BatchNorm2d``. That eps is more than the variance that enters many a norm of an attention
    branch: such a norm only scales, and the branch never grows. A subclass is left alone.
    """


def batch_norm(channels: int, momentum: float = 0.1) -> nn.BatchNorm2d:
    """The batch norm of a block: eps 1e-5, and plain in models that were made before 0.2.0.

    Those were trained with what Ultralytics sets (or, classifying, does not).
    """
    kind = nn.BatchNorm2d if made_before("0.2.0") else BlockNorm
    return kind(channels, momentum=momentum)
