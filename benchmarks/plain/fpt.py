"""FPT: self, grounding and rendering transformer, with their N x M matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._common import Plain, SingleVectorNorm


class FPTSelf(Plain):
    """``x + BN(W sum_j pi_j softmax(q_j k_j / sqrt(d_k)) v)`` with keys and values pooled by 2."""

    def __init__(self, channels: int, n_mix: int = 2):
        super().__init__()
        c = channels
        self.n_mix = n_mix
        self.conv_qs = nn.Conv2d(c, c, 1)
        self.conv_vs = nn.Conv2d(c, c, 1)
        self.weight = nn.Parameter(torch.zeros(n_mix, c))
        self.conv = nn.Conv2d(c, c, 1, bias=False)
        self.norm_layer = nn.BatchNorm2d(c)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield from [(self.conv_qs, ours.query), (self.conv_vs, ours.value)]
        yield from [(self.weight, ours.mixture.weight), (self.conv, ours.out)]
        yield self.norm_layer, ours.norm

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, c, h, w = x.shape
        m = self.n_mix
        pooled = self.pool(x)
        q = self.conv_qs(x).view(b, c, h * w)
        k = self.conv_qs(pooled).view(b, c, -1)
        v = self.conv_vs(pooled).view(b, c, -1)
        pi = torch.softmax(torch.matmul(self.weight, k.mean(2, keepdim=True)), dim=1)
        q = q.reshape(b * m, c // m, -1).transpose(1, 2)
        k = k.reshape(b * m, c // m, -1)
        attention = torch.softmax(torch.bmm(q, k) / c**0.5, dim=-1)
        attention = (attention * pi.view(b * m, 1, 1)).view(b, m, h * w, -1).sum(1)
        y = torch.bmm(attention, v.transpose(1, 2)).transpose(1, 2).reshape(b, c, h, w)
        return self.norm_layer(self.conv(y)) + x


class FPTGround(Plain):
    """``low + BN(W y)``; ``euclidean`` forms all squared distances, ``dot`` the N x M matrix."""

    def __init__(self, channels: list[int], mode: str = "euclidean"):
        super().__init__()
        low, high = channels
        self.d = low // 2
        self.mode = mode
        self.g = nn.Conv2d(high, self.d, 1)
        self.theta = nn.Conv2d(low, self.d, 1)
        self.phi = nn.Conv2d(high, self.d, 1)
        self.n_mix = 2
        self.weight = nn.Parameter(torch.zeros(self.n_mix, self.d)) if mode == "euclidean" else None
        self.W_z = nn.Sequential(nn.Conv2d(self.d, low, 1), nn.BatchNorm2d(low))

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield from [(self.g, ours.g), (self.theta, ours.theta), (self.phi, ours.phi)]
        yield from [(self.W_z[0], ours.out), (self.W_z[1], ours.norm)]
        if self.weight is not None:
            yield self.weight, ours.mixture.weight

    def forward(self, xs: list[Tensor]) -> Tensor:
        """``[(B, C, H, W), (B, C_high, H', W')] -> (B, C, H, W)``."""
        low, high = xs
        b, _, h, w = low.shape
        g = self.g(high).flatten(2).permute(0, 2, 1)
        theta = self.theta(low).flatten(2).permute(0, 2, 1)
        phi = self.phi(high).flatten(2)
        f = self._mixture(theta, phi) if self.mode == "euclidean" else theta @ phi / phi.shape[2]
        y = torch.matmul(f, g).permute(0, 2, 1).contiguous()
        return low + self.W_z(y.view(b, -1, h, w))

    def _mixture(self, theta: Tensor, phi: Tensor) -> Tensor:
        pi = torch.softmax(self.weight @ phi.mean(2, keepdim=True), dim=1)
        f = 0
        parts = zip(theta.chunk(self.n_mix, dim=2), phi.chunk(self.n_mix, dim=1))
        for n, (q, k) in enumerate(parts):
            squares = q.pow(2).sum(2, keepdim=True) - 2 * q @ k + k.pow(2).sum(1, keepdim=True)
            f = f + pi[:, n : n + 1] * torch.softmax(-squares / self.d**0.5, dim=-1)
        return f


class FPTRender(Plain):
    """``relu(BN(conv_s2(low)) + BN(conv(high * relu(BN(conv1(mean low))))))``."""

    def __init__(self, channels: list[int]):
        super().__init__()
        high, low = channels
        self.conv3x3 = nn.Conv2d(high, high, 3, padding=1, bias=False)
        self.bn_high = nn.BatchNorm2d(high)
        self.conv1x1 = nn.Conv2d(low, high, 1, bias=False)
        self.bn_low = SingleVectorNorm(high)
        self.str_conv3x3 = nn.Conv2d(low, high, 3, stride=2, padding=1, bias=False)
        self.bn_reduction = nn.BatchNorm2d(high)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield from [(self.conv3x3, ours.refine), (self.bn_high, ours.refine_norm)]
        yield from [(self.conv1x1, ours.gate), (self.bn_low, ours.gate_norm)]
        yield from [(self.str_conv3x3, ours.render), (self.bn_reduction, ours.render_norm)]

    def forward(self, xs: list[Tensor]) -> Tensor:
        """``[(B, C, H, W), (B, C_low, 2 H, 2 W)] -> (B, C, H, W)``."""
        high, low = xs
        weights = F.relu(self.bn_low(self.conv1x1(F.adaptive_avg_pool2d(low, 1))))
        attended = self.bn_high(self.conv3x3(high * weights))
        return F.relu(self.bn_reduction(self.str_conv3x3(low)) + attended)
