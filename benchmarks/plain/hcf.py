"""HCF-Net: PPA, DASI, MDCR, as the authors write them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._common import Plain, conv_bn, conv_bn_pairs


class LocalGlobalAttention(nn.Module):
    """Attention over the patches of side P."""

    def __init__(self, channels: int, patch: int):
        super().__init__()
        self.patch = patch
        self.mlp1 = nn.Linear(patch * patch, channels // 2)
        self.norm = nn.LayerNorm(channels // 2)
        self.mlp2 = nn.Linear(channels // 2, channels)
        self.conv = nn.Conv2d(channels, channels, 1)
        self.prompt = nn.Parameter(torch.zeros(channels))
        self.top_down = nn.Parameter(torch.zeros(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, c, height, width = x.shape
        p = self.patch
        x = F.pad(x, (0, -width % p, 0, -height % p))
        t = x.unfold(2, p, p).unfold(3, p, p)  # (B, C, h, w, P, P)
        h, w = t.shape[2:4]
        t = t.reshape(b, c, h * w, p * p).permute(0, 2, 3, 1).mean(dim=-1)
        t = self.mlp2(self.norm(self.mlp1(t)))
        t = t * torch.softmax(t, dim=-1)
        cosine = F.normalize(t, dim=-1) @ F.normalize(self.prompt[None, :, None], dim=1)
        t = (t * cosine.clamp(0, 1)) @ self.top_down
        t = t.reshape(b, h, w, c).permute(0, 3, 1, 2)
        t = F.interpolate(t, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.conv(t)[:, :, :height, :width]


class PPA(Plain):
    """Five branches, channel gate, position gate, norm, ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        c = channels
        self.skip = conv_bn(c, c, 1)
        self.c1, self.c2, self.c3 = (conv_bn(c, c, 3, nn.ReLU(inplace=True)) for _ in range(3))
        self.lga2, self.lga4 = LocalGlobalAttention(c, 2), LocalGlobalAttention(c, 4)
        t = int(abs((math.log2(c) + 1) / 2))
        k = t if t % 2 else t + 1
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.cn = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)
        self.sa = nn.Conv2d(2, 1, 7, padding=3)
        self.drop = nn.Dropout2d(0.1)
        self.bn1 = nn.BatchNorm2d(c)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        for name in ("skip", "c1", "c2", "c3"):
            yield from conv_bn_pairs(getattr(self, name), getattr(ours, name))
        yield from [(self.lga2, ours.lga2), (self.lga4, ours.lga4), (self.cn.weight, ours.gate)]
        yield from [(self.sa, ours.spatial), (self.bn1, ours.norm)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        skip = self.skip(x)
        x1 = self.c1(x)
        x2 = self.c2(x1)
        x3 = self.c3(x2)
        x = x1 + x2 + x3 + skip + self.lga2(skip) + self.lga4(skip)
        y = self.avg_pool(x)
        gate = self.cn(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1).sigmoid()
        x = gate * x
        mean, largest = torch.mean(x, dim=1, keepdim=True), torch.max(x, dim=1, keepdim=True)[0]
        x = self.sa(torch.cat([mean, largest], dim=1)).sigmoid() * x
        return F.relu(self.bn1(self.drop(x)))


class DASI(Plain):
    """Four channel parts, each mixing the deep and the shallow map through a gate of its own."""

    def __init__(self, channels: list[int]):
        super().__init__()
        c, high, low = channels
        self.skips = nn.Conv2d(c, c, 1)
        self.skips_2 = nn.Conv2d(low, c, 1)
        self.skips_3 = nn.Conv2d(high, c, 3, stride=2, dilation=2, padding=2)
        self.tail_conv = nn.Conv2d(c, c, 1, bias=False)
        self.bns = nn.BatchNorm2d(c)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield from [(self.skips, ours.skip), (self.skips_2, ours.low), (self.skips_3, ours.high)]
        yield from [(self.tail_conv, ours.tail), (self.bns, ours.norm)]

    def forward(self, xs: list[Tensor]) -> Tensor:
        """``[(B, C, H, W), shallower, deeper] -> (B, C, H, W)``."""
        x, high, low = xs
        skip = self.skips(x)
        low = F.interpolate(
            self.skips_2(low), size=x.shape[2:], mode="bilinear", align_corners=True
        )
        high = self.skips_3(high)
        parts = []
        for d, a, b in zip(skip.chunk(4, 1), low.chunk(4, 1), high.chunk(4, 1)):
            gate = torch.sigmoid(d)
            parts.append(gate * a + (1 - gate) * b)
        y = self.tail_conv(torch.cat(parts, dim=1))
        return F.relu(self.bns(y + skip))


class MDCR(Plain):
    """Dilated depthwise branches of four quarters, mixed and normed channel by channel."""

    def __init__(self, channels: int):
        super().__init__()
        q = channels // 4
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(q, q, 3, padding=rate, dilation=rate, groups=q, bias=False),
                nn.BatchNorm2d(q),
                nn.ReLU(inplace=True),
            )
            for rate in (1, 6, 12, 18)
        )
        self.mix = nn.Conv2d(4, 4, 1, bias=False)
        self.mix_norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(q))
        self.out = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    def pairs(self, ours):
        """Pairs (here, ours)."""
        for i, (block, branch) in enumerate(zip(self.blocks, ours.branches)):
            yield block[0], branch
            for name in ("weight", "bias", "running_mean", "running_var"):
                yield getattr(block[1], name), getattr(ours.norm, name).chunk(4)[i]
        yield self.mix, ours.mix
        for j, norm in enumerate(self.mix_norms):
            for name in ("weight", "bias", "running_mean", "running_var"):
                yield getattr(norm, name), getattr(ours.mix_norm, name)[j :: len(self.mix_norms)]
        # Ours keeps the channels branch by branch, here the four of each j are neighbours.
        weight = ours.out.weight.unflatten(1, (4, -1)).transpose(1, 2)
        yield from [(self.out[0].weight, weight), (self.out[1], ours.out_norm)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        branches = [block(part) for block, part in zip(self.blocks, x.chunk(4, dim=1))]
        mixed = [
            F.relu(norm(self.mix(torch.cat([branch[:, j : j + 1] for branch in branches], dim=1))))
            for j, norm in enumerate(self.mix_norms)
        ]
        return self.out(torch.cat(mixed, dim=1))
