"""Linear deformable convolution (first published as AKConv).

Xin Zhang, Yingze Song, Tingting Song, Degang Yang, Yichen Ye, Jie Zhou, Liming Zhang. LDConv:
Linear deformable convolution for improving convolutional neural networks. Image and Vision
Computing 2024. https://arxiv.org/abs/2311.11587
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import bias_of, check_channels, check_choice, check_int
from yolo_attn.layers._common import activation, apply_kernel, checked_stride, host_conv, out_width
from yolo_attn.ops.point_sampling import sample_points
from yolo_attn.registry import register

GRIDS = ("corner", "centre")
BORDERS = ("clamp", "reference")
MOST_POINTS = 49  # more is a channel count in their place


@register(
    layer=True,
    paper="Zhang, Song, Song, Yang, Ye, Zhou, Zhang: LDConv: Linear deformable convolution for "
    "improving convolutional neural networks, Image and Vision Computing 2024, arXiv 2311.11587",
    cost="time O(N C P (C_out + 18)) for P points and N output positions, memory O(P N C)",
    placement="in place of the strided convolutions",
    width_options=("out_channels",),
)
class LDConv(nn.Module):
    """A convolution of any number of moving points: ``y = act(BN(sum_n W_n x(p + g_n + o_n)))``.

    The points g start as a grid of ``round(sqrt P)`` columns, row by row, the last row incomplete,
    with its first point at the position itself (``corner``, as published: the output lies half a
    kernel further up and left than a padded convolution's) or its middle one (``centre``). The
    offsets o come from a 3 x 3 convolution of x, which starts at zero. x(.) is bilinear.

    Outside of the map x is its nearest pixel. The published code has those samples twice as large
    (four times in a corner), the last row and column included: ``border: reference``.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        points: P; note that it stands where a convolution's kernel size does: 9 for 3 x 3.
        stride: Of the output.
        act: ``silu`` (the authors), ``relu``, ``relu6``, ``gelu``, ``mish``, ``hardswish`` or
            ``none``; None is the model's own.
        grid: ``corner`` or ``centre``, see above.
        border: ``clamp`` or ``reference``, see above.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        points: int = 5,
        stride: int = 1,
        act: str | None = None,
        grid: str = "corner",
        border: str = "clamp",
    ):
        super().__init__()
        c1 = check_channels("LDConv", channels)
        c2 = self.out_channels = out_width("LDConv", out_channels, c1)
        n = self.points = check_int("LDConv", "points", points, maximum=MOST_POINTS)
        self.stride = checked_stride("LDConv", stride)
        check_choice("LDConv", "grid", grid, GRIDS)
        self.border = check_choice("LDConv", "border", border, BORDERS)
        side = self.side = max(1, round(n**0.5))
        centred = grid == "centre"
        self.first = ((-(-n // side) - 1) // 2, (side - 1) // 2) if centred else (0, 0)
        self.offset = nn.Conv2d(c1, 2 * n, 3, stride, 1)
        f = activation("LDConv", "act", act)
        self.conv = host_conv()(c1, c2, (n, 1), (n, 1), 0, act=f)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No offsets."""
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(bias_of(self.offset))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H/stride, W/stride)``."""
        places = self.offset(x)
        dtype = torch.float64 if places.dtype == torch.float64 else torch.float32
        height, width = places.shape[2:]
        moved = places.to(dtype).unflatten(1, (2, self.points))
        point = torch.arange(self.points, device=x.device)
        row = torch.div(point, self.side, rounding_mode="floor") - self.first[0]
        column = point % self.side - self.first[1]
        down = torch.arange(height, device=x.device) * self.stride
        right = torch.arange(width, device=x.device) * self.stride
        rows = moved[:, 0] + (row[:, None] + down).to(dtype)[:, :, None]
        columns = moved[:, 1] + (column[:, None] + right).to(dtype)[:, None, :]
        values = sample_points(x, rows.flatten(1, 2), columns.flatten(1, 2), "border")
        values = values.unflatten(2, (self.points, height))
        if self.border == "reference":
            values = values * (_twice(rows, x.shape[2]) * _twice(columns, x.shape[3]))[:, None]
        weight = self.conv.conv.weight.flatten(1)[:, :, None, None]
        return apply_kernel(self.conv, values.to(places.dtype).flatten(1, 2), weight)


def _twice(place: Tensor, length: int) -> Tensor:
    """2 where the published weights of a bilinear sample sum to 2, else 1."""
    return 1 + ((place < 0) | (place >= length - 1)).to(place.dtype)
