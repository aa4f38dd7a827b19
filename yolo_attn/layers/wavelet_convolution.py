"""Wavelet convolution: a large receptive field by convolving the bands of a Haar transform.

Shahaf E. Finder, Roy Amoyal, Eran Treister, Oren Freifeld. Wavelet Convolutions for Large Receptive
Fields. ECCV 2024. https://arxiv.org/abs/2407.05848
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import check_channels, check_flag, check_int, module_list
from yolo_attn.layers._common import checked_stride, kept_width, kernel_side
from yolo_attn.ops.haar import haar_bands, haar_cells
from yolo_attn.ops.space_to_depth import pad_to_multiple
from yolo_attn.registry import register


@register(
    layer=True,
    paper="Finder, Amoyal, Treister, Freifeld: Wavelet Convolutions for Large Receptive Fields, "
    "ECCV 2024, arXiv 2407.05848",
    cost="time O(k^2 N C (1 + sum_l 4^-l)), k^2 C (1 + 4 L) parameters",
    placement="in place of a depthwise convolution, or of a bottleneck's second convolution",
    width_options=("out_channels",),
)
class WTConv(nn.Module):
    """Depthwise convolutions of the map and of its Haar bands: ``y = s (dw_k x + b) + R_0``.

    ``A_0 = x``; level l transforms A_l into four bands a channel, of half the size, and convolves
    each: ``Q_l = v_l * dw_k(bands)``; ``A_{l+1}`` is the band of means. Back from the last level,
    ``R_l`` is the inverse transform of Q_l with ``R_{l+1}`` added to its means. A stride keeps
    every so many rows and columns of y. The field of level l is 2^l k wide. Odd sides are completed
    with zeros on each level.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: None or C, which the layer keeps.
        kernel_size: k, odd.
        stride: Of the output.
        levels: L.
        bias: Whether there is b.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 5,
        stride: int = 1,
        levels: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        c = check_channels("WTConv", channels)
        self.out_channels = kept_width("WTConv", out_channels, c)
        k = kernel_side("WTConv", kernel_size)
        self.stride = checked_stride("WTConv", stride)
        count = check_int("WTConv", "levels", levels, maximum=8)
        check_flag("WTConv", "bias", bias)
        self.base = nn.Conv2d(c, c, k, padding=k // 2, groups=c, bias=bias)
        self.levels = module_list(
            nn.Conv2d(4 * c, 4 * c, k, padding=k // 2, groups=4 * c, bias=False)
            for _ in range(count)
        )
        self.base_scale = nn.Parameter(torch.ones(c))
        self.level_scales = nn.ParameterList(torch.full((4 * c,), 0.1) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H/stride, W/stride)``, sides rounded up."""
        maps, bands = [x], []
        for conv, scale in zip(self.levels, self.level_scales):
            cells = haar_bands(pad_to_multiple(maps[-1], 2))
            maps.append(cells[:, :, 0])
            bands.append(_scaled(conv, cells.flatten(1, 2), scale).unflatten(1, (-1, 4)))
        means: Tensor | None = None
        step = self.stride
        for level in reversed(range(len(bands))):
            q, size = bands[level], maps[level].shape[2:]
            if means is not None:
                q = torch.cat([q[:, :, :1] + means[:, :, None], q[:, :, 1:]], 2)
            if level or step % 2:
                means = haar_cells(q)[:, :, : size[0], : size[1]]
            else:  # only the first pixel of a cell is kept
                means, step = 0.5 * q.sum(2), step // 2
        assert means is not None
        y = _scaled(self.base, x, self.base_scale, self.stride)
        return y + (means if step == 1 else means[:, :, ::step, ::step])


def _scaled(conv: nn.Conv2d, x: Tensor, scale: Tensor, stride: int = 1) -> Tensor:
    """``scale * conv(x)``, the scale in the kernel."""
    bias = None if conv.bias is None else conv.bias * scale
    weight = conv.weight * scale[:, None, None, None]
    pad = conv.kernel_size[0] // 2
    return F.conv2d(x, weight, bias, stride, pad, 1, conv.groups)
