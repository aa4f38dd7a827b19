"""Haar wavelet down-sampling.

Guoping Xu, Wentao Liao, Xuan Zhang, Chang Li, Xinwei He, Xinglong Wu. Haar wavelet downsampling: A
simple but effective downsampling module for semantic segmentation. Pattern Recognition 143 (2023).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import check_channels
from yolo_attn.layers._common import activation, apply_kernel, host_conv, out_width
from yolo_attn.ops.haar import haar_by_band, haar_kernel
from yolo_attn.ops.space_to_depth import pad_to_multiple
from yolo_attn.registry import register


@register(
    layer=True,
    paper="Xu, Liao, Zhang, Li, He, Wu: Haar wavelet downsampling: A simple but effective "
    "downsampling module for semantic segmentation, Pattern Recognition 143, 2023",
    cost="time O(N C C_out) for N input positions, 4 C C_out parameters: 4/9 of a 3 x 3 kernel",
    placement="in place of the strided convolutions of the backbone",
    width_options=("out_channels",),
)
class HWD(nn.Module):
    """Halve a map by its Haar transform: ``y = act(BN(W [B_0, B_1, B_2, B_3]))``.

    Of a cell ``a b / c d``: ``B_0 = (a + b + c + d) / 2``, ``B_1 = (a + b - c - d) / 2``,
    ``B_2 = (a - b + c - d) / 2``, ``B_3 = (a - b - c + d) / 2``, C channels each. Odd sides are
    completed with zeros. The transform is orthogonal: W and it together are one 2 x 2 convolution
    with stride 2, which is what runs where the map is larger than it. The bias in front of the BN
    is left out.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        act: ``relu`` (the paper), ``silu`` (YOLO forks), ``relu6``, ``gelu``, ``mish``,
            ``hardswish`` or ``none``; None is the model's own.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(self, channels: int, out_channels: int | None = None, act: str | None = "relu"):
        super().__init__()
        c1 = check_channels("HWD", channels)
        c2 = self.out_channels = out_width("HWD", out_channels, c1)
        self.conv = host_conv()(4 * c1, c2, 1, 1, act=activation("HWD", "act", act))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H/2, W/2)``, sides rounded up."""
        x, weight = pad_to_multiple(x, 2), self.conv.conv.weight
        if torch.jit.is_tracing() or x.numel() >= weight.numel():
            return apply_kernel(self.conv, x, haar_kernel(weight), 2)
        # A small map is transformed sooner than the kernel.
        return self.conv(haar_by_band(x))
