"""Asymmetric non-local blocks: pyramid (APNB) and fusion (AFNB).

Zhen Zhu, Mengde Xu, Song Bai, Tengteng Huang, Xiang Bai. Asymmetric Non-local Neural Networks for
Semantic Segmentation. ICCV 2019. https://arxiv.org/abs/1908.07678
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    check_channel_list,
    check_channels,
    check_choice,
    check_hidden,
    check_int,
    check_number,
    check_width,
    module_list,
    query_index,
    reduced_channels,
)
from yolo_attn.blocks._conv_norm import ConvNorm
from yolo_attn.errors import YoloAttnError
from yolo_attn.ops.adaptive_max import pyramid_max
from yolo_attn.ops.adaptive_mean import pyramid_pool, pyramid_spread
from yolo_attn.registry import register

PAPER = (
    "Zhu, Xu, Bai, Huang, Bai: Asymmetric Non-local Neural Networks for Semantic Segmentation, "
    "ICCV 2019, arXiv 1908.07678"
)
PYRAMID = (1, 3, 6, 8)
# What stands for a bin: kinds of anchors, one behind the other.
SAMPLING = {"average": ("average",), "max": ("max",), "both": ("average", "max")}


class PyramidAttention(nn.Module):
    """Attention of N positions to S pyramid bins.

    Args:
        query_channels: Channels of the map that asks.
        key_channels: Channels of the map that is asked.
        channels: Channels of the context.
        d: K, width of queries and keys.
        value_channels: V, width of the values.
        shared: Whether queries are the keys before pooling.
        anchors: What stands for a bin, of ``average`` and ``max``.
    """

    anchors: tuple[str, ...] = SAMPLING["average"]  # of checkpoints from before there was a choice

    def __init__(
        self,
        query_channels: int,
        key_channels: int,
        channels: int,
        d: int,
        value_channels: int,
        shared: bool,
        anchors: tuple[str, ...],
    ):
        super().__init__()
        self.anchors = anchors
        self.key = ConvNorm(key_channels, d, 1)
        self.query = None if shared else ConvNorm(query_channels, d, 1)
        self.value = nn.Conv2d(key_channels, value_channels, 1, bias=False)
        self.out = nn.Conv2d(value_channels, channels, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def logits(self, high: Tensor, low: Tensor, pool: Sequence[int]) -> Tensor:
        """``(B, N, S)``."""
        key = self.key(low)
        query = key if self.query is None else self.query(high)
        sampled = [
            pyramid_pool(key, pool) if kind == "average" else pyramid_max(key, pool)
            for kind in self.anchors
        ]
        keys = torch.cat(sampled, dim=2)
        return query.flatten(2).transpose(1, 2) @ (keys * keys.shape[1] ** -0.5)

    def values(self, low: Tensor, pool: Sequence[int]) -> Tensor:
        """``(B, channels, S)``; a mean commutes with the values' linear map, a maximum does not."""
        sampled = [
            self.value(pyramid_pool(low, pool)[..., None])
            if kind == "average"
            else pyramid_max(self.value(low), pool)[..., None]
            for kind in self.anchors
        ]
        return self.out(torch.cat(sampled, dim=2))[..., 0]


class _Asymmetric(nn.Module):
    """What both blocks share: ``BN(W [context, high])``."""

    def __init__(
        self,
        block: str,
        high: int,
        low: int,
        out_channels: int,
        d: int,
        value_channels: Any,
        pool_sizes: Any,
        units: Any,
        dropout: Any,
        sampling: Any,
        shared: bool,
    ):
        super().__init__()
        if (
            not isinstance(pool_sizes, (list, tuple))
            or not pool_sizes
            or any(
                isinstance(s, bool) or not isinstance(s, int) or not 1 <= s <= 64
                for s in pool_sizes
            )
        ):
            raise YoloAttnError(
                f"{block}: pool_sizes={pool_sizes!r} is not accepted "
                "(accepted: a list of whole numbers from 1 to 64)"
            )
        check_int(block, "units", units, maximum=16)
        v = (
            d
            if value_channels is None
            else check_hidden(block, "value_channels", value_channels, high)
        )
        check_choice(block, "sampling", sampling, SAMPLING)
        self.pool_sizes = tuple(pool_sizes)
        self.dropout = check_number(block, "dropout", dropout, 0.0, 1.0)
        self.out_channels = out_channels
        self.units = module_list(
            PyramidAttention(high, low, out_channels, d, v, shared, SAMPLING[sampling])
            for _ in range(units)
        )
        self.fuse = ConvNorm(out_channels + high, out_channels, 1, slope=0.0 if shared else 1.0)

    def _forward(self, high: Tensor, low: Tensor) -> Tensor:
        # The softmax's weights (which sum to 1) commute with every linear map behind them, so the
        # way out of the values and the fusing convolution act on S bins instead of N positions.
        w_context, w_high = self.fuse.conv.weight.split([self.out_channels, high.shape[1]], dim=1)
        y = F.conv2d(high, w_high)
        for unit in self.units:
            weights = _softmax(unit.logits(high, low, self.pool_sizes), y.dtype)
            values = unit.values(low, self.pool_sizes).to(y.dtype)
            values = w_context.flatten(1).to(y.dtype) @ values
            y = y + (values @ weights.transpose(1, 2)).view(y.shape)
        y = self.fuse.activation(self.fuse.norm(y))
        return F.dropout2d(y, self.dropout, self.training) if self.dropout else y

    def _attention(self, high: Tensor, low: Tensor, queries: Tensor) -> Tensor:
        index = query_index(queries, high.shape[3])
        maps = (_softmax(u.logits(high, low, self.pool_sizes)[:, index]) for u in self.units)
        total = reduce(torch.add, maps) / len(self.units)
        kinds = total.chunk(len(self.units[0].anchors), dim=2)
        return pyramid_spread(reduce(torch.add, kinds), low, self.pool_sizes)


def _softmax(logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax over the bins in float32 (float64), returned as `dtype`."""
    weights = logits.softmax(2, dtype=torch.promote_types(logits.dtype, torch.float32))
    return weights if dtype is None else weights.to(dtype)


@register(
    paper=PAPER,
    cost="time O(N C (d + C + 2 S)), memory O(N (S + C)), S = 110 bins, d = C/2",
    placement="in front of the classifier, on stride 8 features; here after P4, P5 or a neck layer",
    width_options=("rd_channels", "value_channels"),
)
class APNB(_Asymmetric):
    """Every position reads a pyramid of means: ``y = relu(BN(W [c, x]))``.

    ``c_i = W_o sum_s a_is v_s``, ``a_is = softmax_s(q_i . k_s / sqrt(d))``. ``q = relu(BN(W_k x))``
    (d channels) are also the keys before pooling: ``k`` and ``v = W_v x`` are averaged into 1 x 1,
    3 x 3, 6 x 6 and 8 x 8 bins, S = 110 in all, so that the cost is linear in N. W_o starts at
    zero: no context at the start (not the identity).

    The pyramid stands for any sampling of anchors: ``sampling: max`` takes the maxima of the same
    bins, ``both`` appends them to the means. The authors' code has the means only.

    The biases of W_v, W_o and W are left out: BN holds them. The reference evaluates
    ``relu(BN(W_k x))`` twice, which moves the running statistics twice a step; here it is evaluated
    once.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: d as a share of C, at least 8.
        rd_channels: d itself; overrides `rd_ratio`.
        value_channels: Channels of v; d by default.
        pool_sizes: Sides of the pyramid's grids.
        units: Number of such contexts (each with its own weights) that are summed.
        dropout: Share of output channels to drop in training (the reference's head: 0.05).
        sampling: What stands for a bin: its ``average``, its ``max`` (a maximum a channel, of the
            keys and of the values), or ``both``, twice as many anchors, which one softmax weighs.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 2,
        rd_channels: int | None = None,
        value_channels: int | None = None,
        pool_sizes: Sequence[int] = PYRAMID,
        units: int = 1,
        dropout: float = 0.0,
        sampling: str = "average",
    ):
        c = check_channels("APNB", channels)
        d = reduced_channels("APNB", c, rd_ratio, rd_channels)
        given = (value_channels, pool_sizes, units, dropout, sampling)
        super().__init__("APNB", c, c, c, d, *given, shared=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return self._forward(x, x)

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """Where given positions look: the weights of the bins, spread evenly over their positions.

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column).

        Returns:
            ``(B, Q, H, W)``; each map sums to 1.
        """
        return self._attention(x, x, queries)


@register(
    paper=PAPER,
    inputs=2,
    levels=(1.0, 2.0),
    cost="time O(N C (d + C + 2 S) + N_low C_low d), memory O(N (S + C)), S = 110 bins, d = C/8",
    placement="fuses stage 4 (asked) into stage 5 (asking) of the backbone; here [P5, P4]",
    width_options=("rd_channels", "value_channels", "out_channels"),
)
class AFNB(_Asymmetric):
    """A deep map reads a pyramid of means of a shallow one: ``y = BN(W [c, high])``.

    ``c_i = W_o sum_s a_is v_s``, ``a_is = softmax_s(q_i . k_s / sqrt(d))`` with
    ``q = relu(BN(W_q high))``, ``k = pool(relu(BN(W_k low)))`` and ``v = pool(W_v low)``; the
    pyramid is APNB's. Inputs: ``[high, low]``; the first is refined and gives the output its size,
    the second may have any size. W_o starts at zero: no context at the start (not the identity).

    Unlike APNB there is no ReLU at the end. The biases of W_v, W_o and W are left out: BN holds
    them.

    Args:
        channels: ``[C of high, C of low]``.
        rd_ratio: d as a share of the C of high, at least 8.
        rd_channels: d itself; overrides `rd_ratio`.
        value_channels: Channels of v; d by default.
        out_channels: Channels of the output; those of high by default.
        pool_sizes: Sides of the pyramid's grids.
        units: Number of such contexts (each with its own weights) that are summed.
        dropout: Share of output channels to drop in training (the reference's head: 0.05).
        sampling: What stands for a bin: its ``average``, its ``max`` (a maximum a channel, of the
            keys and of the values), or ``both``, twice as many anchors, which one softmax weighs.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: list[int],
        rd_ratio: float = 1 / 8,
        rd_channels: int | None = None,
        value_channels: int | None = None,
        out_channels: int | None = None,
        pool_sizes: Sequence[int] = PYRAMID,
        units: int = 1,
        dropout: float = 0.0,
        sampling: str = "average",
    ):
        high, low = check_channel_list("AFNB", channels, 2)
        out = high if out_channels is None else check_width("AFNB", "out_channels", out_channels)
        d = reduced_channels("AFNB", high, rd_ratio, rd_channels)
        given = (value_channels, pool_sizes, units, dropout, sampling)
        super().__init__("AFNB", high, low, out, d, *given, shared=False)

    def forward(self, xs: list[Tensor]) -> Tensor:
        """``[(B, C, H, W), (B, C_low, H', W')] -> (B, out_channels, H, W)``."""
        return self._forward(*xs)

    def attention(self, xs: list[Tensor], queries: Tensor) -> Tensor:
        """Where given positions of the first map look in the second; see :meth:`APNB.attention`.

        Returns:
            ``(B, Q, H', W')``; each map sums to 1.
        """
        high, low = xs
        return self._attention(high, low, queries)
