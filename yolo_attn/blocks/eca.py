"""Efficient channel attention.

Qilong Wang, Banggu Wu, Pengfei Zhu, Peihua Li, Wangmeng Zuo, Qinghua Hu.
ECA-Net: Efficient Channel Attention for Deep CNNs. CVPR 2020. https://arxiv.org/abs/1910.03151
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    check_channels,
    check_kernel,
    check_number,
)
from yolo_attn.registry import register


@register(
    paper="Wang, Wu, Zhu, Li, Zuo, Hu: ECA-Net: Efficient Channel Attention for Deep CNNs, "
    "CVPR 2020, arXiv 1910.03151",
    cost="time O(N C + k C), memory O(C); k parameters",
    placement="at the end of every residual branch; here after a stage",
)
class ECA(nn.Module):
    """Gate each channel by its neighbours' means: ``z = x * sigma(w (*) mean_n x)``.

    ``(*)`` is a 1-D cross-correlation along the channel axis with one kernel of k taps for all
    channels, zero-padded, no bias. ``k = |log2(C) + beta| / gamma``, cut to a whole number and
    raised to the next odd one, at least 3. Not the identity at the start (about x/2).

    Args:
        channels: C of the input ``(B, C, H, W)``.
        kernel_size: k itself, odd; overrides `gamma` and `beta` (the authors' code: 3).
        gamma: Divisor in the rule for k, above 0.
        beta: Offset in the rule for k.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        gamma: float = 2,
        beta: float = 1,
    ):
        super().__init__()
        check_channels("ECA", channels)
        adaptive = adaptive_kernel("ECA", channels, gamma, "beta", beta)
        if kernel_size is None:
            kernel_size = max(adaptive, 3)
        k = check_kernel("ECA", "kernel_size", kernel_size)
        self.out_channels = channels
        self.weight = channel_kernel(k)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's default for a convolution."""
        reset_channel_kernel(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return x * self.channel_weights(x)[:, :, None, None]

    def channel_weights(self, x: Tensor) -> Tensor:
        """Gates ``(B, C)`` for the input `x`."""
        return correlate(x.mean((2, 3)), self.weight).sigmoid()


def adaptive_kernel(block: str, channels: int, gamma: float, beta_name: str, beta: float) -> int:
    """Odd kernel size for `channels`: ``t = int(|log2(C) + beta| / gamma)``, t or t + 1.

    Raises:
        YoloAttnError: `gamma` is not from 0.1 to 16, or `beta` (`beta_name` there) not from -16 to
            16.
    """
    gamma = check_number(block, "gamma", gamma, low=0.1, high=16)
    beta = check_number(block, beta_name, beta, low=-16, high=16)
    t = int(abs(math.log2(channels) + beta) / gamma)
    return t if t % 2 else t + 1


def channel_kernel(k: int) -> nn.Parameter:
    """Uninitialised kernel ``(k,)``: MuSGD of Ultralytics 8.4.0 refuses Conv1d's 3-D weight."""
    return nn.Parameter(torch.empty(k))


def reset_channel_kernel(weight: nn.Parameter) -> None:
    """PyTorch's default for a convolution with this many inputs."""
    bound = 1 / math.sqrt(len(weight))
    nn.init.uniform_(weight, -bound, bound)


def correlate(z: Tensor, weight: Tensor) -> Tensor:
    """Zero-padded cross-correlation of ``(B, L)`` with an odd kernel ``(k,)`` along L."""
    return F.conv1d(z[:, None], weight[None, None], padding=weight.shape[0] // 2)[:, 0]
