"""Modules in the manner of forks, written from the table of their layouts, as source text.

Tests write a class to a throw-away module, save a model with it, and delete the module.
"""

from __future__ import annotations

HEAD = """
import torch
import torch.nn.functional as F
from torch import nn


class h_sigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU6()

    def forward(self, x):
        return self.relu(x + 3) / 6


class h_swish(nn.Module):
    def __init__(self):
        super().__init__()
        self.sigmoid = h_sigmoid()

    def forward(self, x):
        return x * self.sigmoid(x)


class LayerNorm2d(nn.LayerNorm):
    def __init__(self, c):
        super().__init__(c, eps=1e-6)

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def mean_max(x, max_first=False):
    both = [x.mean(1, keepdim=True), x.amax(1, keepdim=True)]
    return torch.cat(both[::-1] if max_first else both, 1)
"""

CBAM_F = """
class ChannelAttention(nn.Module):
    def __init__(self, c, h, bias):
        super().__init__()
        self.avg_pool, self.max_pool = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
        self.{f1} = nn.Conv2d(c, h, 1, bias=bias)
        self.relu = nn.ReLU()
        self.{f2} = nn.Conv2d(h, c, 1, bias=bias)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        m = lambda q: self.{f2}(self.relu(self.{f1}(q)))
        return self.sigmoid(m(self.avg_pool(x)) + m(self.max_pool(x)))


class SpatialAttention(nn.Module):
    def __init__(self, k, bias):
        super().__init__()
        self.{conv} = nn.Conv2d(2, 1, k, padding=k // 2, bias=bias)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        return self.sigmoid(self.{conv}(mean_max(x)))


class {name}(nn.Module):
    def __init__(self, c, h=4, k=7, bias=False, spatial_bias=False):
        super().__init__()
        self.{ca} = ChannelAttention(c, h, bias)
        self.{sa} = SpatialAttention(k, spatial_bias)

    def forward(self, x):
        x = self.{ca}(x) * x
        return self.{sa}(x) * x
"""

CBAM_SE = """
class ChannelAttention(nn.Module):
    def __init__(self, c, h):
        super().__init__()
        self.maxpool, self.avgpool = nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d(1)
        self.se = nn.Sequential(
            nn.Conv2d(c, h, 1, bias=False), nn.ReLU(), nn.Conv2d(h, c, 1, bias=False)
        )
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        return self.sigmoid(self.se(self.maxpool(x)) + self.se(self.avgpool(x)))


class SpatialAttention(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, k, padding=k // 2)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        return self.sigmoid(self.conv(mean_max(x, max_first=True)))


class CBAMBlock(nn.Module):
    def __init__(self, c, h=4, k=7):
        super().__init__()
        self.ca = ChannelAttention(c, h)
        self.sa = SpatialAttention(k)

    def forward(self, x):
        x = x * self.ca(x)
        return x * self.sa(x)
"""

CBAM_AUTHORS = """
class Flatten(nn.Module):
    def forward(self, x):
        return x.flatten(1)


class BasicConv(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, k, padding=k // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)
        self.relu = None

    def forward(self, x):
        return self.bn(self.conv(x))


class ChannelGate(nn.Module):
    def __init__(self, c, h):
        super().__init__()
        self.mlp = nn.Sequential(Flatten(), nn.Linear(c, h), nn.ReLU(), nn.Linear(h, c))
        self.pool_types = ["avg", "max"]

    def forward(self, x):
        s = self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True))
        return x * s.sigmoid()[:, :, None, None]


class ChannelPool(nn.Module):
    def forward(self, x):
        return mean_max(x, max_first=True)


class SpatialGate(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.compress = ChannelPool()
        self.spatial = BasicConv(k)

    def forward(self, x):
        return x * self.spatial(self.compress(x)).sigmoid()


class CBAM(nn.Module):
    def __init__(self, c, h=4, k=7):
        super().__init__()
        self.ChannelGate = ChannelGate(c, h)
        self.SpatialGate = SpatialGate(k)

    def forward(self, x):
        return self.SpatialGate(self.ChannelGate(x))
"""

SE = """
class {name}(nn.Module):
    def __init__(self, c, h=4, bias=False):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(c, h, bias=bias), nn.{act}(), nn.Linear(h, c, bias=bias), nn.{gate}()
        )

    def forward(self, x):
        return x * self.fc(self.avg_pool(x).flatten(1))[:, :, None, None]
"""

SE_L = """
class SE(nn.Module):
    def __init__(self, c1, c2=None, ratio=16):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.l1 = nn.Linear(c1, max(c1 // ratio, 2), bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.l2 = nn.Linear(max(c1 // ratio, 2), c1, bias=False)
        self.sig = nn.Sigmoid()

    def forward(self, x):
        y = self.sig(self.l2(self.relu(self.l1(self.avgpool(x).flatten(1)))))
        return x * y[:, :, None, None]
"""

ECA = """
class {name}(nn.Module):
    def __init__(self, c, k=3):
        super().__init__()
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.{conv} = nn.Conv1d(1, 1, k, padding=(k - 1) // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        y = self.{conv}(self.gap(x).squeeze(-1).transpose(1, 2))
        return x * self.sigmoid(y).transpose(1, 2)[..., None]
"""

COORD = """
class {name}(nn.Module):
    def __init__(self, c, m=8, bias=True):
        super().__init__()
        self.pool_h, self.pool_w = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        self.{conv1} = nn.Conv2d(c, m, 1, bias=bias)
        self.bn1 = nn.BatchNorm2d(m)
        self.act = {act}()
        self.{h} = nn.Conv2d(m, c, 1, bias=bias)
        self.{w} = nn.Conv2d(m, c, 1, bias=bias)

    def forward(self, x):
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)
        y = self.act(self.bn1(self.{conv1}(torch.cat([rows, columns], 2))))
        r, q = y.split([x.shape[2], x.shape[3]], 2)
        return x * self.{h}(r).sigmoid() * self.{w}(q.transpose(2, 3)).sigmoid()
"""

EMA = """
class {name}(nn.Module):
    def __init__(self, channels, factor=8):
        super().__init__()
        self.groups = factor
        c = channels // factor
        self.softmax = nn.Softmax(-1)
        self.agp = nn.AdaptiveAvgPool2d((1, 1))
        self.{gn} = nn.GroupNorm(c, c)
        self.{one} = nn.Conv2d(c, c, 1)
        self.{three} = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        b, _, h, w = x.shape
        u = x.reshape(b * self.groups, -1, h, w)
        rows, columns = u.mean(3, keepdim=True), u.mean(2, keepdim=True).transpose(2, 3)
        r, q = self.{one}(torch.cat([rows, columns], 2)).split([h, w], 2)
        x1 = self.{gn}(u * r.sigmoid() * q.transpose(2, 3).sigmoid())
        x2 = self.{three}(u)
        w1 = self.softmax(self.agp(x1).flatten(1)[:, None])
        w2 = self.softmax(self.agp(x2).flatten(1)[:, None])
        m = w1 @ x2.flatten(2) + w2 @ x1.flatten(2)
        return (u * m.view(-1, 1, h, w).sigmoid()).reshape(x.shape)
"""

SIMAM = """
class {name}(nn.Module):
    def __init__(self, c=None, e_lambda=1e-4):
        super().__init__()
        self.activaton = nn.Sigmoid()
        self.e_lambda = e_lambda

    def forward(self, x):
        n = x.shape[2] * x.shape[3] - 1
        d = (x - x.mean((2, 3), keepdim=True)).pow(2)
        y = d / (4 * (d.sum((2, 3), keepdim=True) / n + self.e_lambda)) + 0.5
        return x * self.activaton(y)
"""

GAM_GROUPED = """
class {name}(nn.Module):
    def __init__(self, c, h=16, group=4):
        super().__init__()
        self.channel_attention = nn.Sequential(nn.Linear(c, h), nn.ReLU(), nn.Linear(h, c))
        self.spatial_attention = nn.Sequential(
            nn.Conv2d(c, h, 7, padding=3, groups=group),
            nn.BatchNorm2d(h),
            nn.ReLU(),
            nn.Conv2d(h, c, 7, padding=3, groups=group),
            nn.BatchNorm2d(c),
        )

    def forward(self, x):
        x = x * self.channel_attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        s = self.spatial_attention(x).sigmoid()
        b, c, h, w = s.shape
        return x * s.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)
"""

GAM_REPLICATE = """
class GAM(nn.Module):
    def __init__(self, c, h=16):
        super().__init__()
        self.linear1 = nn.Linear(c, h)
        self.relu = nn.ReLU()
        self.linear2 = nn.Linear(h, c)
        self.conv1 = nn.Conv2d(c, h, 7, padding=3, padding_mode="replicate")
        self.conv2 = nn.Conv2d(h, c, 7, padding=3, padding_mode="replicate")
        self.norm1, self.norm2 = nn.BatchNorm2d(h), nn.BatchNorm2d(c)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        g = self.linear2(self.relu(self.linear1(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        x = x * g
        s = self.relu(self.norm1(self.conv1(x)))
        return x * self.sigmoid(self.norm2(self.conv2(s)))
"""
