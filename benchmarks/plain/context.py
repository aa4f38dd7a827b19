"""One context vector for all positions: global context, CATNet's context aggregation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._common import Plain


class GlobalContext(Plain):
    """``z = x * sigma(t_mul(c)) + t_add(c)``, as the authors write it."""

    def __init__(self, channels: int, pooling: str = "att", fusion: str = "add"):
        super().__init__()
        planes = max(channels // 16, 8)
        self.conv_mask = nn.Conv2d(channels, 1, 1) if pooling == "att" else None
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.transforms = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Conv2d(channels, planes, 1),
                    nn.LayerNorm([planes, 1, 1]),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(planes, channels, 1),
                )
                for name in {"add": ["add"], "mul": ["mul"], "both": ["mul", "add"]}[fusion]
            }
        )

    def pairs(self, ours):
        """Pairs (here, ours)."""
        if self.conv_mask is not None:
            yield self.conv_mask, ours.mask
        for name, here in self.transforms.items():
            there = ours.get_submodule(name)
            yield from zip((here[0], here[1], here[3]), (there.w1, there.norm, there.w2))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        context = self._context(x)
        out = x
        if "mul" in self.transforms:
            out = out * torch.sigmoid(self.transforms["mul"](context))
        if "add" in self.transforms:
            out = out + self.transforms["add"](context)
        return out

    def _context(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if self.conv_mask is None:
            return self.avg_pool(x)
        values = x.view(b, c, h * w).unsqueeze(1)  # (B, 1, C, N)
        mask = torch.softmax(self.conv_mask(x).view(b, 1, h * w), dim=2).unsqueeze(-1)
        return torch.matmul(values, mask).view(b, c, 1, 1)


class ContextAggregation(Plain):
    """``z = x + W_m (sum_n k_n W_v x_n) * a``: values at all positions, then the weighted sum."""

    def __init__(self, channels: int):
        super().__init__()
        self.a = nn.Conv2d(channels, 1, 1)
        self.k = nn.Conv2d(channels, 1, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.m = nn.Conv2d(channels, channels, 1)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return zip((self.a, self.k, self.v, self.m), (ours.a, ours.k, ours.v, ours.m))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, c, h, w = x.shape
        a = self.a(x).sigmoid()
        k = self.k(x).view(b, 1, h * w, 1).softmax(2)
        v = self.v(x).view(b, 1, c, h * w)
        y = torch.matmul(v, k).view(b, c, 1, 1)
        return x + self.m(y) * a


class SimplifiedNonLocal(Plain):
    """``z = x + sum_n a_n W_v x_n``: values at all positions, then the weighted sum."""

    def __init__(self, channels: int):
        super().__init__()
        self.wk = nn.Conv2d(channels, 1, 1)
        self.wv = nn.Conv2d(channels, channels, 1)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [(self.wk, ours.key), (self.wv, ours.value)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, c, h, w = x.shape
        a = torch.softmax(self.wk(x).view(b, 1, h * w), dim=2)
        v = self.wv(x).view(b, c, h * w)
        return x + torch.bmm(v, a.transpose(1, 2)).view(b, c, 1, 1)


class DoubleAttention(Plain):
    """Gather ``G = A softmax_n(B)^T``, distribute ``z = x + W (G softmax_q(V))``."""

    def __init__(self, channels: int):
        super().__init__()
        m = k = max(channels // 4, 8)
        self.m, self.k = m, k
        self.convA = nn.Conv2d(channels, m, 1)
        self.convB = nn.Conv2d(channels, k, 1)
        self.convV = nn.Conv2d(channels, k, 1)
        self.conv_reconstruct = nn.Conv2d(m, channels, 1)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield from [(self.convA, ours.a), (self.convB, ours.b), (self.convV, ours.v)]
        yield self.conv_reconstruct, ours.out

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, _, h, w = x.shape
        maps = self.convA(x).view(b, self.m, -1)
        gather = torch.softmax(self.convB(x).view(b, self.k, -1), dim=-1)
        distribute = torch.softmax(self.convV(x).view(b, self.k, -1), dim=1)
        descriptors = torch.bmm(maps, gather.permute(0, 2, 1))
        y = descriptors.matmul(distribute).view(b, self.m, h, w)
        return x + self.conv_reconstruct(y)


class EMAU(Plain):
    """``relu(BN(W relu(R)) + x)``, R rebuilt from bases after three EM steps, as the authors."""

    def __init__(self, channels: int):
        super().__init__()
        k = 64
        self.stage_num = 3
        self.register_buffer("mu", torch.zeros(1, channels, k))
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield from [(self.mu, ours.bases), (self.conv1, ours.reduce)]
        yield from [(self.conv2[0], ours.out), (self.conv2[1], ours.norm)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, c, h, w = x.size()
        f = self.conv1(x).view(b, c, h * w)
        mu = self.mu.repeat(b, 1, 1)
        with torch.no_grad():
            for _ in range(self.stage_num):
                z = torch.softmax(torch.bmm(f.permute(0, 2, 1), mu), dim=2)
                mu = torch.bmm(f, z / (1e-6 + z.sum(dim=1, keepdim=True)))
                mu = mu / (1e-6 + mu.norm(dim=1, keepdim=True))
            if self.training:
                self.mu.lerp_(mu.mean(0, keepdim=True), 0.1)
            r = torch.relu(mu.matmul(z.permute(0, 2, 1))).view(b, c, h, w)
        return torch.relu(self.conv2(r) + x)
