"""The wiring of the YOLOv7 models in plain torch, written from the paper and its tables.

Convolutions take their weights from a model in the order in which that model holds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ByHand:
    """Convolution, batch norm in eval mode, activation; each call takes the next weights."""

    def __init__(self, layers: Iterable[nn.Module], act: Callable[[Tensor], Tensor]):
        modules = [m for layer in layers for m in layer.modules()]
        convs = [m for m in modules if isinstance(m, nn.Conv2d)]
        norms = [m for m in modules if isinstance(m, nn.BatchNorm2d)]
        assert len(convs) == len(norms)
        self.left = list(zip(convs, norms))
        self.act = act

    def conv(self, x: Tensor, k: int, stride: int = 1) -> Tensor:
        return self.apply(self.left.pop(0), x, k, stride)

    def apply(self, pair: tuple, x: Tensor, k: int, stride: int = 1) -> Tensor:
        conv, norm = pair
        assert conv.kernel_size == (k, k) and conv.stride == (stride, stride)
        y = F.conv2d(x, conv.weight, stride=stride, padding=k // 2)
        mean, var, gamma, beta = (
            t[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return self.act((y - mean) / (var + 1e-3).sqrt() * gamma + beta)

    def elan(self, x: Tensor, n: int, every: int) -> Tensor:
        """Two 1x1; n 3x3 behind the second; all maps (every=1) or each second one, last first."""
        a = self.conv(x, 1)
        chain = [self.conv(x, 1)]
        for _ in range(n):
            chain.append(self.conv(chain[-1], 3))
        return self.conv(torch.cat([*chain[::-every], a], 1), 1)

    def two_way_down(self, x: Tensor, *skip: Tensor) -> Tensor:
        left = self.conv(half(x), 1)
        right = self.conv(self.conv(x, 1), 3, stride=2)
        return torch.cat([right, left, *skip], 1)

    def down_c(self, x: Tensor) -> Tensor:
        left = self.conv(self.conv(x, 1), 3, stride=2)
        return torch.cat([left, self.conv(half(x), 1)], 1)

    def sppcspc(self, x: Tensor) -> Tensor:
        cv1, cv2, cv3, cv4, cv5, cv6, cv7 = (self.left.pop(0) for _ in range(7))
        u = self.apply(cv4, self.apply(cv3, self.apply(cv1, x, 1), 3), 1)
        pools = torch.cat([u, largest(u, 5), largest(u, 9), largest(u, 13)], 1)
        y = self.apply(cv6, self.apply(cv5, pools, 1), 3)
        return self.apply(cv7, torch.cat([y, self.apply(cv2, x, 1)], 1), 1)

    def up(self, x: Tensor, lateral: Tensor) -> Tensor:
        coarse = self.conv(x, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return torch.cat([self.conv(lateral, 1), coarse], 1)


def half(x: Tensor) -> Tensor:
    return x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))


def largest(x: Tensor, k: int) -> Tensor:
    return F.max_pool2d(x, k, 1, k // 2)


def tiny(h: ByHand, x: Tensor) -> list[Tensor]:
    """yolov7-tiny: what Detect reads."""
    x = h.conv(h.conv(x, 3, stride=2), 3, stride=2)
    p2 = h.elan(x, 2, every=1)
    p3 = h.elan(half(p2), 2, every=1)
    p4 = h.elan(half(p3), 2, every=1)
    p5 = h.elan(half(p4), 2, every=1)
    a, b = h.conv(p5, 1), h.conv(p5, 1)
    c = h.conv(torch.cat([largest(b, 13), largest(b, 9), largest(b, 5), b], 1), 1)
    top = h.conv(torch.cat([c, a], 1), 1)
    n4 = h.elan(h.up(top, p4), 2, every=1)
    n3 = h.elan(h.up(n4, p3), 2, every=1)
    m4 = h.elan(torch.cat([h.conv(n3, 3, stride=2), n4], 1), 2, every=1)
    m5 = h.elan(torch.cat([h.conv(m4, 3, stride=2), top], 1), 2, every=1)
    return [h.conv(m, 3) for m in (n3, m4, m5)]


def three_levels(h: ByHand, x: Tensor, n: int, every_in_neck: int) -> list[Tensor]:
    """yolov7 (n=4, every map in the neck's ELANs) and yolov7x (n=6, each second one)."""
    for stride in (1, 2, 1, 2):
        x = h.conv(x, 3, stride)
    p2 = h.elan(x, n, every=2)
    p3 = h.elan(h.two_way_down(p2), n, every=2)
    p4 = h.elan(h.two_way_down(p3), n, every=2)
    p5 = h.elan(h.two_way_down(p4), n, every=2)
    top = h.sppcspc(p5)
    n4 = h.elan(h.up(top, p4), n, every_in_neck)
    n3 = h.elan(h.up(n4, p3), n, every_in_neck)
    m4 = h.elan(h.two_way_down(n3, n4), n, every_in_neck)
    m5 = h.elan(h.two_way_down(m4, top), n, every_in_neck)
    return [h.conv(m, 3) for m in (n3, m4, m5)]


def four_levels(h: ByHand, x: Tensor, n: int, down_c: bool, pairs: bool) -> list[Tensor]:
    """yolov7-w6 (n=4, strided convolutions), -e6 (6), -d6 (8), -e6e (6, ELANs in pairs)."""

    def elan(x: Tensor, every: int) -> Tensor:
        first = h.elan(x, n, every)
        return first + h.elan(x, n, every) if pairs else first

    def down(x: Tensor) -> Tensor:
        return h.down_c(x) if down_c else h.conv(x, 3, stride=2)

    x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
    x = h.conv(x, 3)
    p = []
    for _ in range(5):
        x = elan(down(x), every=2)
        p.append(x)
    _p2, p3, p4, p5, p6 = p
    top = h.sppcspc(p6)
    n5 = elan(h.up(top, p5), every=1)
    n4 = elan(h.up(n5, p4), every=1)
    n3 = elan(h.up(n4, p3), every=1)
    m4 = elan(torch.cat([down(n3), n4], 1), every=1)
    m5 = elan(torch.cat([down(m4), n5], 1), every=1)
    m6 = elan(torch.cat([down(m5), top], 1), every=1)
    return [h.conv(m, 3) for m in (n3, m4, m5, m6)]
