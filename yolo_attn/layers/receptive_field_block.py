"""Receptive field block.

Songtao Liu, Di Huang, Yunhong Wang. Receptive Field Block Net for Accurate and Fast Object
Detection. ECCV 2018. https://arxiv.org/abs/1711.07767
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    check_channels,
    check_choice,
    check_int,
    check_number,
    module_list,
)
from yolo_attn.errors import YoloAttnError
from yolo_attn.layers._common import checked_stride, host_conv, out_width
from yolo_attn.registry import register


class Step(NamedTuple):
    """One convolution of a branch."""

    width: int
    kernel: int | tuple[int, int]
    strided: bool = False
    dilation: int = 1
    relu: bool = True


def _basic(i: int, v: int) -> list[list[Step]]:
    """The paper's block: dilations v, v + 1, 2 v + 1."""
    return [
        [Step(2 * i, 1, True), Step(2 * i, 3, dilation=v, relu=False)],
        [Step(i, 1), Step(2 * i, 3, True), Step(2 * i, 3, dilation=v + 1, relu=False)],
        [
            *(Step(i, 1), Step(i // 2 * 3, 3), Step(2 * i, 3, True)),
            Step(2 * i, 3, dilation=2 * v + 1, relu=False),
        ],
    ]


def _small(i: int, v: int) -> list[list[Step]]:
    """RFB-s, for shallow maps: narrow branches, thin kernels."""
    return [
        [Step(i, 1), Step(i, 3, dilation=1, relu=False)],
        [Step(i, 1), Step(i, (3, 1)), Step(i, 3, dilation=3, relu=False)],
        [Step(i, 1), Step(i, (1, 3)), Step(i, 3, dilation=3, relu=False)],
        [
            *(Step(i // 2, 1), Step(i // 4 * 3, (1, 3)), Step(i, (3, 1))),
            Step(i, 3, dilation=5, relu=False),
        ],
    ]


def _extended(i: int, v: int) -> list[list[Step]]:
    """RFB-E: a fourth branch of 1 x 7 and 7 x 1, dilation 7."""
    return [
        [Step(2 * i, 1, True), Step(2 * i, 3, dilation=1, relu=False)],
        [Step(i, 1), Step(2 * i, 3, True), Step(2 * i, 3, dilation=3, relu=False)],
        [
            *(Step(i, 1), Step(i // 2 * 3, 3), Step(2 * i, 3, True)),
            Step(2 * i, 3, dilation=5, relu=False),
        ],
        [
            *(Step(i, 1), Step(i // 2 * 3, (1, 7)), Step(2 * i, (7, 1), True)),
            Step(2 * i, 3, dilation=7, relu=False),
        ],
    ]


def _fork(i: int, v: int) -> list[list[Step]]:
    """The copy in YOLO forks: dilations v, v + 2, v + 4, no ReLU behind the first convolutions."""
    return [
        [Step(i, 1, relu=False), Step(2 * i, 3, True), Step(2 * i, 3, dilation=v, relu=False)],
        [Step(i, 1, relu=False), Step(2 * i, 3, True), Step(2 * i, 3, dilation=v + 2, relu=False)],
        [
            *(Step(i, 1, relu=False), Step(i // 2 * 3, 3), Step(2 * i, 3, True)),
            Step(2 * i, 3, dilation=v + 4, relu=False),
        ],
    ]


# Variant -> its branches, and the default of map_reduce.
VARIANTS = {
    "basic": (_basic, 8),
    "small": (_small, 4),
    "extended": (_extended, 8),
    "fork": (_fork, 8),
}


@register(
    layer=True,
    paper="Liu, Huang, Wang: Receptive Field Block Net for Accurate and Fast Object Detection, "
    "ECCV 2018, arXiv 1711.07767",
    cost="time O(N (C^2 / 2 + 2.6 C^2 + 0.75 C C_out + C C_out)): at equal widths half a 3 x 3 "
    "convolution",
    placement="behind the backbone, as SPPF; on shallow maps the small variant",
    width_options=("out_channels",),
    dead_parameters={
        f"branches.{i}.{i + 1}.bn.bias": "cancelled by the batch norm behind W" for i in range(3)
    },
)
class RFB(nn.Module):
    """Branches of growing kernel and dilation: ``y = relu(s W [b_1, b_2, ...] + W_0 x)``.

    Every convolution has a batch norm; each branch ends in a dilated 3 x 3 without ReLU. i is
    C / `map_reduce`. ``basic``, dilations v, v + 1, 2v + 1: 1x1; 1x1, 3x3; 1x1, 3x3, 3x3.
    ``small`` (RFB-s), dilations 1, 3, 3, 5: 1x1; 1x1, 3x1; 1x1, 1x3; 1x1, 1x3, 3x1. ``extended``
    (RFB-E), dilations 1, 3, 5, 7: as basic and a branch 1x1, 1x7, 7x1. ``fork`` (YOLO forks),
    dilations v, v + 2, v + 4, no ReLU behind the first 1x1. Widths inside follow C.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        stride: Of the output; 1 with ``small``.
        variant: ``basic``, ``small``, ``extended`` or ``fork``, see above.
        scale: s.
        visual: v of ``basic`` and ``fork``.
        map_reduce: C / i; default 8, with ``small`` 4. i is at least 2 (``small``: 4).
        groups: Of the branches' convolutions; a divisor of all widths.

    Raises:
        YoloAttnError: An option's value is not accepted; too few channels.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        stride: int = 1,
        variant: str = "basic",
        scale: float = 0.1,
        visual: int = 1,
        map_reduce: int | None = None,
        groups: int = 1,
    ):
        super().__init__()
        c1 = check_channels("RFB", channels)
        c2 = self.out_channels = out_width("RFB", out_channels, c1)
        s = checked_stride("RFB", stride)
        branches, reduce = VARIANTS[check_choice("RFB", "variant", variant, VARIANTS)]
        self.scale = check_number("RFB", "scale", scale, 0.0, 100.0)
        check_int("RFB", "visual", visual, maximum=64)
        if map_reduce is not None:
            reduce = check_int("RFB", "map_reduce", map_reduce, maximum=c1)
        check_int("RFB", "groups", groups, maximum=c1)
        if variant == "small" and s != 1:
            raise YoloAttnError(
                f"RFB: stride={s} is not accepted with variant='small' (accepted: 1)"
            )
        steps = branches(c1 // reduce, visual)
        for width in {c1} | {step.width for branch in steps for step in branch}:
            if width < 1 or width % groups:
                raise YoloAttnError(
                    f"RFB: channels={c1} is not accepted with map_reduce={reduce}, groups={groups} "
                    f"(a branch would have {width} channels)"
                )
        conv = host_conv()
        self.branches = module_list(self._branch(conv, c1, branch, s, groups) for branch in steps)
        self.mix = conv(sum(branch[-1].width for branch in steps), c2, 1, 1, act=False)
        self.shortcut = conv(c1, c2, 1, s, act=False)

    @staticmethod
    def _branch(conv: Any, width: int, steps: list[Step], stride: int, groups: int) -> nn.Module:
        layers = []
        for step in steps:
            kernel = step.kernel
            # Of thin kernels, too, the padding is half of the kernel.
            pad = None if isinstance(kernel, int) else tuple(k // 2 for k in kernel)
            s, act = stride if step.strided else 1, nn.ReLU() if step.relu else False
            layers.append(conv(width, step.width, kernel, s, pad, groups, step.dilation, act))
            width = step.width
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H/stride, W/stride)``."""
        y = self.mix(torch.cat([branch(x) for branch in self.branches], 1))
        return F.relu(self.shortcut(x) + self.scale * y)
