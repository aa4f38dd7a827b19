"""Asymmetric non-local blocks: values and keys at all positions, then the pyramid of anchors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._common import Plain, conv_bn, conv_bn_pairs

PYRAMID = (1, 3, 6, 8)


POOLS = {
    "average": [F.adaptive_avg_pool2d],
    "max": [F.adaptive_max_pool2d],
    "both": [F.adaptive_avg_pool2d, F.adaptive_max_pool2d],
}


def pyramid(x: Tensor, sampling: str) -> Tensor:
    """``(B, C, H, W) -> (B, C, 110)``, or 220 anchors by both."""
    b, c, _, _ = x.shape
    bins = [pool(x, s).view(b, c, -1) for pool in POOLS[sampling] for s in PYRAMID]
    return torch.cat(bins, dim=-1)


class _Asymmetric(Plain):
    """``BN(W [context, high])`` with ``context = W_o softmax(q k / sqrt(d)) v``."""

    def __init__(self, high: int, low: int, d: int, shared: bool, sampling: str):
        super().__init__()
        self.d, self.sampling = d, sampling
        self.f_key = conv_bn(low, d, 1, nn.ReLU(inplace=True))
        self.f_query = None if shared else conv_bn(high, d, 1, nn.ReLU(inplace=True))
        self.f_value = nn.Conv2d(low, d, 1, bias=False)
        self.W = nn.Conv2d(d, high, 1, bias=False)
        self.fuse = conv_bn(2 * high, high, 1, nn.ReLU(inplace=True) if shared else None)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        unit = ours.units[0]
        yield from conv_bn_pairs(self.f_key, unit.key)
        if self.f_query is not None:
            yield from conv_bn_pairs(self.f_query, unit.query)
        yield from [(self.f_value, unit.value), (self.W, unit.out)]
        yield from conv_bn_pairs(self.fuse, ours.fuse)

    def _forward(self, high: Tensor, low: Tensor) -> Tensor:
        b, _, h, w = high.shape
        key_map = self.f_key(low)
        # The authors evaluate the shared map a second time for the query; here it is not repeated.
        query = key_map if self.f_query is None else self.f_query(high)
        query = query.view(b, self.d, -1).permute(0, 2, 1)
        key = pyramid(key_map, self.sampling)
        value = pyramid(self.f_value(low), self.sampling).permute(0, 2, 1)
        similarity = torch.softmax(torch.matmul(query, key) * self.d**-0.5, dim=-1)
        context = torch.matmul(similarity, value).permute(0, 2, 1).contiguous()
        context = self.W(context.view(b, self.d, h, w))
        return self.fuse(torch.cat([context, high], 1))


class APNB(_Asymmetric):
    """One map asks its own pyramid."""

    def __init__(self, channels: int, sampling: str = "average"):
        super().__init__(channels, channels, channels // 2, True, sampling)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return self._forward(x, x)


class AFNB(_Asymmetric):
    """A deep map asks the pyramid of a shallow one."""

    def __init__(self, channels: list[int], sampling: str = "average"):
        high, low = channels
        super().__init__(high, low, max(high // 8, 8), False, sampling)

    def forward(self, xs: list[Tensor]) -> Tensor:
        """``[(B, C, H, W), (B, C_low, H', W')] -> (B, C, H, W)``."""
        return self._forward(*xs)
