"""Global attention mechanism.

Yichao Liu, Zongru Shao, Nico Hoffmann.
Global Attention Mechanism: Retain Information to Enhance Channel-Spatial Interactions. 2021.
https://arxiv.org/abs/2112.05561
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from yolo_attn.blocks._common import (
    NARROWEST,
    check_channels,
    check_choice,
    check_int,
    reduced_channels,
)
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.registry import register


@register(
    paper="Liu, Shao, Hoffmann: Global Attention Mechanism: Retain Information to Enhance "
    "Channel-Spatial Interactions, 2021, arXiv 2112.05561",
    cost="time O(98 N C h / groups), memory O(N C), h = C/4: by far the heaviest of the gates "
    "(24.5 C^2 parameters with groups 1)",
    placement="behind every residual block in the paper; here after P4 or P5",
    width_options=("rd_channels",),
)
class GAM(nn.Module):
    """Gate every channel at every position, without pooling: ``z = x1 * s(x1)``, ``x1 = x * g(x)``.

    ``g = sigma(W2 relu(W1 x_n))`` at each position, W1: C -> h, W2: h -> C;
    ``s = sigma(BN(conv_7x7(relu(BN(conv_7x7(x1))))))``, C -> h -> C. All of them are (B, C, H, W).
    Not the identity at the start (about x/4).

    The convolutions' biases are left out, BN holds them. The copy in YOLO forks has no sigmoid on
    the channel map (``channel_gate: none``, a gain of any size and sign), convolutions in 4 groups
    (``groups: 4``) and a channel shuffle of s (``shuffle: 4``).

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: h as a share of C, at least 8.
        rd_channels: h itself; overrides `rd_ratio`.
        groups: Groups of both 7x7 convolutions; where it does not divide C and h, the largest
            smaller number that does.
        shuffle: Channel shuffle of s in this many groups, which mixes the groups of the
            convolutions (the paper, ResNet-50); 1 for none. Must divide C.
        channel_gate: ``sigmoid`` or ``none`` on ``W2 relu(W1 x)``.
        padding: ``zeros`` or ``replicate`` (another copy in YOLO forks) around both convolutions.
        rd_min: Smallest h that `rd_ratio` gives, 1 to 8 (1: what forks have).

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 4,
        rd_channels: int | None = None,
        groups: int = 1,
        shuffle: int = 1,
        channel_gate: str = "sigmoid",
        padding: str = "zeros",
        rd_min: int = NARROWEST,
    ):
        super().__init__()
        check_channels("GAM", channels)
        check_int("GAM", "groups", groups, maximum=1024)
        self.shuffle = check_int("GAM", "shuffle", shuffle, maximum=channels)
        check_channels(f"GAM: shuffle={shuffle}", channels, divisor=shuffle)
        self.channel_gate = check_choice("GAM", "channel_gate", channel_gate, ("sigmoid", "none"))
        check_choice("GAM", "padding", padding, ("zeros", "replicate"))
        check_int("GAM", "rd_min", rd_min, maximum=NARROWEST)
        h = reduced_channels("GAM", channels, rd_ratio, rd_channels, minimum=rd_min)
        common = math.gcd(channels, h)
        groups = next(g for g in range(min(groups, common), 0, -1) if common % g == 0)
        self.out_channels = channels
        self.fc1 = nn.Conv2d(channels, h, 1)
        self.fc2 = nn.Conv2d(h, channels, 1)
        # What both convolutions share.
        how: Any = {"padding": 3, "groups": groups, "bias": False, "padding_mode": padding}
        self.conv1 = nn.Conv2d(channels, h, 7, **how)
        self.norm1 = batch_norm(h)
        self.conv2 = nn.Conv2d(h, channels, 7, **how)
        self.norm2 = batch_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        x = x * self._channel_gate(x)
        return x * self._spatial_gate(x)

    def gate_map(self, x: Tensor) -> Tensor:
        """Product of both gates ``(B, C, H, W)`` for the input `x`."""
        g = self._channel_gate(x)
        return g * self._spatial_gate(x * g)

    def _channel_gate(self, x: Tensor) -> Tensor:
        m = self.fc2(self.fc1(x).relu())
        return m.sigmoid() if self.channel_gate == "sigmoid" else m

    def _spatial_gate(self, x: Tensor) -> Tensor:
        s = self.norm1(self.conv1(x)).relu()
        s = self.norm2(self.conv2(s)).sigmoid()
        if self.shuffle == 1:
            return s
        # Channel g * C/k + i goes to i * k + g.
        return s.unflatten(1, (self.shuffle, -1)).transpose(1, 2).flatten(1, 2)
