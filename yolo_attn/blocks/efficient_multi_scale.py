"""EMA, efficient multi-scale attention.

Daliang Ouyang, Su He, Guozhong Zhang, Mingzhu Luo, Huaiyong Guo, Jian Zhan, Zhijie Huang.
Efficient Multi-Scale Attention Module with Cross-Spatial Learning. ICASSP 2023.
https://arxiv.org/abs/2305.13563
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import at_least_float32, bias_of, check_channels, check_int
from yolo_attn.ops.precision import without_autocast
from yolo_attn.registry import register


@register(
    paper="Ouyang, He, Zhang, Luo, Guo, Zhan, Huang: Efficient Multi-Scale Attention Module with "
    "Cross-Spatial Learning, ICASSP 2023, arXiv 2305.13563",
    cost="time O(15 N C + (H + W) C c), memory O(N C); c = C/G",
    placement="behind a C3/C2f stage of the neck or a bottleneck; here after P3, P4 or P5",
)
class EMA(nn.Module):
    """One spatial gate for each of G channel groups: ``z = u * sigma(M)``.

    The groups, u ``(c, H, W)`` with ``c = C/G``, share all weights:

    - ``x1 = GN(u * sigma(r) * sigma(q))``, where the row means and the column means of u go
      together through a 1x1 convolution and give r (a factor for each row) and q (each column); GN
      normalises each channel over the positions
    - ``x2 = conv_3x3(u)``
    - ``M_n = sum_c w1_c x2_cn + sum_c w2_c x1_cn`` with ``w1 = softmax_c(mean_n x1)``,
      ``w2 = softmax_c(mean_n x2)``: each branch is weighed by the pooled other one

    Not the identity at the start.

    GN's output has the mean ``GN.bias`` whatever the input, so w1 is ``softmax(GN.bias)`` exactly.
    Hence ``sum_c w1_c x2_c`` is one convolution with a single output channel, and only the mean of
    x2, which follows from the sums of u over 9 windows, is needed besides: x2 is never formed.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        factor: G (the authors: 32; common in YOLO: 8); where it does not divide C, the largest
            smaller number that does. By default the authors' 32, but never under 8 channels a
            group: ``min(32, C // 8)``. At C = 64 their 32 would leave two channels a group.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(self, channels: int, factor: int | None = None):
        super().__init__()
        check_channels("EMA", channels)
        if factor is None:
            factor = max(min(32, channels // 8), 1)
        check_int("EMA", "factor", factor, maximum=max(32, channels // 2))
        self.groups = next(g for g in range(min(factor, channels), 0, -1) if channels % g == 0)
        self.out_channels = channels
        c = channels // self.groups
        self.conv1x1 = nn.Conv2d(c, c, 1)
        self.conv3x3 = nn.Conv2d(c, c, 3, padding=1)
        self.norm = nn.GroupNorm(c, c)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        u = self._fold(x)
        return (u * self._gate(u)).reshape(x.shape)

    def gate_map(self, x: Tensor) -> Tensor:
        """Gates ``(B, C, H, W)`` for the input `x`; all channels of a group have the same."""
        u = self._fold(x)
        return self._gate(u).expand_as(u).reshape(x.shape)

    def _fold(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B G, c, H, W)``."""
        return x.reshape(-1, x.shape[1] // self.groups, *x.shape[2:])

    def _gate(self, u: Tensor) -> Tensor:
        """``sigma(M)`` ``(B G, 1, H, W)`` in the dtype of `u`."""
        height, width = u.shape[2:]
        rows = u.mean(3, keepdim=True)
        columns = u.mean(2, keepdim=True)
        factors = self.conv1x1(torch.cat([rows, columns.transpose(2, 3)], dim=2)).sigmoid()
        r, q = factors.split([height, width], dim=2)
        t = u * r.to(u.dtype) * q.transpose(2, 3).to(u.dtype)

        w1 = at_least_float32(self.norm.bias).softmax(0)
        kernel = at_least_float32(self.conv3x3.weight).flatten(1)
        bias = at_least_float32(bias_of(self.conv3x3))
        with without_autocast(u):
            mean_x2 = F.linear(_window_means(u, columns), kernel, bias)
            w2 = mean_x2.softmax(1)
            first = (w1 @ kernel).view(1, -1, 3, 3), (w1 @ bias)[None]
            second = self._weighed_norm(at_least_float32(t), w2)
        m = F.conv2d(u, first[0].to(u.dtype), first[1].to(u.dtype), padding=1) + second
        return m.sigmoid().to(u.dtype)

    def _weighed_norm(self, t: Tensor, w2: Tensor) -> Tensor:
        """``sum_c w2_c GN(t)_c`` ``(B G, 1, H, W)``."""
        weight, bias = at_least_float32(self.norm.weight), at_least_float32(self.norm.bias)
        x1 = F.group_norm(t, self.norm.num_groups, weight, bias, self.norm.eps)
        return (w2[:, None] @ x1.flatten(2)).unflatten(2, t.shape[2:])


def _window_means(u: Tensor, columns: Tensor) -> Tensor:
    """What each tap of a padded 3x3 kernel sees on average ``(B, c * 9)``, row by row.

    Args:
        u: ``(B, c, H, W)``.
        columns: Means of its columns ``(B, c, 1, W)``.
    """
    height, width = u.shape[2:]
    u, columns = at_least_float32(u), at_least_float32(columns)
    # The upper taps never meet the last row, the lower ones never the first; so in the columns.
    first, last = u[:, :, :1] / height, u[:, :, -1:] / height
    bands = torch.cat([columns - last, columns, columns - first], dim=2)
    total, left, right = bands.mean(3), bands[..., 0] / width, bands[..., -1] / width
    return torch.stack([total - right, total, total - left], dim=3).flatten(1)
