"""Layers in a convolution's place, as popular copies write them: fields laid out, maps gathered."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from ._common import Plain


def _unit(conv: nn.Conv2d, act: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), act)


def _unit_pairs(here: nn.Module, ours: nn.Module):
    return [(here[0], ours.conv), (here[1], ours.bn)]


def _fields(channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels * 9, 3, 1, 1, groups=channels, bias=False)
    return _unit(conv, nn.ReLU())


def _laid_out(features: Tensor, channels: int) -> Tensor:
    """``(B, C 9, h, w) -> (B, C, 3 h, 3 w)``."""
    b, _, h, w = features.shape
    f = features.view(b, channels, 3, 3, h, w).permute(0, 1, 4, 2, 5, 3)
    return f.reshape(b, channels, 3 * h, 3 * w)


class RFAConv(Plain):
    """Softmax over the taps of each field, laid out, convolved with stride 3."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.get_weight = nn.Sequential(
            nn.AvgPool2d(3, 1, 1),
            nn.Conv2d(channels, channels * 9, 1, groups=channels, bias=False),
        )
        self.generate = _fields(channels)
        self.conv = _unit(nn.Conv2d(channels, channels, 3, 3, bias=False), nn.ReLU())

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [
            (self.get_weight[1].weight, ours.gain),
            *_unit_pairs(self.generate, ours.features),
            *_unit_pairs(self.conv, ours.conv),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        weight = self.get_weight(x)
        b, _, h, w = weight.shape
        weighted = weight.view(b, self.channels, 9, h, w).softmax(2)
        feature = self.generate(x).view(b, self.channels, 9, h, w)
        return self.conv(_laid_out((feature * weighted).view(b, -1, h, w), self.channels))


class RFCBAMConv(Plain):
    """Channel and position gates of the fields laid out, convolved with stride 3."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.fc1, self.fc2 = (
            nn.Linear(channels, 16, bias=False),
            nn.Linear(16, channels, bias=False),
        )
        self.generate = _fields(channels)
        self.get_weight = nn.Conv2d(2, 1, 3, padding=1, bias=False)
        self.conv = _unit(nn.Conv2d(channels, channels, 3, 3, bias=False), nn.ReLU())

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [
            *((self.fc1, ours.fc1), (self.fc2, ours.fc2), (self.get_weight, ours.spatial)),
            *_unit_pairs(self.generate, ours.features),
            *_unit_pairs(self.conv, ours.conv),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        s = self.fc2(self.fc1(F.adaptive_avg_pool2d(x, 1).flatten(1)).relu()).sigmoid()
        g = _laid_out(self.generate(x), self.channels)
        unfolded = g * s[:, :, None, None]
        largest = g.max(1, keepdim=True)[0]
        m = self.get_weight(torch.cat([largest, g.mean(1, keepdim=True)], 1)).sigmoid()
        return self.conv(unfolded * m)


class RFCAConv(Plain):
    """Coordinate attention on the fields laid out, convolved with stride 3."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        hidden = max(8, channels // 32)
        self.generate = _fields(channels)
        self.conv1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv_h, self.conv_w = nn.Conv2d(hidden, channels, 1), nn.Conv2d(hidden, channels, 1)
        self.conv = nn.Conv2d(channels, channels, 3, 3)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [
            *_unit_pairs(self.generate, ours.features),
            *((self.conv1, ours.squeeze), (self.bn1, ours.norm), (self.conv, ours.conv)),
            *((self.conv_h, ours.rows), (self.conv_w, ours.columns)),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        g = _laid_out(self.generate(x), self.channels)
        h, w = g.shape[2:]
        rows, columns = g.mean(3, keepdim=True), g.mean(2, keepdim=True).permute(0, 1, 3, 2)
        y = F.hardswish(self.bn1(self.conv1(torch.cat([rows, columns], 2))))
        high, wide = torch.split(y, [h, w], dim=2)
        a_w = self.conv_w(wide.permute(0, 1, 3, 2)).sigmoid()
        return self.conv(g * a_w * self.conv_h(high).sigmoid())


class HWD(Plain):
    """Four bands by sums of slices, then a 1 x 1 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = _unit(nn.Conv2d(4 * channels, channels, 1, bias=False), nn.ReLU())

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return _unit_pairs(self.conv, ours.conv)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H/2, W/2)``."""
        a, b = x[:, :, ::2, ::2], x[:, :, ::2, 1::2]
        c, d = x[:, :, 1::2, ::2], x[:, :, 1::2, 1::2]
        bands = [(a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]
        return self.conv(torch.cat(bands, 1))


class WTConv(Plain):
    """The wavelet transforms as grouped convolutions with fixed filters."""

    def __init__(self, channels: int):
        super().__init__()
        c = channels
        self.base = nn.Conv2d(c, c, 5, padding=2, groups=c)
        self.wavelet = nn.Conv2d(4 * c, 4 * c, 5, padding=2, groups=4 * c, bias=False)
        self.base_scale = nn.Parameter(torch.ones(1, c, 1, 1))
        self.wavelet_scale = nn.Parameter(torch.ones(1, 4 * c, 1, 1))
        signs = [[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]
        filters = torch.tensor(signs).view(4, 1, 2, 2).repeat(c, 1, 1, 1) / 2
        self.register_buffer("filters", filters, persistent=False)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [
            *((self.base, ours.base), (self.wavelet, ours.levels[0])),
            (self.base_scale, ours.base_scale),
            (self.wavelet_scale, ours.level_scales[0]),
        ]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``, even sides."""
        c = x.shape[1]
        filters = self.filters.to(x.dtype)
        bands = F.conv2d(x, filters, stride=2, groups=c)
        q = self.wavelet(bands) * self.wavelet_scale
        back = F.conv_transpose2d(q, filters, stride=2, groups=c)
        return self.base(x) * self.base_scale + back


class DCNv2(Plain):
    """torchvision's operator."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.conv_offset = nn.Conv2d(channels, 27, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [(self.weight, ours.weight), (self.conv_offset, ours.points), (self.bn, ours.norm)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        o1, o2, mask = self.conv_offset(x).chunk(3, 1)
        offset = torch.cat([o1, o2], 1)
        y = deform_conv2d(x, offset, self.weight, padding=1, mask=mask.sigmoid())
        return F.silu(self.bn(y))


class LDConv(Plain):
    """Five points a position by four gathers each, stacked along rows and convolved."""

    def __init__(self, channels: int):
        super().__init__()
        self.p_conv = nn.Conv2d(channels, 10, 3, padding=1)
        self.conv = _unit(nn.Conv2d(channels, channels, (5, 1), (5, 1), bias=False), nn.SiLU())

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [(self.p_conv, ours.offset), *_unit_pairs(self.conv, ours.conv)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, c, h, w = x.shape
        offset = self.p_conv(x)
        point = torch.arange(5, device=x.device)
        grid = torch.cat([point // 2, point % 2]).view(1, 10, 1, 1)
        rows = torch.arange(h, device=x.device).view(1, 1, h, 1)
        columns = torch.arange(w, device=x.device).view(1, 1, 1, w)
        py = (offset[:, :5] + grid[:, :5] + rows).clamp(0, h - 1)
        px = (offset[:, 5:] + grid[:, 5:] + columns).clamp(0, w - 1)
        y0, x0 = py.detach().floor(), px.detach().floor()
        flat, out = x.flatten(2), 0.0
        for dy in (0, 1):
            for dx in (0, 1):
                index = (y0 + dy).clamp(max=h - 1) * w + (x0 + dx).clamp(max=w - 1)
                index = index.long().view(b, 1, -1).expand(-1, c, -1)
                value = flat.gather(2, index).view(b, c, 5, h, w)
                weight = (1 - (py - y0 - dy).abs()) * (1 - (px - x0 - dx).abs())
                out = out + value * weight[:, None]
        stacked = out.permute(0, 1, 3, 2, 4).reshape(b, c, 5 * h, w)
        return self.conv(stacked)


class DySample(Plain):
    """Normalised coordinates with a stored start, rearranged by pixel shuffles."""

    def __init__(self, channels: int):
        super().__init__()
        self.offset = nn.Conv2d(channels, 32, 1)
        h = torch.tensor([-0.25, 0.25])
        start = torch.stack(torch.meshgrid([h, h], indexing="ij")).transpose(1, 2)
        self.register_buffer("init_pos", start.repeat(1, 4, 1).reshape(1, -1, 1, 1), False)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [(self.offset, ours.offset)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, 2 H, 2 W)``."""
        offset = self.offset(x) * 0.25 + self.init_pos
        b, _, h, w = offset.shape
        offset = offset.view(b, 2, -1, h, w)
        hs = torch.arange(h, device=x.device) + 0.5
        ws = torch.arange(w, device=x.device) + 0.5
        coords = torch.stack(torch.meshgrid([ws, hs], indexing="ij")).transpose(1, 2)
        coords = coords[None, :, None].to(x.dtype)
        size = torch.tensor([w, h], dtype=x.dtype, device=x.device).view(1, 2, 1, 1, 1)
        coords = 2 * (coords + offset) / size - 1
        coords = F.pixel_shuffle(coords.view(b, -1, h, w), 2)
        coords = coords.view(b, 2, -1, 2 * h, 2 * w).permute(0, 2, 3, 4, 1).flatten(0, 1)
        maps = x.reshape(b * 4, -1, h, w)
        y = F.grid_sample(maps, coords.contiguous(), "bilinear", "border", align_corners=False)
        return y.view(b, -1, 2 * h, 2 * w)


class CARAFE(Plain):
    """The map up-sampled, unfolded with dilation, summed with the kernels."""

    def __init__(self, channels: int):
        super().__init__()
        self.comp = nn.Conv2d(channels, 64, 1)
        self.enc = nn.Conv2d(64, 100, 3, padding=1)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        return [(self.comp, ours.comp[0]), (self.enc, ours.enc)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, 2 H, 2 W)``."""
        b, c, h, w = x.shape
        kernels = F.pixel_shuffle(self.enc(self.comp(x)), 2).softmax(1)
        up = F.interpolate(x, scale_factor=2, mode="nearest")
        fields = F.unfold(up, 5, dilation=2, padding=4).view(b, c, 25, 2 * h, 2 * w)
        return torch.einsum("bkhw,bckhw->bchw", kernels, fields)
