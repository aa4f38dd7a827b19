"""Gates of channels from pooled descriptors: SE, SEv2, SK, ECA, FcaNet, MLCA."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._common import Plain, SingleVectorNorm


class SE(Plain):
    """``z = x * sigma(W2 relu(W1 mean x))``."""

    def __init__(self, channels: int):
        super().__init__()
        h = max(channels // 16, 8)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, h), nn.ReLU(inplace=True), nn.Linear(h, channels), nn.Sigmoid()
        )

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [(self.fc[0], ours.fc1), (self.fc[2], ours.fc2)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        return x * self.fc(y).view(b, c, 1, 1).expand_as(x)


class SEv2(Plain):
    """``z = x + x * s`` with four dense layers side by side, each on its own."""

    def __init__(self, channels: int, residual: bool = True):
        super().__init__()
        h = max(channels // 16, 8)
        self.residual = residual
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fcs = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, h), nn.ReLU(inplace=True)) for _ in range(4)
        )
        self.fc = nn.Sequential(nn.Linear(4 * h, channels), nn.Sigmoid())

    def pairs(self, ours):
        """Pairs (here, ours)."""
        weights, biases = ours.fc1.weight.chunk(4), ours.fc1.bias.chunk(4)
        for fc, weight, bias in zip(self.fcs, weights, biases):
            yield fc[0].weight, weight
            yield fc[0].bias, bias
        yield self.fc[0], ours.fc2

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = torch.cat([fc(y) for fc in self.fcs], dim=1)
        scaled = x * self.fc(y).view(b, c, 1, 1)
        return x + scaled if self.residual else scaled


class SK(Plain):
    """``v = sum_m softmax_m(A_m z) u_m`` over stacked branches."""

    def __init__(self, channels: int):
        super().__init__()
        d = max(channels // 16, 32)
        groups = next(g for g in range(min(32, channels), 0, -1) if channels % g == 0)
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(
                    channels,
                    channels,
                    3,
                    padding=dilation,
                    dilation=dilation,
                    groups=groups,
                    bias=False,
                ),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            )
            for dilation in (1, 2)
        )
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Conv2d(channels, d, 1, bias=False), SingleVectorNorm(d), nn.ReLU(inplace=True)
        )
        self.fcs = nn.ModuleList(nn.Conv2d(d, channels, 1, bias=False) for _ in range(2))

    def pairs(self, ours):
        """Pairs (here, ours)."""
        for conv, branch in zip(self.convs, ours.branches):
            yield conv[0], branch.conv
            yield conv[1], branch.norm
        yield self.fc[0], ours.select.reduce
        yield self.fc[1], ours.select.norm
        for fc, weight in zip(self.fcs, ours.select.expand.weight.chunk(2)):
            yield fc.weight, weight

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        feats = torch.stack([conv(x) for conv in self.convs], dim=1)
        z = self.fc(self.gap(feats.sum(dim=1)))
        weights = torch.stack([fc(z) for fc in self.fcs], dim=1).softmax(dim=1)
        return (feats * weights).sum(dim=1)


class ECA(Plain):
    """``z = x * sigma(conv1d(mean x))``."""

    def __init__(self, channels: int):
        super().__init__()
        t = int(abs(math.log2(channels) + 1) / 2)
        k = max(t if t % 2 else t + 1, 3)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [(self.conv.weight, ours.weight)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        y = self.avg_pool(x)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * y.sigmoid().expand_as(x)


class FcaNet(Plain):
    """``z = x * sigma(W2 relu(W1 sum x' * basis))`` with a basis image for every channel."""

    def __init__(self, channels: int, dct_h: int = 7, dct_w: int = 7):
        super().__init__()
        h = max(channels // 16, 8)
        self.size = (dct_h, dct_w)
        self.fc = nn.Sequential(
            nn.Linear(channels, h, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(h, channels, bias=False),
            nn.Sigmoid(),
        )
        self.register_buffer("weight", torch.zeros(channels, dct_h, dct_w))

    def pairs(self, ours):
        """Pairs (here, ours)."""
        basis = ours.basis.repeat_interleave(len(self.weight) // len(ours.basis), dim=0)
        return [(self.fc[0], ours.fc1), (self.fc[2], ours.fc2), (self.weight, basis)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, c, h, w = x.shape
        pooled = x if (h, w) == self.size else F.adaptive_avg_pool2d(x, self.size)
        y = torch.sum(pooled * self.weight, dim=[2, 3])
        return x * self.fc(y).view(b, c, 1, 1).expand_as(x)


class MLCA(Plain):
    """``z = x * unpool((1 - lambda) sigma(global) + lambda sigma(local))``."""

    def __init__(self, channels: int, local_size: int = 5, local_weight: float = 0.5):
        super().__init__()
        t = int(abs(math.log2(channels) + 1) / 2)
        k = t if t % 2 else t + 1
        self.local_size, self.local_weight = local_size, local_weight
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)
        self.conv_local = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)
        self.local_arv_pool = nn.AdaptiveAvgPool2d(local_size)
        self.global_arv_pool = nn.AdaptiveAvgPool2d(1)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [(self.conv.weight, ours.w_g), (self.conv_local.weight, ours.w_l)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        local_arv = self.local_arv_pool(x)
        global_arv = self.global_arv_pool(local_arv)
        b, c, m, n = x.shape
        s = self.local_size
        # (B, C, s, s) -> (B, 1, s * s * C), channels innermost
        sequence = local_arv.view(b, c, -1).transpose(-1, -2).reshape(b, 1, -1)
        y_local = self.conv_local(sequence)
        y_global = self.conv(global_arv.view(b, c, -1).transpose(-1, -2))
        y_local = y_local.reshape(b, s * s, c).transpose(-1, -2).view(b, c, s, s)
        att_local = y_local.sigmoid()
        att_global = F.adaptive_avg_pool2d(y_global.view(b, c, 1, 1).sigmoid(), [s, s])
        att = att_global * (1 - self.local_weight) + att_local * self.local_weight
        return x * F.adaptive_avg_pool2d(att, [m, n])
