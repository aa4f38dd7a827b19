"""Criss-cross attention.

Zilong Huang, Xinggang Wang, Yunchao Wei, Lichao Huang, Humphrey Shi, Wenyu Liu, Thomas S. Huang.
CCNet: Criss-Cross Attention for Semantic Segmentation. ICCV 2019, TPAMI 2020.
    https://arxiv.org/abs/1811.11721
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    NARROWEST,
    check_channels,
    check_int,
    query_index,
    reduced_channels,
)
from yolo_attn.blocks._conv_norm import ConvNorm
from yolo_attn.blocks._zero_gamma import GAMMA_STEP, ZeroGamma
from yolo_attn.ops.criss_cross import criss_cross, criss_cross_weights
from yolo_attn.ops.elementwise import add_product
from yolo_attn.registry import register


@register(
    paper="Huang, Wang, Wei, Huang, Shi, Liu, Huang: CCNet: Criss-Cross Attention for Semantic "
    "Segmentation, ICCV 2019, arXiv 1811.11721",
    aliases=("CCNet",),
    cost="time O(R (N (H+W) C + N C^2)), memory O(N (H+W) + R N C)",
    identity_at_start=True,
    placement="in the head on stride 8 features, between two convolutions; here after P4 or P5",
    width_options=("rd_channels",),
)
class CrissCross(ZeroGamma):
    """Each position reads its row and column, R times over: ``z_i = x_i + gamma sum_j a_ij v_j``.

    ``a_ij = softmax_j(q_i . k_j)`` over the H + W - 1 positions of the cross, ``q = W_q x`` and
    ``k = W_k x`` with ``d`` channels (C/8), ``v = W_v x`` with C; no scale factor. The same weights
    serve every pass ``x <- z``; with R = 2 every position has heard of every other. gamma starts at
    0: the identity at the start.

    Rows and columns are two batched products that share one normaliser
    (:mod:`yolo_attn.ops.criss_cross`). The bias of ``W_k`` is left out, the softmax cancels it.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        recurrence: R, the number of passes.
        rd_ratio: d as a share of C, at least 8.
        rd_channels: d itself; overrides `rd_ratio`.
        gamma_step: Step size of gamma, which is this number times a learned one (the paper: 1).
        rd_min: Smallest d that `rd_ratio` gives, 1 to 8 (1: what forks have).

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        recurrence: int = 2,
        rd_ratio: float = 1 / 8,
        rd_channels: int | None = None,
        gamma_step: float = GAMMA_STEP,
        rd_min: int = NARROWEST,
    ):
        super().__init__()
        check_channels("CrissCross", channels)
        self.recurrence = check_int("CrissCross", "recurrence", recurrence, maximum=8)
        check_int("CrissCross", "rd_min", rd_min, maximum=NARROWEST)
        d = reduced_channels("CrissCross", channels, rd_ratio, rd_channels, rd_min)
        self.out_channels = channels
        self.query = nn.Conv2d(channels, d, 1)
        self.key = nn.Conv2d(channels, d, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1)
        self._add_gamma("CrissCross", gamma_step)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        for _ in range(self.recurrence):
            x = self._cross(x)
        return x

    def _cross(self, x: Tensor) -> Tensor:
        o = criss_cross(self.query(x), self.key(x), self.value(x))
        return add_product(x, self.scale_of_branch().to(o.dtype), o)

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """Where given positions look, through all passes: the rows of ``A_R ... A_1``.

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column).

        Returns:
            ``(B, Q, H, W)``; each map sums to 1.
        """
        passes = []
        for _ in range(self.recurrence):
            passes.append(criss_cross_weights(self.query(x), self.key(x)))
            x = self._cross(x)
        b, _, h, w = x.shape
        index = query_index(queries, w)
        weights = passes[0][0].new_zeros(b, len(queries), h * w)
        weights[:, torch.arange(len(queries), device=x.device), index] = 1
        weights = weights.view(b, len(queries), h, w)
        for columns, rows in reversed(passes):
            to_columns = torch.einsum("bqhw,bwhj->bqjw", weights, columns)
            weights = to_columns + torch.einsum("bqhw,bhwj->bqhj", weights, rows)
        return weights


class CrissCrossHead(nn.Module):
    """The paper's head: ``y = W cbl([x, cbl(CrissCross(cbl(x)))])``.

    ``cbl`` is a 3 x 3 convolution with batch norm and LeakyReLU (slope 0.01); the inner width is
    C/4 (at least 8).

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Channels behind the last 3 x 3 convolution.
        classes: Channels of the output.
        recurrence: Passes of the attention.
    """

    SLOPE = 0.01

    def __init__(self, channels: int, out_channels: int, classes: int, recurrence: int = 2):
        super().__init__()
        m = reduced_channels("CrissCrossHead", channels, 1 / 4)
        self.out_channels = classes
        self.before = ConvNorm(channels, m, 3, self.SLOPE)
        self.cross = CrissCross(m, recurrence, rd_channels=max(m // 8, 1), gamma_step=1.0)
        self.after = ConvNorm(m, m, 3, self.SLOPE)
        self.bottleneck = ConvNorm(channels + m, out_channels, 3, self.SLOPE)
        self.classify = nn.Conv2d(out_channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, classes, H, W)``."""
        y = self.after(self.cross(self.before(x)))
        return self.classify(self.bottleneck(torch.cat([x, y], dim=1)))
