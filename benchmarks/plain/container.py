"""CONTAINER's block: softmax attention and a depthwise convolution of the same values, mixed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._common import Plain


class Container(Plain):
    """``x + W2 (g softmax(q k) v + (1 - g) dw5x5(v))`` between a position embedding and an MLP."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = 4 * channels
        self.heads = next(m for m in range(max(channels // 32, 1), 0, -1) if channels % m == 0)
        self.scale = (channels // self.heads) ** -0.5
        self.pos_embed = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 3 * channels, 1)
        self.conv = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.sa_weight = nn.Parameter(torch.zeros(1))
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.GELU(), nn.Conv2d(hidden, channels, 1)
        )

    def pairs(self, ours):
        """Pairs (here, ours)."""
        m = ours.mixer
        yield from [(self.pos_embed, ours.pos_embed), (self.norm1, ours.norm1)]
        yield from [(self.norm2, ours.norm2), (self.mlp[0], ours.mlp.fc1)]
        yield from [(self.mlp[2], ours.mlp.fc2), (self.conv, m.static)]
        yield from [(self.conv2, m.out), (self.sa_weight, m.gate)]
        (q, v), (q_bias, v_bias) = m.query_value.weight.chunk(2), m.query_value.bias.chunk(2)
        yield self.conv1.weight, torch.cat([q, m.key.weight, v])
        yield self.conv1.bias, torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        x = x + self.pos_embed(x)
        x = x + self._mix(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _mix(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.conv1(x)
        q, k, v = (
            t.reshape(b, self.heads, c // self.heads, h * w).transpose(-2, -1)
            for t in qkv.chunk(3, dim=1)
        )
        attention = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        dynamic = (attention @ v).transpose(-2, -1).reshape(b, c, h, w)
        static = self.conv(qkv[:, 2 * c :])
        g = torch.sigmoid(self.sa_weight)
        return self.conv2(g * dynamic + (1 - g) * static)
