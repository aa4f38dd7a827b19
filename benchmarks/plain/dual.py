"""DANet: position attention, channel attention, and the head of both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._common import Plain, conv_bn


class PositionAttention(Plain):
    """``z = x + gamma softmax(q k) v`` with the N x N matrix."""

    def __init__(self, channels: int, gamma_step: float = 10.0):
        super().__init__()
        self.query_conv = nn.Conv2d(channels, max(channels // 8, 8), 1)
        self.key_conv = nn.Conv2d(channels, max(channels // 8, 8), 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma_step = gamma_step
        self.gamma = nn.Parameter(torch.zeros(1))
        self.softmax = nn.Softmax(dim=-1)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield from [(self.query_conv, ours.query), (self.key_conv, ours.key)]
        yield from [(self.value_conv, ours.value), (self.gamma, ours.gamma)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, c, h, w = x.size()
        query = self.query_conv(x).view(b, -1, h * w).permute(0, 2, 1)
        key = self.key_conv(x).view(b, -1, h * w)
        attention = self.softmax(torch.bmm(query, key))
        value = self.value_conv(x).view(b, -1, h * w)
        out = torch.bmm(value, attention.permute(0, 2, 1)).view(b, c, h, w)
        return self.gamma_step * self.gamma * out + x


class ChannelGram(Plain):
    """``z = x + gamma softmax(x x^T) x``; ``minus`` is the authors' maximum minus energy."""

    def __init__(self, channels: int, sign: str = "plus", gamma_step: float = 10.0):
        super().__init__()
        self.sign = sign
        self.gamma_step = gamma_step
        self.gamma = nn.Parameter(torch.zeros(1))
        self.softmax = nn.Softmax(dim=-1)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [(self.gamma, ours.gamma)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, c, h, w = x.size()
        rows = x.view(b, c, -1)
        energy = torch.bmm(rows, rows.permute(0, 2, 1))
        if self.sign == "minus":
            energy = torch.max(energy, -1, keepdim=True)[0].expand_as(energy) - energy
        out = torch.bmm(self.softmax(energy), rows).view(b, c, h, w)
        return self.gamma_step * self.gamma * out + x


class DANet(Plain):
    """Both branches one after the other, with convolutions of their own, and the fused output."""

    def __init__(self, channels: int):
        super().__init__()
        m = max(channels // 4, 8)

        def cbr(inputs: int) -> nn.Module:
            return conv_bn(inputs, m, 3, nn.ReLU(inplace=True))

        self.conv5a, self.conv5c = cbr(channels), cbr(channels)
        self.sa, self.sc = PositionAttention(m), ChannelGram(m)
        self.conv51, self.conv52 = cbr(m), cbr(m)
        self.conv8 = nn.Conv2d(m, channels, 1)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield from self.sa.pairs(ours.position)
        yield from self.sc.pairs(ours.channel)
        for here, there in (
            (self.conv5a, ours.position_reduce),
            (self.conv5c, ours.channel_reduce),
            (self.conv51, ours.position_conv),
            (self.conv52, ours.channel_conv),
        ):
            yield from [(here[0], there.conv), (here[1], there.norm)]
        yield self.conv8, ours.fused_out

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        f_p = self.conv51(self.sa(self.conv5a(x)))
        f_c = self.conv52(self.sc(self.conv5c(x)))
        return self.conv8(f_p + f_c)
