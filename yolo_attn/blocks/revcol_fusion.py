"""RevCol's multi-level fusion as a neck block, plain and with attention over the levels.

The fusion: Yuxuan Cai, Yizhuang Zhou, Qi Han, Jianjian Sun, Xiangwen Kong, Jun Li, Xiangyu Zhang.
Reversible Column Networks. ICLR 2023. https://arxiv.org/abs/2212.11696
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    bias_of,
    check_channel_list,
    check_flag,
    module_list,
    reduced_channels,
)
from yolo_attn.blocks._revcol_parts import PAPER, Downsample, Upsample, reset
from yolo_attn.errors import YoloAttnError
from yolo_attn.registry import register


class _Fusion(nn.Module):
    """The maps that are summed: ``alpha * x``, and every other level brought to the size of x."""

    def __init__(self, block: str, channels: Sequence[int], levels: Any):
        super().__init__()
        x, *others = check_channel_list(block, channels, 2, 4)
        self.block = block
        self.levels = _ratios(block, levels, len(others))
        self.out_channels = x
        self.alpha = nn.Parameter(torch.full((x,), 0.5))
        self.bring = nn.ModuleList(
            Downsample(c, x, int(ratio)) if ratio > 1 else Upsample(c, x, int(1 / ratio))
            for c, ratio in zip(others, self.levels)
        )
        reset(self)

    def parts(self, xs: list[Tensor]) -> list[Tensor]:
        """Maps ``(B, C, H, W)``, x's own first."""
        x, *others = xs
        h, w = x.shape[2:]
        parts = [self.alpha.to(x.dtype)[:, None, None] * x]
        for k, (other, bring, ratio) in enumerate(zip(others, self.bring, self.levels), 2):
            larger, smaller = (other, x) if ratio > 1 else (x, other)
            factor = int(max(ratio, 1 / ratio))
            fits = [-(-n // factor) for n in larger.shape[2:]] == list(smaller.shape[2:])
            if not fits:
                raise YoloAttnError(
                    f"{self.block}: input {k} is {other.shape[2]} x {other.shape[3]}, the first "
                    f"{h} x {w}, which does not fit levels={self.levels} (accepted: {ratio:g} "
                    "times the height and width of the first, sides rounded up)"
                )
            parts.append(bring(other) if ratio > 1 else bring(other, (h, w)))
        return parts


def _ratios(block: str, levels: Any, count: int) -> list[float]:
    """The size of each further input relative to the first."""
    if levels is None:
        return {1: [0.5], 2: [2.0, 0.5], 3: [2.0, 0.5, 0.25]}[count]
    powers = [2.0**k for k in range(-5, 6) if k]
    if (
        not isinstance(levels, (list, tuple))
        or len(levels) != count
        or any(isinstance(v, bool) or v not in powers for v in levels)
    ):
        raise YoloAttnError(
            f"{block}: levels={levels!r} is not accepted (accepted: {count} numbers, one for each "
            "input but the first: its size relative to the first, 2, 4, ... or 0.5, 0.25, ...)"
        )
    return [float(v) for v in levels]


@register(
    paper=PAPER,
    inputs=(2, 4),
    levels=(1.0, 2.0, 0.5),
    cost="time O(N C (4 C_finer + C_coarser / 4)), memory O(N C)",
    placement="between the columns of RevCol; here in the neck, [N3, N4], then [N4, N3, N5], then "
    "[N5, N4] make one column",
)
class RevColFusion(_Fusion):
    """RevCol's fusion unit: ``y = alpha * x + sum of down(finer) + sum of up(coarser)``.

    down: a 2 x 2 convolution of stride 2, then layer norm over the channels; up: a linear map of
    the channels, layer norm, then each value repeated 2 x 2. alpha has one value a channel, 0.5 at
    the start (not the identity).

    Inputs: ``[x, others...]``; x is refined, the others may have any width. Blocks inserted at
    every level, finest first, read each other's outputs exactly as the levels of a column do.

    Args:
        channels: ``[C of x, C of the second input, ...]``, two to four.
        levels: Size of each input but the first, relative to the first: 2 is twice as high and
            wide, 0.25 a quarter. By default ``[0.5]``, ``[2, 0.5]`` or ``[2, 0.5, 0.25]``.

    Raises:
        YoloAttnError: An option's value is not accepted, or the sizes of the inputs do not fit.
    """

    def __init__(self, channels: list[int], levels: Sequence[float] | None = None):
        super().__init__("RevColFusion", channels, levels)

    def forward(self, xs: list[Tensor]) -> Tensor:
        """``[(B, C, H, W), ...] -> (B, C, H, W)``."""
        own, first, *rest = self.parts(xs)
        # The others lie channels last in memory: together first, then one pass that mixes.
        return own + sum(rest, first)


@register(
    paper=f"fusion: {PAPER}; the weights of the levels are this project's",
    inputs=(2, 4),
    levels=(1.0, 2.0, 0.5),
    cost="as RevColFusion, plus time O(N L C d), memory O(N d), L inputs, d = C/8",
    placement="where RevColFusion stands",
    width_options=("rd_channels",),
)
class RevColAttnFusion(_Fusion):
    """RevColFusion whose levels are weighted by attention: ``y = sum_l w_l * f_l``.

    ``f_l`` are the maps that RevColFusion sums (``alpha * x``, down(finer), up(coarser)), L of
    them, and ``w = L softmax_l(u)`` one weight a level and position. u sees all levels, near and
    far: with ``h = gelu(W1 [f_1 .. f_L])`` (d channels),
    ``u = W2 gelu(dw(h) + W3 mean(h))``, dw a depthwise 3 x 3 convolution and the mean one over all
    positions. W2 starts at zero, so that all weights are 1: plain RevColFusion.

    Args:
        channels: ``[C of x, C of the second input, ...]``, two to four.
        levels: Size of each input but the first, relative to the first; as in RevColFusion.
        rd_ratio: d as a share of C, at least 8.
        rd_channels: d itself; overrides `rd_ratio`.
        context: Whether u sees the mean over all positions (W3).

    Raises:
        YoloAttnError: An option's value is not accepted, or the sizes of the inputs do not fit.
    """

    def __init__(
        self,
        channels: list[int],
        levels: Sequence[float] | None = None,
        rd_ratio: float = 1 / 8,
        rd_channels: int | None = None,
        context: bool = True,
    ):
        name = "RevColAttnFusion"
        super().__init__(name, channels, levels)
        d = reduced_channels(name, self.out_channels, rd_ratio, rd_channels)
        count = len(channels)
        # One layer for each part instead of one for all: the parts need not be copied together.
        self.reduce = module_list(
            nn.Conv2d(self.out_channels, d, 1, bias=k == 0) for k in range(count)
        )
        self.near = nn.Conv2d(d, d, 3, padding=1, groups=d)
        self.far = nn.Linear(d, d, bias=False) if check_flag(name, "context", context) else None
        # A bias common to all positions may prefer a level as a whole.
        self.score = nn.Conv2d(d, count, 1)
        nn.init.kaiming_uniform_(self.near.weight, a=math.sqrt(5))
        for layer in self.reduce:
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(bias_of(self.score))

    def forward(self, xs: list[Tensor]) -> Tensor:
        """``[(B, C, H, W), ...] -> (B, C, H, W)``."""
        parts = self.parts(xs)
        weights = self._weights(parts).to(parts[0].dtype)
        return sum(w * part for w, part in zip(weights.split(1, dim=1), parts))

    def level_weights(self, xs: list[Tensor]) -> Tensor:
        """How much each input counts where ``(B, L, H, W)``; 1 everywhere is plain RevColFusion."""
        return self._weights(self.parts(xs))

    def _weights(self, parts: list[Tensor]) -> Tensor:
        h = F.gelu(sum(layer(part) for layer, part in zip(self.reduce, parts)))
        near = self.near(h)
        if self.far is not None:
            near = near + self.far(h.mean((2, 3)))[:, :, None, None]
        u = self.score(F.gelu(near))
        dtype = torch.promote_types(u.dtype, torch.float32)
        return u.softmax(1, dtype=dtype) * u.shape[1]
