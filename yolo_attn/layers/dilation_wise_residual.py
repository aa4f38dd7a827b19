"""Dilation-wise residual units, and a C2f of them.

Haoran Wei, Xu Liu, Shouchun Xu, Zhongjian Dai, Yaping Dai, Xiangyang Xu. DWRSeg: Rethinking
Efficient Acquisition of Multi-scale Contextual Information for Real-time Semantic Segmentation.
2022. https://arxiv.org/abs/2212.01173
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import check_channels
from yolo_attn.layers._common import activation, even_width, host_conv, kept_width
from yolo_attn.layers._split_stage import SplitStage
from yolo_attn.registry import register

PAPER = (
    "Wei, Liu, Xu, Dai, Dai, Xu: DWRSeg: Rethinking Efficient Acquisition of Multi-scale "
    "Contextual Information for Real-time Semantic Segmentation, 2022, arXiv 2212.01173"
)


@register(
    layer=True,
    paper=PAPER,
    cost="time O(15.5 N C^2), 15.5 C^2 parameters",
    placement="in place of the bottlenecks of the deep stages",
    width_options=("out_channels",),
)
class DWR(nn.Module):
    """Three dilations of one reduced map, mixed: ``y = x + f(W [d_1, d_3, d_5])``.

    ``h = f(conv_3x3 x)`` with C / 2 channels, d_r = f(conv_3x3 h) with dilation r and C, C/2 and
    C/2 channels; f = activation of a batch norm. This is the form of the YOLO forks. The paper's
    dilated convolutions are depthwise; no code of it is public.

    Args:
        channels: C of the input ``(B, C, H, W)``, even.
        out_channels: None or C, which the unit keeps.
        act: ``silu``, ``relu``, ``relu6``, ``gelu``, ``mish``, ``hardswish`` or ``none``; None is
            the model's own.

    Raises:
        YoloAttnError: An option's value is not accepted; an odd width.
    """

    def __init__(self, channels: int, out_channels: int | None = None, act: str | None = None):
        super().__init__()
        c = even_width("DWR", "channels", check_channels("DWR", channels))
        self.out_channels = kept_width("DWR", out_channels, c)
        conv, f = host_conv(), activation("DWR", "act", act)
        self.reduce = conv(c, c // 2, 3, 1, act=f)
        self.d1 = conv(c // 2, c, 3, 1, act=f)
        self.d3 = conv(c // 2, c // 2, 3, 1, d=3, act=f)
        self.d5 = conv(c // 2, c // 2, 3, 1, d=5, act=f)
        self.mix = conv(2 * c, c, 1, 1, act=f)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        h = self.reduce(x)
        return x + self.mix(torch.cat([self.d1(h), self.d3(h), self.d5(h)], 1))


@register(
    layer=True,
    paper=PAPER,
    cost="time O(N C^2 (2 + 4.4 n)) at equal widths and e = 1/2",
    placement="in place of the C2f of the deep stages",
    width_options=("out_channels",),
    repeats="n",
)
class C2fDWR(SplitStage):
    """C2f with DWR units for bottlenecks: ``z = cv2 [p, q_0, ..., q_n]``.

    ``[p, q_0] = cv1 x`` (halves), ``q_i = DWR(q_{i-1})``; cv1 and cv2 are 1 x 1 with norm and
    activation.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        shortcut: As in a row of C2f; the units always have their residual.
        e: Width of p and of each q, even, as a share of the output's.
        act: Of the units, see DWR.
        n: Number of units; in a model YAML the row's repeats.

    Raises:
        YoloAttnError: An option's value is not accepted; an odd width of the units.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        shortcut: bool = True,
        e: float = 0.5,
        act: str | None = None,
        n: int = 1,
    ):
        def unit(c: int) -> nn.Module:
            return DWR(even_width("C2fDWR", "width of a unit", c), None, act)

        super().__init__("C2fDWR", channels, out_channels, shortcut, e, n, unit)
