"""Dimension-aware selective integration (HCF-Net).

Shibiao Xu, ShuChen Zheng, Wenhao Xu, Rongtao Xu, Changwei Wang, Jiguang Zhang, Xiaoqiang Teng, Ao
Li, Li Guo. HCF-Net: Hierarchical Context Fusion Network for Infrared Small Object Detection. ICME
2024. https://arxiv.org/abs/2403.10778
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    check_channel_list,
    check_choice,
    check_flag,
    check_width,
)
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.blocks.patch_aware_attention import PAPER
from yolo_attn.errors import YoloAttnError
from yolo_attn.registry import register

SIDES = ("low", "high")


@register(
    paper=PAPER,
    inputs=(2, 3),
    levels=(1.0, 2.0, 0.5),
    cost="time O(N O (C + 9 C_high + C_low / 4 + O)), memory O(N O)",
    placement="skip connections of a U-Net; here those into the neck: [P3, P2, P4], [P4, P3, P5]",
    width_options=("out_channels",),
)
class DASI(nn.Module):
    """A level chooses, channel by channel and place by place, between its neighbours.

    ``y = relu(BN(T m + d))`` with ``m = a * l + (1 - a) * h``, ``a = sigma(d)``, ``d = W_d x``,
    ``l = up(W_l low)`` (bilinear, corners aligned), ``h = conv3x3 high`` (stride 2, dilation 2).
    Not the identity at the start.

    Inputs: ``[x, high, low]``. x is refined and gives the output its size; ``high`` is the next
    shallower level (about twice x's height and width: ceil(size / 2) must be x's), ``low`` a deeper
    one (any size up to x's). On the skip connections, as in the paper, ``[[P3, P2, P4], 1, DASI,
    []]`` and ``[[P4, P3, P5], 1, DASI, []]``: the heads from stride 8 on see them, where ``[N4, N3,
    N5]`` would refine the map of one head only. The widths may be any; in the paper they are C, C/2
    and 2C.

    At the ends of the pyramid a neighbour is missing: ``[x, low]``, or ``[x, high]`` with
    ``second: high``. m is then ``M [d_i, l_i]`` (or ``h_i``) for each quarter i of the channels,
    with one matrix M, O/2 -> O/4, for all quarters (halves, or the whole, where 4 does not divide
    O). The authors' code pairs the *first* quarter of d with every quarter of h when low is
    missing: ``first_quarter: true``. Biases that the BN swallows are left out.

    Args:
        channels: ``[C of x, C of high, C of low]``, or two of them: see `second`.
        out_channels: O; C of x by default.
        second: What the second of two inputs is, ``low`` or ``high``.
        first_quarter: Without low, whether all quarters of h meet the first quarter of d.

    Raises:
        YoloAttnError: An option's value is not accepted; in `forward`, the sizes do not fit.
    """

    def __init__(
        self,
        channels: list[int],
        out_channels: int | None = None,
        second: str = "low",
        first_quarter: bool = False,
    ):
        super().__init__()
        widths = check_channel_list("DASI", channels, 2, 3)
        c = widths[0]
        o = c if out_channels is None else check_width("DASI", "out_channels", out_channels)
        check_choice("DASI", "second", second, SIDES)
        check_flag("DASI", "first_quarter", first_quarter)
        self.out_channels = o
        self.sides = ("high", "low") if len(widths) == 3 else (second,)
        self.first_quarter = first_quarter and self.sides == ("high",)
        both = len(self.sides) == 2
        # With one neighbour all up to the BN is linear: every bias only moves the BN's mean.
        self.skip = nn.Conv2d(c, o, 1, bias=both)
        for side, width in zip(self.sides, widths[1:]):
            if side == "low":
                self.low = nn.Conv2d(width, o, 1, bias=both)
            else:
                self.high = nn.Conv2d(width, o, 3, stride=2, padding=2, dilation=2, bias=both)
        self.quarter = o // math.gcd(o, 4)
        self.mix = None if both else nn.Conv2d(2 * self.quarter, self.quarter, 1, bias=False)
        self.tail = nn.Conv2d(o, o, 1, bias=False)
        self.norm = batch_norm(o)

    def forward(self, xs: list[Tensor]) -> Tensor:
        """``[(B, C, H, W), (B, C_high, 2H, 2W), (B, C_low, H/2, W/2)] -> (B, O, H, W)``."""
        self._check_sizes(xs)
        d = self.skip(xs[0])
        m = self._select(d, *xs[1:]) if self.mix is None else self._mix(d, xs[1])
        return F.relu(self.norm(self.tail(m) + d))

    def gate_map(self, xs: list[Tensor]) -> Tensor:
        """The weights a ``(B, O, H, W)`` of low; those of high are ``1 - a``.

        Raises:
            YoloAttnError: The block has two inputs and so no gate.
        """
        if self.mix is not None:
            raise YoloAttnError("DASI: with two inputs there is no gate (three inputs have one)")
        return self.skip(xs[0]).sigmoid()

    def _select(self, d: Tensor, high: Tensor, low: Tensor) -> Tensor:
        h = self.high(high)
        # h + a (l - h): two maps are kept for the gradient instead of four.
        return h + d.sigmoid() * (_resize(self.low(low), d) - h)

    def _mix(self, d: Tensor, other: Tensor) -> Tensor:
        """``M [d_i, o_i]``, quarters as images of a larger batch, without the concatenation."""
        assert self.mix is not None
        of_d, of_other = self.mix.weight.split(self.quarter, dim=1)
        side = self.low(other) if self.sides == ("low",) else self.high(other)
        # M and the resize commute: M acts on the small map.
        side = _resize(self._by_quarter(side, of_other), d)
        if self.first_quarter:
            first = F.conv2d(d[:, : self.quarter], of_d)
            return side + torch.cat([first] * (d.shape[1] // self.quarter), dim=1)
        return side + self._by_quarter(d, of_d)

    def _by_quarter(self, x: Tensor, weight: Tensor) -> Tensor:
        quarters = x.reshape(-1, self.quarter, *x.shape[2:])
        return F.conv2d(quarters, weight).reshape(x.shape)

    def _check_sizes(self, xs: list[Tensor]) -> None:
        if torch.jit.is_tracing():
            return
        height, width = xs[0].shape[2:]
        for side, other in zip(self.sides, xs[1:]):
            h, w = other.shape[2:]
            if side == "high" and ((h + 1) // 2, (w + 1) // 2) != (height, width):
                wanted = "twice its height and width"
            elif side == "low" and (h > height or w > width):
                wanted = "at most its size"
            else:
                continue
            raise YoloAttnError(
                f"DASI: the input {side} is {h}x{w} and x is {height}x{width}; {side} must have "
                f"{wanted} (order of inputs: {', '.join(('x', *self.sides))}; with two inputs the "
                "option second says which the second is)"
            )


def _resize(x: Tensor, like: Tensor) -> Tensor:
    if not torch.jit.is_tracing() and x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)
