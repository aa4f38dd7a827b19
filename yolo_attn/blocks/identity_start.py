"""Any block made to start as the identity: pretrained weights around it keep their meaning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.errors import YoloAttnError

STEP = 10.0  # chosen by scripts/identity_start.py


class IdentityStart(nn.Module):
    """``z = (1 - a) x + a block(x)`` with ``a = 10 g`` for each channel; x is the (first) input.

    g (C) is learned and starts at 0; with a = 1 the block stands alone. The factor is the gate's
    own step size: without it, or with one gate for all channels, a short training leaves the block
    unused or swings its gate. It was measured: docs/identity-start.md.

    Not for a block that starts as the identity by itself: with a = 0 and block(x) = x neither of
    them would ever get a gradient.

    Args:
        cls: The block's class.
        channels: Its channels.
        options: Its options in order.
        scalar: The form of before 0.2.0: one g for all channels, and ``a = g``.

    Raises:
        YoloAttnError: The block changes the number of channels or has several outputs.
    """

    step: float = 1.0  # of what was pickled before there was one

    def __init__(
        self,
        cls: type[nn.Module],
        channels: int | list[int],
        options: list,
        scalar: bool = False,
    ):
        super().__init__()
        self.block = cls(channels, *options)
        first = channels if isinstance(channels, int) else channels[0]
        out = getattr(self.block, "out_channels", first)
        if out != first:
            raise YoloAttnError(
                f"{cls.__name__}: identity_start needs as many output as input channels, got "
                f"{first} -> {out}"
            )
        self.out_channels = first
        self.step = 1.0 if scalar else STEP
        # One dimension: MuSGD would take two or four for a matrix or a filter.
        self.g = nn.Parameter(torch.zeros(1 if scalar else first))

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        """The block's inputs -> ``(B, C, H, W)`` of the first input's size."""
        first = x if isinstance(x, Tensor) else x[0]
        a = self._gate()
        # Written so that it is exact at both ends, a = 0 and a = 1.
        return ((1 - a) * first + a * self.block(x)).to(first.dtype)

    def strength(self) -> float:
        """Mean of ``|a|``: 0 at the start, 1 where the block stands alone."""
        return float(self._gate().detach().float().abs().mean())

    def _gate(self) -> Tensor:
        """The gates ``(C, 1, 1)``."""
        return self.step * self.g.view(-1, 1, 1)
