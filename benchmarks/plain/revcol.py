"""RevCol with autograd alone, and its fusion unit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ._common import Plain

EPS = 1e-6
WIDTHS, DEPTHS, COLUMNS, ALPHA_FLOOR = (16, 32, 64, 128), (1, 1, 2, 1), 4, 0.05


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def downsample(channels: int, out: int, factor: int = 2) -> nn.Module:
    """Strided convolution and norm."""
    conv = nn.Conv2d(channels, out, factor, stride=factor)
    return nn.Sequential(conv, LayerNorm2d(out, eps=EPS))


class UpSample(nn.Module):
    """Linear map, norm, nearest neighbour."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.channel_reschedule = nn.Sequential(
            nn.Linear(channels, out), nn.LayerNorm(out, eps=EPS)
        )
        self.up = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, h, w) -> (B, out, 2 h, 2 w)``."""
        y = self.channel_reschedule(x.permute(0, 2, 3, 1))
        return self.up(y.permute(0, 3, 1, 2))


class ConvNextBlock(nn.Module):
    """``x + gamma * W2 gelu(W1 LN(dw(x)))``."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class Column(nn.Module):
    """``c_i = alpha_i p_i + F_i(c_{i-1}, p_{i+1})``."""

    def __init__(self, first: bool):
        super().__init__()
        w = WIDTHS
        self.down = nn.ModuleList([nn.Identity(), *map(downsample, w, w[1:])])
        self.up = nn.ModuleList() if first else nn.ModuleList(map(UpSample, w[1:], w))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ConvNextBlock(c) for _ in range(depth))) for c, depth in zip(w, DEPTHS)
        )
        self.alphas = nn.ParameterList([] if first else [torch.zeros(1, c, 1, 1) for c in w])

    def level(self, i: int, x: Tensor, up: Tensor | None) -> Tensor:
        """``F_i``."""
        y = self.down[i](x)
        return self.blocks[i](y if up is None else y + self.up[i](up))

    def forward(self, x: Tensor, before: list[Tensor] | None, again: bool) -> list[Tensor]:
        """The column's four maps; `again`: compute the inside of F again in the backward pass."""
        maps: list[Tensor] = []
        for i in range(len(self.blocks)):
            args = (i, maps[-1] if maps else x, before[i + 1] if before and i < 3 else None)
            y = checkpoint(self.level, *args, use_reentrant=False) if again else self.level(*args)
            if before is not None:
                alpha = self.alphas[i]
                y = y + torch.sign(alpha) * alpha.abs().clamp(min=ALPHA_FLOOR) * before[i]
            maps.append(y)
        return maps


class RevColumns(Plain):
    """Four columns of nano width.

    `reversible`: the maps between the columns are kept and the inside of each level is computed
    again, as in the authors' code; otherwise the whole graph is kept.
    """

    def __init__(self, channels: int, reversible: bool = True):
        super().__init__()
        self.reversible = reversible
        self.stem = downsample(channels, WIDTHS[0], 4)
        self.columns = nn.ModuleList(Column(first=t == 0) for t in range(COLUMNS))

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield from zip(self.stem, ours.stem)
        for here, there in zip(self.columns, ours.columns):
            yield from zip(here.alphas, there.alphas)
            for i, level in enumerate(there.levels):
                if i:
                    yield from zip(here.down[i], level.fusion.down)
                if level.fusion.up is not None:
                    yield from [(here.up[i], level.fusion.up)]
                yield from zip(here.blocks[i], level.blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The last column's maps."""
        x = F.pad(x, (0, -x.shape[3] % 32, 0, -x.shape[2] % 32))
        x, maps = self.stem(x), None
        for column in self.columns:
            maps = column(x, maps, self.reversible and torch.is_grad_enabled())
        return maps


class RevColFusion(Plain):
    """``alpha * x + down(finer) + up(coarser)``."""

    def __init__(self, channels: list[int]):
        super().__init__()
        x, finer, coarser = channels
        self.alpha = nn.Parameter(torch.zeros(1, x, 1, 1))
        self.down = downsample(finer, x)
        self.up = UpSample(coarser, x)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        down, up = ours.bring
        return [(self.alpha, ours.alpha), *zip(self.down, down), (self.up, up)]

    def parts(self, xs: list[Tensor]) -> list[Tensor]:
        """The three maps."""
        x, finer, coarser = xs
        return [self.alpha * x, self.down(finer), self.up(coarser)]

    def forward(self, xs: list[Tensor]) -> Tensor:
        """``[(B, C, H, W), finer, coarser] -> (B, C, H, W)``."""
        x, down, up = self.parts(xs)
        return x + (up + down)


class RevColAttnFusion(RevColFusion):
    """The same three maps, weighted by a softmax over the levels at every position."""

    def __init__(self, channels: list[int]):
        super().__init__(channels)
        d, count = max(channels[0] // 8, 8), len(channels)
        self.reduce = nn.Conv2d(count * channels[0], d, 1)
        self.near = nn.Conv2d(d, d, 3, padding=1, groups=d)
        self.far = nn.Conv2d(d, d, 1)
        self.score = nn.Conv2d(d, count, 1)
        self.act = nn.GELU()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield from super().pairs(ours)
        yield self.reduce.weight, torch.cat([layer.weight for layer in ours.reduce], dim=1)
        biases = [layer.bias for layer in ours.reduce if layer.bias is not None]
        yield self.reduce.bias, sum(biases) if biases else torch.zeros_like(self.reduce.bias)
        yield from [(self.near, ours.near), (self.far, ours.far), (self.score, ours.score)]

    def forward(self, xs: list[Tensor]) -> Tensor:
        """``[(B, C, H, W), finer, coarser] -> (B, C, H, W)``."""
        parts = self.parts(xs)
        h = self.act(self.reduce(torch.cat(parts, dim=1)))
        u = self.score(self.act(self.near(h) + self.far(self.avg_pool(h))))
        weights = len(parts) * u.softmax(dim=1)
        return (weights.unsqueeze(2) * torch.stack(parts, dim=1)).sum(dim=1)
