"""Efficient up-convolution block.

Md Mostafijur Rahman, Mustafa Munir, Radu Marculescu. EMCAD: Efficient Multi-scale Convolutional
Attention Decoding for Medical Image Segmentation. CVPR 2024. https://arxiv.org/abs/2405.06880
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import bias_of, check_channels, check_choice
from yolo_attn.layers._common import ACTIVATIONS, activation, host_conv, kernel_side, out_width
from yolo_attn.registry import register

# Of the authors' own list.
SLOPED: dict[Any, Callable[[], nn.Module]] = {
    "leaky_relu": partial(nn.LeakyReLU, 0.2),
    "prelu": partial(nn.PReLU, init=0.2),
}


@register(
    layer=True,
    paper="Rahman, Munir, Marculescu: EMCAD: Efficient Multi-scale Convolutional Attention "
    "Decoding for Medical Image Segmentation, CVPR 2024, arXiv 2405.06880",
    cost="time O(4 N C (k^2 + C_out)), C (k^2 + C_out) parameters",
    placement="in place of the neck's nearest-neighbour up-sampling",
    width_options=("out_channels",),
)
class EUCB(nn.Module):
    """Enlarge by repeating pixels, smooth, mix: ``y = W act(BN(dw_k up x)) + b``.

    up doubles the map by its nearest pixel. The published channel shuffle of C groups is the
    identity and is left out. YOLO forks have SiLU and keep the width.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        kernel_size: k, odd.
        act: ``relu`` (the paper), ``silu``, ``relu6``, ``gelu``, ``mish``, ``hardswish``,
            ``leaky_relu`` (slope 0.2), ``prelu`` (from 0.2) or ``none``; None is the model's own.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        act: str | None = "relu",
    ):
        super().__init__()
        c1 = check_channels("EUCB", channels)
        c2 = self.out_channels = out_width("EUCB", out_channels, c1)
        k = kernel_side("EUCB", kernel_size)
        check_choice("EUCB", "act", act, [None, "none", *ACTIVATIONS, *SLOPED])
        f: Any = SLOPED[act]() if act in SLOPED else activation("EUCB", "act", act)
        self.smooth = host_conv()(c1, c1, k, 1, g=c1, act=f)
        self.mix = nn.Conv2d(c1, c2, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights of 0.02, no bias."""
        nn.init.normal_(self.smooth.conv.weight, std=0.02)
        nn.init.normal_(self.mix.weight, std=0.02)
        nn.init.zeros_(bias_of(self.mix))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, 2 H, 2 W)``."""
        return self.mix(self.smooth(F.interpolate(x, scale_factor=2.0, mode="nearest")))
