"""Ultralytics' convolutions with a block behind them, that fusing, exporting and pickling respect.

The last convolution of a residual branch becomes one of these, with the block as child ``after``:
all of its tensors keep their names, and ``fuse()``, which sets ``forward`` to ``forward_fuse``,
keeps the block. Whatever wraps a module's ``forward`` instead is lost there without a word.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from ultralytics.nn.modules.conv import Conv, DWConv, GhostConv, RepConv


class _After:
    """Mixin: what the convolution gives goes through ``after``."""

    after: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C', H', W')``."""
        return self.after(super().forward(x))  # type: ignore[misc]

    def forward_fuse(self, x: Tensor) -> Tensor:
        """The same with the batch norm merged into the convolution."""
        return self.after(super().forward_fuse(x))  # type: ignore[misc]


class ConvAfter(_After, Conv):
    """``after(Conv(x))``."""


class DWConvAfter(_After, DWConv):
    """``after(DWConv(x))``."""


class RepConvAfter(_After, RepConv):
    """``after(RepConv(x))``."""


class GhostConvAfter(_After, GhostConv):
    """``after(GhostConv(x))``; it has no fused form of its own."""


_WITH_AFTER: dict[type, type] = {
    Conv: ConvAfter,
    DWConv: DWConvAfter,
    RepConv: RepConvAfter,
    GhostConv: GhostConvAfter,
}


def put_after(conv: nn.Module, block: nn.Module) -> bool:
    """Put a block behind a convolution, in place; no tensor is copied.

    Returns:
        Whether the convolution is of a class for which there is such a form. A second block goes
        behind the first.
    """
    inside: Any = conv
    if isinstance(conv, _After):
        inside.after = nn.Sequential(inside.after, block)
        return True
    if type(conv) not in _WITH_AFTER:
        return False
    inside.__class__ = _WITH_AFTER[type(conv)]
    inside.after = block
    return True


def out_width(conv: Any) -> int | None:
    """Output channels of one of these convolutions; None for another module."""
    if isinstance(conv, GhostConv):
        return int(conv.cv1.conv.out_channels + conv.cv2.conv.out_channels)
    if isinstance(conv, RepConv):
        return int(conv.c2)
    return int(conv.conv.out_channels) if isinstance(conv, Conv) else None


def in_width(conv: Any) -> int | None:
    """Input channels of one of these convolutions; None for another module."""
    if isinstance(conv, GhostConv):
        return int(conv.cv1.conv.in_channels)
    if isinstance(conv, RepConv):
        return int(conv.c1)
    return int(conv.conv.in_channels) if isinstance(conv, Conv) else None


def kernel_of(conv: Any) -> tuple[int, ...]:
    """Kernel of one of these convolutions (of GhostConv its first)."""
    if isinstance(conv, GhostConv):
        conv = conv.cv1
    if isinstance(conv, RepConv):
        return (3, 3)
    return tuple(conv.conv.kernel_size)
