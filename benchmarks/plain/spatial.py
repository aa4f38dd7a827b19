"""Gates of positions: CBAM, GAM, coordinate attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._common import Plain


class ChannelGate(Plain):
    """``z = x * sigma(m(mean x) + m(max x))``."""

    def __init__(self, channels: int):
        super().__init__()
        h = max(channels // 16, 8)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.max_pool = nn.AdaptiveMaxPool2d(1)
        self.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(channels, h), nn.ReLU(), nn.Linear(h, channels)
        )

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [(self.mlp[1], ours.fc1), (self.mlp[3], ours.fc2)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        scale = torch.sigmoid(self.mlp(self.avg_pool(x)) + self.mlp(self.max_pool(x)))
        return x * scale[:, :, None, None].expand_as(x)


class SpatialGate(Plain):
    """``z = x * sigma(conv [max_c x, mean_c x])``."""

    def __init__(self, channels: int, kernel_size: int = 7, norm: str = "none"):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=norm == "none")
        self.bn = nn.BatchNorm2d(1, momentum=0.01) if norm == "bn" else nn.Identity()

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield self.conv, ours.conv
        if ours.norm is not None:
            yield self.bn, ours.norm

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        maximum = torch.max(x, dim=1, keepdim=True)[0]
        mean = torch.mean(x, dim=1, keepdim=True)
        return x * torch.sigmoid(self.bn(self.conv(torch.cat([maximum, mean], dim=1))))


class CBAM(Plain):
    """The channel gate, then the position gate."""

    def __init__(self, channels: int, kernel_size: int = 7, norm: str = "none"):
        super().__init__()
        self.channel_gate = ChannelGate(channels)
        self.spatial_gate = SpatialGate(channels, kernel_size, norm)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [*self.channel_gate.pairs(ours), *self.spatial_gate.pairs(ours)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return self.spatial_gate(self.channel_gate(x))


class UltralyticsCBAM(Plain):
    """The class CBAM of Ultralytics: a C x C convolution on the mean, then a gate of positions."""

    def __init__(self, channels: int, kernel_size: int = 7):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Conv2d(channels, channels, 1)
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [(self.fc, ours.fc), (self.conv, ours.conv)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        x = x * torch.sigmoid(self.fc(self.pool(x)))
        mean, maximum = x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
        return x * torch.sigmoid(self.conv(torch.cat([mean, maximum], dim=1)))


class GAM(Plain):
    """``x1 = x * g(x)``, ``z = x1 * s(x1)``; the channel gate by linear layers on the last axis."""

    def __init__(self, channels: int, groups: int = 1, shuffle: int = 1):
        super().__init__()
        h = channels // 4
        self.shuffle = shuffle
        self.channel_attention = nn.Sequential(
            nn.Linear(channels, h), nn.ReLU(inplace=True), nn.Linear(h, channels)
        )
        self.spatial_attention = nn.Sequential(
            nn.Conv2d(channels, h, 7, padding=3, groups=groups, bias=False),
            nn.BatchNorm2d(h),
            nn.ReLU(inplace=True),
            nn.Conv2d(h, channels, 7, padding=3, groups=groups, bias=False),
            nn.BatchNorm2d(channels),
        )

    def pairs(self, ours):
        """Pairs (here, ours)."""
        channel, spatial = self.channel_attention, self.spatial_attention
        yield from [(channel[0], ours.fc1), (channel[2], ours.fc2)]
        yield from [(spatial[0], ours.conv1), (spatial[1], ours.norm1)]
        yield from [(spatial[3], ours.conv2), (spatial[4], ours.norm2)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, c, h, w = x.shape
        positions = x.permute(0, 2, 3, 1).reshape(b, -1, c)
        gate = self.channel_attention(positions).view(b, h, w, c).permute(0, 3, 1, 2)
        x = x * gate.sigmoid()
        gate = self.spatial_attention(x).sigmoid()
        if self.shuffle > 1:
            gate = gate.view(b, self.shuffle, c // self.shuffle, h, w)
            gate = gate.transpose(1, 2).contiguous().view(b, -1, h, w)
        return x * gate


class CoordAtt(Plain):
    """``z = x * g_h * g_w``."""

    def __init__(self, channels: int):
        super().__init__()
        m = max(channels // 32, 8)
        self.pool_h = nn.AdaptiveAvgPool2d((None, 1))
        self.pool_w = nn.AdaptiveAvgPool2d((1, None))
        self.conv1 = nn.Conv2d(channels, m, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(m)
        self.act = nn.Hardswish()
        self.conv_h = nn.Conv2d(m, channels, 1)
        self.conv_w = nn.Conv2d(m, channels, 1)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield from [(self.conv1, ours.conv1), (self.bn1, ours.norm)]
        yield from [(self.conv_h, ours.conv_h), (self.conv_w, ours.conv_w)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        _, _, h, w = x.size()
        y = torch.cat([self.pool_h(x), self.pool_w(x).permute(0, 1, 3, 2)], dim=2)
        y = self.act(self.bn1(self.conv1(y)))
        y_h, y_w = torch.split(y, [h, w], dim=2)
        a_h = self.conv_h(y_h).sigmoid()
        a_w = self.conv_w(y_w.permute(0, 1, 3, 2)).sigmoid()
        return x * a_w * a_h


class SimAM(Plain):
    """``z = x * sigma(d / (4 (v + lambda)) + 1/2)``."""

    def __init__(self, channels: int):
        super().__init__()
        self.e_lambda = 1e-4

    def pairs(self, ours):
        """No weights."""
        return []

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        d = (x - x.mean(dim=[2, 3], keepdim=True)).pow(2)
        v = d.mean(dim=[2, 3], keepdim=True)
        return x * torch.sigmoid(d / (4 * (v + self.e_lambda)) + 0.5)


class EMA(Plain):
    """Efficient multi-scale attention, as the authors write it."""

    def __init__(self, channels: int, factor: int | None = None):
        super().__init__()
        factor = factor or max(min(32, channels // 8), 1)
        groups = next(g for g in range(min(factor, channels), 0, -1) if channels % g == 0)
        c = channels // groups
        self.groups = groups
        self.agp = nn.AdaptiveAvgPool2d((1, 1))
        self.pool_h = nn.AdaptiveAvgPool2d((None, 1))
        self.pool_w = nn.AdaptiveAvgPool2d((1, None))
        self.gn = nn.GroupNorm(c, c)
        self.conv1x1 = nn.Conv2d(c, c, 1)
        self.conv3x3 = nn.Conv2d(c, c, 3, padding=1)
        self.softmax = nn.Softmax(-1)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield from [(self.conv1x1, ours.conv1x1), (self.conv3x3, ours.conv3x3)]
        yield self.gn, ours.norm

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, c, h, w = x.size()
        group_x = x.reshape(b * self.groups, -1, h, w)
        x_h = self.pool_h(group_x)
        x_w = self.pool_w(group_x).permute(0, 1, 3, 2)
        x_h, x_w = torch.split(self.conv1x1(torch.cat([x_h, x_w], dim=2)), [h, w], dim=2)
        x1 = self.gn(group_x * x_h.sigmoid() * x_w.permute(0, 1, 3, 2).sigmoid())
        x2 = self.conv3x3(group_x)
        n = b * self.groups
        x11 = self.softmax(self.agp(x1).reshape(n, -1, 1).permute(0, 2, 1))
        x12 = x2.reshape(n, c // self.groups, -1)
        x21 = self.softmax(self.agp(x2).reshape(n, -1, 1).permute(0, 2, 1))
        x22 = x1.reshape(n, c // self.groups, -1)
        weights = (torch.matmul(x11, x12) + torch.matmul(x21, x22)).reshape(n, 1, h, w)
        return (group_x * weights.sigmoid()).reshape(b, c, h, w)


class LSK(Plain):
    """Large selective kernel unit, as the authors write it."""

    def __init__(self, channels: int):
        super().__init__()
        c = channels
        self.conv0 = nn.Conv2d(c, c, 5, padding=2, groups=c)
        self.conv_spatial = nn.Conv2d(c, c, 7, padding=9, dilation=3, groups=c)
        self.conv1 = nn.Conv2d(c, c // 2, 1)
        self.conv2 = nn.Conv2d(c, c // 2, 1)
        self.conv_squeeze = nn.Conv2d(2, 2, 7, padding=3)
        self.conv = nn.Conv2d(c // 2, c, 1)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        unit = ours.unit
        yield from [(self.conv0, unit.small), (self.conv_spatial, unit.large)]
        yield from [(self.conv1, unit.conv1), (self.conv2, unit.conv2)]
        yield from [(self.conv_squeeze, unit.squeeze), (self.conv, unit.out)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        attn1 = self.conv0(x)
        attn2 = self.conv_spatial(attn1)
        attn1, attn2 = self.conv1(attn1), self.conv2(attn2)
        attn = torch.cat([attn1, attn2], dim=1)
        mean = torch.mean(attn, dim=1, keepdim=True)
        largest, _ = torch.max(attn, dim=1, keepdim=True)
        sig = self.conv_squeeze(torch.cat([mean, largest], dim=1)).sigmoid()
        attn = attn1 * sig[:, 0].unsqueeze(1) + attn2 * sig[:, 1].unsqueeze(1)
        return x * self.conv(attn)
