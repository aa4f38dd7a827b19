"""Any block made to start as the identity: pretrained weights around it keep their meaning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.errors import YoloAttnError


class IdentityStart(nn.Module):
    """``x + g * (block(x) - x)`` with one learned g that starts at 0; x is the (first) input.

    Not for a block that starts as the identity by itself: with g = 0 and block(x) = x neither of
    them would ever get a gradient.

    Args:
        cls: The block's class.
        channels: Its channels.
        options: Its options in order.

    Raises:
        YoloAttnError: The block changes the number of channels or has several outputs.
    """

    def __init__(self, cls: type[nn.Module], channels: int | list[int], options: list):
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
        self.g = nn.Parameter(torch.zeros(1))

    def strength(self) -> float:
        """How much of the block's change is let through: mean |g|, 0 at the start."""
        return float(self.g.detach().float().abs().mean())

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        """The block's inputs -> ``(B, C, H, W)`` of the first input's size."""
        first = x if isinstance(x, Tensor) else x[0]
        return first + self.g * (self.block(x) - first)
