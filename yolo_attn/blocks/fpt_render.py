"""Rendering transformer of the Feature Pyramid Transformer.

Dong Zhang, Hanwang Zhang, Jinhui Tang, Meng Wang, Xiansheng Hua, Qianru Sun.
Feature Pyramid Transformer. ECCV 2020. https://arxiv.org/abs/2007.09451
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import PooledNorm, check_channel_list, check_choice
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.blocks.fpt_self import PAPER
from yolo_attn.registry import register


@register(
    paper=PAPER,
    aliases=("FPTRT",),
    inputs=2,
    levels=(1.0, 2.0),
    cost="time O(9 N C (C + C_low)), memory O(N C); N positions and C channels of high",
    placement="from each finer level of the pyramid to each coarser one; here [P5, P4], [P4, P3]",
)
class FPTRender(nn.Module):
    """A deep map is rendered with the details of a shallow one: ``y = relu(BN(S low) + a)``.

    ``a = BN(K (g . high))`` with the gate ``g = relu(BN(W mean(low)))``, one factor a channel, W
    1 x 1, and 3 x 3 convolutions K and S. S strides by the ratio of the sizes. Inputs:
    ``[high, low]``; the first is refined and gives the output its size and channels, the second may
    have any size: where no whole stride leads to the first one's, low is resized to the nearest
    that does (nearest neighbour). Not the identity at the start: there is no residual.

    The released code gates behind the convolution (``order: conv_first``) and strides by 2 only. In
    training on one image the gate's BN uses its running statistics.

    Args:
        channels: ``[C of high, C of low]``.
        order: ``gate_first`` (the paper) or ``conv_first``, ``a = g . BN(K high)``.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(self, channels: list[int], order: str = "gate_first"):
        super().__init__()
        high, low = check_channel_list("FPTRender", channels, 2)
        self.order = check_choice("FPTRender", "order", order, ("gate_first", "conv_first"))
        self.out_channels = high
        self.gate = nn.Conv2d(low, high, 1, bias=False)
        self.gate_norm = PooledNorm(high)
        self.refine = nn.Conv2d(high, high, 3, padding=1, bias=False)
        self.refine_norm = batch_norm(high)
        self.render = nn.Conv2d(low, high, 3, padding=1, bias=False)
        self.render_norm = batch_norm(high)

    def forward(self, xs: list[Tensor]) -> Tensor:
        """``[(B, C, H, W), (B, C_low, H', W')] -> (B, C, H, W)``."""
        high, low = xs
        g = self._gate(low)
        if self.order == "gate_first":
            a = self.refine_norm(self.refine(g * high))
        else:
            a = g * self.refine_norm(self.refine(high))
        return F.relu(self.render_norm(self._strided(low, like=high)) + a)

    def _gate(self, low: Tensor) -> Tensor:
        return F.relu(self.gate_norm(self.gate(low.mean((2, 3), keepdim=True))))

    def _strided(self, low: Tensor, like: Tensor) -> Tensor:
        """``S low`` on the grid of `like`."""
        stride, size = [], []
        for fine, coarse in zip(low.shape[2:], like.shape[2:]):
            fine, coarse = int(fine), int(coarse)
            step = max((2 * fine + coarse) // (2 * coarse), 1)
            stride.append(step)
            size.append(fine if -(-fine // step) == coarse else coarse * step)
        if tuple(low.shape[2:]) != tuple(size):
            low = F.interpolate(low, size=size, mode="nearest")
        return F.conv2d(low, self.render.weight, stride=stride, padding=1)

    def channel_weights(self, xs: list[Tensor]) -> Tensor:
        """The gate of each channel ``(B, C)``; 0 or more, without an upper limit."""
        return self._gate(xs[1]).flatten(1)
