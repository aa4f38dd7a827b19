"""The layers of YOLOv7 that Ultralytics lacks.

Chien-Yao Wang, Alexey Bochkovskiy, Hong-Yuan Mark Liao. YOLOv7: Trainable bag-of-freebies sets new
state-of-the-art for real-time object detectors. CVPR 2023. https://arxiv.org/abs/2207.02696
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    check_channel_list,
    check_channels,
    check_int,
)
from yolo_attn.errors import YoloAttnError
from yolo_attn.layers._common import host_conv, kernel_side, out_width, width_share
from yolo_attn.registry import register

PAPER = (
    "Wang, Bochkovskiy, Liao: YOLOv7: Trainable bag-of-freebies sets new state-of-the-art for "
    "real-time object detectors, CVPR 2023, arXiv 2207.02696"
)


@register(
    layer=True,
    paper=PAPER,
    aliases=("SPPFCSPC",),
    cost="time O(N C^2), 27 C^2 parameters at equal widths",
    placement="between backbone and neck, as SPPF in YOLOv5 and YOLOv8",
    width_options=("out_channels",),
)
class SPPCSPC(nn.Module):
    """Pyramid pooling beside a plain branch: ``z = cv7[y, cv2(x)]``.

    ``y = cv6(cv5[u, p5(u), p9(u), p13(u)])`` with ``u = cv4(cv3(cv1(x)))``; pk is the maximum over
    k x k neighbours, brackets join channels, cv3 and cv6 are 3x3, the others 1x1, each with batch
    norm and activation. p9 and p13 are p5 applied twice and three times, which is the same: this is
    SPPFCSPC, too. Weights are named as in the authors' code.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        kernel_size: Side of the first maximum, odd; the others are that one again.
        e: Half the width inside as a share of the output's.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self, channels: int, out_channels: int | None = None, kernel_size: int = 5, e: float = 0.5
    ):
        super().__init__()
        c1 = check_channels("SPPCSPC", channels)
        c2 = self.out_channels = out_width("SPPCSPC", out_channels, c1)
        k = kernel_side("SPPCSPC", kernel_size)
        c = check_int("SPPCSPC", "hidden width", int(2 * c2 * width_share("SPPCSPC", e)))
        conv = host_conv()
        self.cv1 = conv(c1, c, 1, 1)
        self.cv2 = conv(c1, c, 1, 1)
        self.cv3 = conv(c, c, 3, 1)
        self.cv4 = conv(c, c, 1, 1)
        self.pool = nn.MaxPool2d(k, 1, k // 2)
        self.cv5 = conv(4 * c, c, 1, 1)
        self.cv6 = conv(c, c, 3, 1)
        self.cv7 = conv(2 * c, c2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H, W)``."""
        u = self.cv4(self.cv3(self.cv1(x)))
        p5 = self.pool(u)
        p9 = self.pool(p5)
        p13 = self.pool(p9)
        y = self.cv6(self.cv5(torch.cat([u, p5, p9, p13], 1)))
        return self.cv7(torch.cat([y, self.cv2(x)], 1))


@register(
    layer=True,
    paper=PAPER,
    cost="time O(N C^2), 6 C^2 parameters at equal widths",
    placement="between the stages of yolov7-e6, -d6 and -e6e",
    width_options=("out_channels",),
)
class DownC(nn.Module):
    """Halve the map on two ways: ``z = [cv2(cv1(x)), cv3(p2(x))]``.

    cv1 is 1x1 and keeps C, cv2 is 3x3 with stride 2, p2 the maximum over 2x2 windows, cv3 1x1;
    cv2 and cv3 give half of the output each. Odd sizes are rounded up.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output, even; default C.

    Raises:
        YoloAttnError: A width is not a positive whole number, or the output's is odd.
    """

    def __init__(self, channels: int, out_channels: int | None = None):
        super().__init__()
        c1 = check_channels("DownC", channels)
        c2 = self.out_channels = out_width("DownC", out_channels, c1)
        if c2 % 2:
            raise YoloAttnError(
                f"DownC: out_channels={c2} is not accepted (accepted: an even number)"
            )
        conv = host_conv()
        self.cv1 = conv(c1, c1, 1, 1)
        self.cv2 = conv(c1, c2 // 2, 3, 2)
        self.cv3 = conv(c1, c2 // 2, 1, 1)
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)  # as the convolution rounds

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H/2, W/2)``."""
        return torch.cat([self.cv2(self.cv1(x)), self.cv3(self.pool(x))], 1)


@register(
    layer=True,
    paper=PAPER,
    cost="time and memory O(N C), no parameters",
    placement="the first row of the YOLOv7 models with four levels",
)
class ReOrg(nn.Module):
    """Space to depth: each 2x2 window becomes one position with 4 C channels.

    Slices in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1), as in Ultralytics' `Focus`,
    which is this and a convolution in one row.

    Args:
        channels: C of the input ``(B, C, H, W)``; H and W are even.

    Raises:
        YoloAttnError: C is not a positive whole number; a map has an odd side.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.out_channels = 4 * check_channels("ReOrg", channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, 4 C, H/2, W/2)``."""
        if not torch.jit.is_tracing() and (x.shape[2] % 2 or x.shape[3] % 2):
            raise YoloAttnError(
                f"ReOrg: a map of {x.shape[2]}x{x.shape[3]} is not accepted (accepted: even height "
                "and width)"
            )
        slices = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return torch.cat(slices, 1)


@register(
    layer=True,
    paper=PAPER,
    inputs=2,
    cost="time and memory O(N C), no parameters",
    placement="after the two parallel ELANs of each stage of yolov7-e6e",
)
class Shortcut(nn.Module):
    """Sum of two maps: ``z = x_1 + x_2``.

    Args:
        channels: C of both inputs ``(B, C, H, W)``, twice.

    Raises:
        YoloAttnError: Not two equal widths.
    """

    def __init__(self, channels: list[int]):
        super().__init__()
        first, second = check_channel_list("Shortcut", channels, 2)
        if first != second:
            raise YoloAttnError(
                f"Shortcut: channels={[first, second]} is not accepted (accepted: two equal widths)"
            )
        self.out_channels = first

    def forward(self, x: list[Tensor]) -> Tensor:
        """Two maps ``(B, C, H, W)`` -> ``(B, C, H, W)``."""
        return x[0] + x[1]
