"""Locality-constrained attention of the Feature Pyramid Transformer, per channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.ops.local_attention import local_attention, local_rows


class LocalityConstrained(nn.Module):
    """``y[c, i] = sum_o P_o v_o[c, i + o]``, ``P = softmax_o(q[c, i] (k[c, i + o] + r[c, o]))``.

    q are of one map, k and v of another, whose windows of kernel_size^2 offsets o stand where the
    query is. Every channel has its own softmax. Outside of the map, k and v are those of a zero
    input. Without `value_mix`, r is ``rel_h`` (by row) in the first half of the channels and
    ``rel_w`` (by column) in the second. With it, r = 0 and ``v_o = sum_j s_j(o) W_j x``, where
    ``s(o) = softmax_j(m_j . (a[row of o] + b[column of o]))``.

    Keys have no bias: the softmax would cancel it.

    Args:
        query_channels: Channels of the map that asks.
        key_channels: Channels of the map that is asked.
        channels: Channels of the result.
        kernel_size: Side of the window; the query is at ``kernel_size // 2``.
        value_mix: Number of value maps that are mixed; 0 for one map and positions in the keys.
        embed_channels: Width of a, b and m; as `channels` by default.
        bias: Whether queries and values have a bias.
    """

    def __init__(
        self,
        query_channels: int,
        key_channels: int,
        channels: int,
        kernel_size: int,
        value_mix: int = 0,
        embed_channels: int | None = None,
        bias: bool = False,
    ):
        super().__init__()
        self.kernel_size, self.value_mix = kernel_size, value_mix
        self.query = nn.Conv2d(query_channels, channels, 1, bias=bias)
        self.key = nn.Conv2d(key_channels, channels, 1, bias=False)
        self.value = nn.Conv2d(key_channels, channels * max(value_mix, 1), 1, bias=bias)
        if value_mix:
            width = embed_channels or channels
            self.emb_a = nn.Parameter(torch.empty(width, kernel_size))
            self.emb_b = nn.Parameter(torch.empty(width, kernel_size))
            self.emb_mix = nn.Parameter(torch.empty(value_mix, width))
        else:
            self.rel_h = nn.Parameter(torch.empty(channels - channels // 2, kernel_size))
            self.rel_w = nn.Parameter(torch.empty(channels // 2, kernel_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming-normal convolutions, normal positions."""
        for name, parameter in self.named_parameters():
            if name.endswith(".weight"):
                # The maps of a mixture are convolutions of their own.
                for part in (
                    parameter.chunk(self.value_mix or 1) if "value" in name else [parameter]
                ):
                    nn.init.kaiming_normal_(part.data, mode="fan_out", nonlinearity="relu")
            elif not name.endswith(".bias"):
                nn.init.normal_(parameter)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """``(B, C_low, H, W), (B, C_high, h, w) -> (B, channels, H, W)``."""
        source = self._bordered(low, high)
        k, v = self.key(source), self.value(source)
        v = v.unflatten(1, (max(self.value_mix, 1), -1))
        return local_attention(self.query(low), k, v, self.kernel_size, self._rel(), self._mix())

    def rows(self, low: Tensor, high: Tensor, queries: Tensor) -> Tensor:
        """Weights of a few queries, averaged over the channels ``(B, Q, h', w')``.

        They sum to less than 1 where a part of the window is outside of the map.
        """
        source = self._bordered(low, high)
        border, side = self.kernel_size // 2, self.kernel_size - 1
        h, w = source.shape[2] - side, source.shape[3] - side
        row, column = queries.long().unbind(1)
        q = self.query(low)[:, :, row, column]
        start = row // -(-low.shape[2] // h), column // -(-low.shape[3] // w)
        rows = local_rows(q, self.key(source), self.kernel_size, start, self._rel())
        return rows[:, :, border : border + h, border : border + w]

    def _bordered(self, low: Tensor, high: Tensor) -> Tensor:
        """The asked map with a border of zeros, on the grid that is coarser by whole numbers."""
        grid = []
        for fine, coarse in zip(low.shape[2:], high.shape[2:]):
            ratio = max((2 * int(fine) + int(coarse)) // (2 * int(coarse)), 1)
            grid.append((fine + ratio - 1) // ratio)
        if tuple(high.shape[2:]) != tuple(grid):
            high = F.interpolate(high, size=grid, mode="nearest")
        before, after = self.kernel_size // 2, (self.kernel_size - 1) // 2
        return F.pad(high, (before, after, before, after))

    def _rel(self) -> Tensor | None:
        if self.value_mix:
            return None
        side = self.kernel_size
        rows = self.rel_h[:, :, None].expand(-1, -1, side)
        columns = self.rel_w[:, None].expand(-1, side, -1)
        return torch.cat([rows, columns]).flatten(1)

    def _mix(self) -> Tensor | None:
        if not self.value_mix:
            return None
        places = self.emb_a[:, :, None] + self.emb_b[:, None]
        return (self.emb_mix @ places.flatten(1)).softmax(0)
