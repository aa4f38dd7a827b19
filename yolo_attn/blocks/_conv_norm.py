"""Convolution, batch norm and activation, as the heads of several papers use it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._norm import batch_norm


class ConvNorm(nn.Module):
    """``act(BN(conv(x)))``, "same" padding, no bias in front of the BN.

    Args:
        channels: Input channels.
        out_channels: Output channels.
        kernel: Odd kernel side.
        slope: Slope of the activation below zero: 0 is ReLU, 1 none, between them LeakyReLU.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int, slope: float = 0.0):
        super().__init__()
        self.slope = slope
        self.conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H, W)``."""
        return self.activation(self.norm(self.conv(x)))

    def activation(self, x: Tensor) -> Tensor:
        """The activation alone."""
        if self.slope == 1.0:
            return x
        # Functional: a module's `inplace` flag is switched on by Ultralytics when a checkpoint is
        # read.
        return F.leaky_relu(x, self.slope) if self.slope else F.relu(x)
