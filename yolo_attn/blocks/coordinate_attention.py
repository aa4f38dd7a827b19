"""Coordinate attention.

Qibin Hou, Daquan Zhou, Jiashi Feng.
Coordinate Attention for Efficient Mobile Network Design. CVPR 2021.
https://arxiv.org/abs/2103.02907
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import check_channels, check_choice, check_flag, reduced_channels
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.registry import register

ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "hardswish": F.hardswish,
    "silu": F.silu,
    "relu": F.relu,
}


@register(
    paper="Hou, Zhou, Feng: Coordinate Attention for Efficient Mobile Network Design, CVPR 2021, "
    "arXiv 2103.02907",
    aliases=("CoordinateAttention",),
    cost="time O(N C + 2 (H + W) C m), memory O((H + W) C)",
    placement="inside inverted residuals and at the end of stages; here after P3, P4 or P5",
    width_options=("rd_channels",),
)
class CoordAtt(nn.Module):
    """Gate rows and columns: ``z[c,h,w] = x[c,h,w] * g_h[c,h] * g_w[c,w]``.

    Row means and column means go together through ``f = h_swish(BN(W1 .))`` (C -> m), are split
    again, and give ``g_h = sigma(W_h f_h)`` and ``g_w = sigma(W_w f_w)`` (m -> C). Not the identity
    at the start (about x/4).

    The paper's ``m = max(8, C/32)``; the bias of W1 is left out, BN holds it.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: m as a share of C, at least 8.
        rd_channels: m itself; overrides `rd_ratio`.
        act: ``hardswish``, ``silu`` or ``relu`` behind the norm; forks have all three.
        bias: Whether W_h and W_w have biases.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    act = "hardswish"  # of modules that were saved before there was a choice

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 32,
        rd_channels: int | None = None,
        act: str = "hardswish",
        bias: bool = True,
    ):
        super().__init__()
        check_channels("CoordAtt", channels)
        self.act = check_choice("CoordAtt", "act", act, ACTS)
        check_flag("CoordAtt", "bias", bias)
        m = reduced_channels("CoordAtt", channels, rd_ratio, rd_channels)
        self.out_channels = channels
        self.conv1 = nn.Conv2d(channels, m, 1, bias=False)
        self.norm = batch_norm(m)
        self.conv_h = nn.Conv2d(m, channels, 1, bias=bias)
        self.conv_w = nn.Conv2d(m, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        g_h, g_w = self._gates(x)
        return x * g_h * g_w

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``g_h (B, C, H, 1)`` and ``g_w (B, C, 1, W)``."""
        rows = x.mean(3, keepdim=True)
        columns = x.mean(2, keepdim=True).transpose(2, 3)
        # One pass over all H + W positions: they share the statistics of the norm.
        f = ACTS[self.act](self.norm(self.conv1(torch.cat([rows, columns], dim=2))))
        f_h, f_w = f.split([x.shape[2], x.shape[3]], dim=2)
        return self.conv_h(f_h).sigmoid(), self.conv_w(f_w).sigmoid().transpose(2, 3)

    def gate_map(self, x: Tensor) -> Tensor:
        """``g_h * g_w`` ``(B, C, H, W)`` for the input `x`."""
        g_h, g_w = self._gates(x)
        return g_h * g_w
