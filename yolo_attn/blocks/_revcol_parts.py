"""The parts of RevCol: channel norm, ConvNeXt-style block, level, column, image decoder.

Yuxuan Cai, Yizhuang Zhou, Qi Han, Jianjian Sun, Xiangwen Kong, Jun Li, Xiangyu Zhang.
Reversible Column Networks. ICLR 2023. https://arxiv.org/abs/2212.11696
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import module_list
from yolo_attn.ops.elementwise import add_product

PAPER = (
    "Cai, Zhou, Han, Sun, Kong, Li, Zhang: Reversible Column Networks, ICLR 2023, arXiv 2212.11696"
)
EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each position."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``, channels last in memory."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """``y = x + s * gamma * W2 gelu(W1 LN(dw(x)))``; dw a depthwise k x k convolution.

    Without layer scale there is no gamma, in the formula and in the state.

    Args:
        channels: C.
        hidden: Channels between W1 and W2.
        kernel_size: k, odd.
        layer_scale: Start value of gamma ``(C,)``; 0: no layer scale.
    """

    def __init__(self, channels: int, hidden: int, kernel_size: int = 3, layer_scale: float = 1e-6):
        super().__init__()
        self.dwconv = nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels
        )
        self.norm = ChannelNorm(channels)
        self.pwconv1 = nn.Linear(channels, hidden)
        self.pwconv2 = nn.Linear(hidden, channels)
        gamma = torch.full((channels,), layer_scale)
        self.gamma = nn.Parameter(gamma) if layer_scale > 0 else None

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``; `scale` ``(B,)`` is drop-path's factor s."""
        u = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        u = self.pwconv2(F.gelu(self.pwconv1(u))).permute(0, 3, 1, 2)
        factor = None if self.gamma is None else self.gamma[:, None, None]
        if scale is not None:
            s = scale[:, None, None, None]
            factor = s if factor is None else factor * s
        # One pass for the product and the sum; under autocast the sum stays in float32.
        u = u.to(x.dtype)
        return x + u if factor is None else add_product(x, u, factor.to(x.dtype))


class Downsample(nn.Sequential):
    """``LN(conv 2 x 2, stride 2)``.

    An odd side is continued by zeros (``border: pad``) or loses its last row or column (``drop``,
    as in the authors' code; a side shorter than the stride is continued all the same).
    """

    border = "pad"  # of checkpoints from before there was a choice

    def __init__(self, channels: int, out_channels: int, factor: int = 2, border: str = "pad"):
        super().__init__(
            nn.Conv2d(channels, out_channels, factor, stride=factor), ChannelNorm(out_channels)
        )
        self.factor = factor
        self.border = border

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C', ceil(H / factor), ceil(W / factor))``; drop: rounded down."""
        h, w = (self._missing(side) for side in x.shape[2:])
        return super().forward(F.pad(x, (0, w, 0, h)) if h or w else x)

    def _missing(self, side: int) -> int:
        """Zeros that continue a side; the convolution drops what it cannot use by itself."""
        missing = -side % self.factor
        return 0 if self.border == "drop" and side >= self.factor else missing


class Upsample(nn.Module):
    """``LN(W x)`` at every position, then each value repeated; all in that (cheap) order.

    What is too large is cut; where the finer map was odd and lost its last row, it is one short,
    and its own last row stands there once more.
    """

    def __init__(self, channels: int, out_channels: int, factor: int = 2):
        super().__init__()
        self.channel_reschedule = nn.Sequential(
            nn.Linear(channels, out_channels), nn.LayerNorm(out_channels, eps=EPS)
        )
        self.factor = factor

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """``(B, C, h, w) -> (B, C', *size)``."""
        y = self.channel_reschedule(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = F.interpolate(y, scale_factor=float(self.factor), mode="nearest")
        h, w = size
        if tuple(y.shape[2:]) == (h, w):
            return y
        if y.shape[2] < h:
            y = torch.cat([y, y[:, :, -1:]], dim=2)
        if y.shape[3] < w:
            y = torch.cat([y, y[:, :, :, -1:]], dim=3)
        return y[:, :, :h, :w]


class Fusion(nn.Module):
    """``up(coarser) + down(finer)``.

    Args:
        channels: Widths of all levels.
        level: i.
        has_up: Whether there is a coarser map to read.
        border: What becomes of an odd side of the finer map; see :class:`Downsample`.
    """

    def __init__(self, channels: Sequence[int], level: int, has_up: bool, border: str = "pad"):
        super().__init__()
        finer = channels[level - 1]
        self.down = Downsample(finer, channels[level], border=border) if level else None
        self.up = Upsample(channels[level + 1], channels[level]) if has_up else None

    def forward(self, down: Tensor, up: Tensor | None = None) -> Tensor:
        """The level's map ``(B, C_i, H_i, W_i)``."""
        y = down if self.down is None else self.down(down)
        return y if self.up is None or up is None else y + self.up(up, y.shape[2:])


class Level(nn.Module):
    """``F_i``: fusion, then ConvNeXt-style blocks.

    Args:
        channels: Widths of all levels.
        level: i.
        depth: Number of blocks.
        first: Index of the level's first block in the column.
        kernel_size: Of the blocks.
        first_column: No maps of a column before.
        layer_scale: Of the blocks.
        border: Of the fusion.
    """

    def __init__(
        self,
        channels: Sequence[int],
        level: int,
        depth: int,
        first: int,
        kernel_size: int,
        first_column: bool,
        layer_scale: float,
        border: str,
    ):
        super().__init__()
        self.first = first
        has_up = not first_column and level < len(channels) - 1
        self.fusion = Fusion(channels, level, has_up, border)
        c = channels[level]
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(c, 4 * c, kernel_size, layer_scale) for _ in range(depth)
        )

    def forward(
        self, down: Tensor, up: Tensor | None = None, scales: list[Tensor] | None = None
    ) -> Tensor:
        """``(B, C_i, H_i, W_i)``; `scales` are the column's drop-path factors, block by block."""
        y = self.fusion(down, up)
        for j, block in enumerate(self.blocks):
            y = block(y, None if scales is None else scales[self.first + j])
        return y


class Column(nn.Module):
    """One column: ``c_i = alpha_i * p_i + F_i(c_{i-1}, p_{i+1})``.

    The maps p of the column before have one factor a channel; the first column has none.

    Args:
        channels: Widths of the levels.
        depths: Blocks of each level.
        kernel_size: Of the blocks.
        first_column: No column before.
        layer_scale: Of the blocks; see :class:`ConvNeXtBlock`.
        border: Of the fusions; see :class:`Downsample`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int],
        kernel_size: int = 3,
        first_column: bool = False,
        layer_scale: float = 1e-6,
        border: str = "pad",
    ):
        super().__init__()
        self.levels: Sequence[nn.Module] = module_list(
            Level(
                channels,
                i,
                depth,
                sum(depths[:i]),
                kernel_size,
                first_column,
                layer_scale,
                border,
            )
            for i, depth in enumerate(depths)
        )
        self.alphas = nn.ParameterList(
            [] if first_column else [torch.full((c,), 0.5) for c in channels]
        )

    def raw_factors(self) -> list[nn.Parameter]:
        """``alpha_i (C_i,)`` as stored."""
        return list(self.alphas)


class Decoder(nn.Module):
    """Draws an image from the coarsest map: three doublings, then 4 x 4 pixels a position.

    Args:
        channels: Widths of the four levels, finest first.
        kernel_size: Of the blocks.
        image_channels: Channels of the image.
        depths: Blocks after each doubling; they have no expansion.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernel_size: int = 3,
        image_channels: int = 3,
        depths: Sequence[int] = (1, 1, 1),
    ):
        super().__init__()
        widths = list(reversed(channels))
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 1), ChannelNorm(b)) for a, b in zip(widths, widths[1:])
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(b, b, kernel_size) for _ in range(depth)))
            for b, depth in zip(widths[1:], depths)
        )
        self.out = nn.Conv2d(widths[-1], 16 * image_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_3, h, w) -> (B, image_channels, 32 h, 32 w)``, logits."""
        for project, blocks in zip(self.project, self.blocks):
            x = F.gelu(project(x))
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
            x = blocks(x)
        return F.pixel_shuffle(self.out(x), 4)


def reset(module: nn.Module) -> None:
    """Every convolution and linear map: truncated normal of deviation 0.02, bias 0."""
    for m in module.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
