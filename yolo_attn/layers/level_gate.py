"""What lets a new level into a trained neck without a change at the start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import check_channel_list
from yolo_attn.blocks.identity_start import STEP
from yolo_attn.errors import YoloAttnError
from yolo_attn.registry import register


@register(
    layer=True,
    inputs=2,
    paper="this project: the gate of identity_start (docs/identity-start.md)",
    cost="time O(N C); C parameters",
    identity_at_start=True,
    placement="behind the first stage of the way down that knows an added level; `levels` puts it",
)
class LevelGate(nn.Module):
    """``z = (1 - a) t + a n`` with ``a = 10 g`` for each channel; g is learned and starts at 0.

    For an overlay's ``levels: [P2, P3, P4, P5, {identity_start: true}]``: t is the stage that the
    base's head read, n the new stage that knows the finer level. At the start z is t, to the bit.
    The step size 10 is that of ``identity_start`` (docs/identity-start.md).

    Args:
        channels: Channels of t and n, which are equal.

    Raises:
        YoloAttnError: They are not.
    """

    def __init__(self, channels: list[int]):
        super().__init__()
        old, new = check_channel_list("LevelGate", channels, 2)
        if old != new:
            raise YoloAttnError(f"LevelGate: channels={channels} (accepted: two equal widths)")
        self.out_channels = old
        self.g = nn.Parameter(torch.zeros(old))

    def zero_started(self) -> Tensor:
        """The gates."""
        return self.g

    def forward(self, x: list[Tensor]) -> Tensor:
        """Two maps ``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        t, n = x
        a = STEP * self.g.view(-1, 1, 1)
        # Exact at both ends, as IdentityStart is.
        return ((1 - a) * t + a * n).to(t.dtype)
