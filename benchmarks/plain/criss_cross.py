"""Criss-cross attention with a mask of minus infinity, as the authors write it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._common import Plain


def minus_infinity(b: int, h: int, w: int, like: Tensor) -> Tensor:
    """``(B W, H, H)`` with minus infinity on the diagonals."""
    infinity = torch.full((h,), float("inf"), device=like.device, dtype=like.dtype)
    return -torch.diag(infinity, 0).unsqueeze(0).repeat(b * w, 1, 1)


class CrissCross(Plain):
    """Column and row logits from permuted copies, one softmax over their concatenation."""

    def __init__(self, channels: int, recurrence: int = 2, gamma_step: float = 10.0):
        super().__init__()
        self.recurrence = recurrence
        self.query_conv = nn.Conv2d(channels, max(channels // 8, 8), 1)
        self.key_conv = nn.Conv2d(channels, max(channels // 8, 8), 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.softmax = nn.Softmax(dim=3)
        self.gamma_step = gamma_step
        self.gamma = nn.Parameter(torch.zeros(1))

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield from [(self.query_conv, ours.query), (self.key_conv, ours.key)]
        yield from [(self.value_conv, ours.value), (self.gamma, ours.gamma)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        for _ in range(self.recurrence):
            x = self._cross(x)
        return x

    def _cross(self, x: Tensor) -> Tensor:
        b, _, h, w = x.size()
        q, k, v = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        q_h = q.permute(0, 3, 1, 2).contiguous().view(b * w, -1, h).permute(0, 2, 1)
        q_w = q.permute(0, 2, 1, 3).contiguous().view(b * h, -1, w).permute(0, 2, 1)
        k_h = k.permute(0, 3, 1, 2).contiguous().view(b * w, -1, h)
        k_w = k.permute(0, 2, 1, 3).contiguous().view(b * h, -1, w)
        v_h = v.permute(0, 3, 1, 2).contiguous().view(b * w, -1, h)
        v_w = v.permute(0, 2, 1, 3).contiguous().view(b * h, -1, w)
        energy_h = torch.bmm(q_h, k_h)
        energy_h = energy_h + minus_infinity(b, h, w, energy_h)
        energy_h = energy_h.view(b, w, h, h).permute(0, 2, 1, 3)
        energy_w = torch.bmm(q_w, k_w).view(b, h, w, w)
        attention = self.softmax(torch.cat([energy_h, energy_w], 3))
        a_h = attention[:, :, :, :h].permute(0, 2, 1, 3).contiguous().view(b * w, h, h)
        a_w = attention[:, :, :, h : h + w].contiguous().view(b * h, w, w)
        out_h = torch.bmm(v_h, a_h.permute(0, 2, 1)).view(b, w, -1, h).permute(0, 2, 3, 1)
        out_w = torch.bmm(v_w, a_w.permute(0, 2, 1)).view(b, h, -1, w).permute(0, 2, 1, 3)
        return self.gamma_step * self.gamma * (out_h + out_w) + x
