"""Modulated deformable convolution.

Xizhou Zhu, Han Hu, Stephen Lin, Jifeng Dai. Deformable ConvNets v2: More Deformable, Better
Results. CVPR 2019. https://arxiv.org/abs/1811.11168
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import bias_of, check_channels, check_flag, check_int
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.errors import YoloAttnError
from yolo_attn.layers._common import (
    MOST_DILATION,
    checked_stride,
    kernel_side,
    out_width,
    plain_activation,
)
from yolo_attn.ops.deformable import deformable_convolution
from yolo_attn.registry import register


@register(
    layer=True,
    paper="Zhu, Hu, Lin, Dai: Deformable ConvNets v2: More Deformable, Better Results, CVPR 2019, "
    "arXiv 1811.11168",
    cost="time O(N k^2 C (C_out / groups + 3 G k^2) + 4 N k^2 C), memory O(k^2 N C), for N output "
    "positions and G deformable groups",
    placement="in place of the 3 x 3 convolutions of the last stages' bottlenecks",
    width_options=("out_channels",),
)
class DCNv2(nn.Module):
    """A convolution whose taps move and fade: ``y = act(BN(sum_t W_t m_t x(p + t + o_t) + b))``.

    The offsets o (2 G k^2 channels, y before x tap by tap) and the logits of ``m = sigma(.)``
    (G k^2) come from one convolution of x with kernel, stride, padding and dilation of the layer;
    x(.) is bilinear, zero outside of the map. That convolution starts at zero: a plain convolution
    of half the size. Runs in float32 whatever the precision. Without norm, the paper's layer alone.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        kernel_size: k, odd.
        stride: Of the output.
        padding: Zeros around the map; default keeps its size.
        dilation: Distance of the taps.
        groups: Groups of the convolution; they divide both widths.
        deform_groups: G, groups of channels with taps of their own; a divisor of C.
        bias: Whether there is b; dead in training where a norm follows, so only without.
        norm: Whether batch norm and activation follow.
        act: ``silu``, ``relu``, ``relu6``, ``gelu``, ``mish``, ``hardswish`` or ``none``; None is
            the model's own; with `norm`.

    Raises:
        YoloAttnError: An option's value is not accepted; groups that do not divide a width.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
        norm: bool = True,
        act: str | None = None,
    ):
        super().__init__()
        c1 = check_channels("DCNv2", channels)
        c2 = self.out_channels = out_width("DCNv2", out_channels, c1)
        k = kernel_side("DCNv2", kernel_size)
        self.stride = checked_stride("DCNv2", stride)
        self.dilation = check_int("DCNv2", "dilation", dilation, maximum=MOST_DILATION)
        same = self.dilation * (k - 1) // 2
        self.padding = (
            same if padding is None else check_int("DCNv2", "padding", padding, 0, maximum=4096)
        )
        self.groups = check_int("DCNv2", "groups", groups, maximum=c1)
        self.deform_groups = check_int("DCNv2", "deform_groups", deform_groups, maximum=c1)
        check_flag("DCNv2", "bias", bias)
        check_flag("DCNv2", "norm", norm)
        if c1 % self.groups or c2 % self.groups or c1 % self.deform_groups:
            raise YoloAttnError(
                f"DCNv2: groups={groups}, deform_groups={deform_groups} are not accepted with "
                f"{c1} and {c2} channels (accepted: divisors of both widths, of {c1})"
            )
        self.weight = nn.Parameter(torch.empty(c2, c1 // self.groups, k, k))
        self.bias = nn.Parameter(torch.empty(c2)) if bias and not norm else None
        self.points = nn.Conv2d(
            c1, 3 * self.deform_groups * k * k, k, self.stride, self.padding, self.dilation
        )
        self.norm = batch_norm(c2) if norm else nn.Identity()
        self.act = plain_activation("DCNv2", "act", act) if norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform weights up to ``1 / sqrt(C k^2)``; no offsets, no bias."""
        bound = (self.points.in_channels * self.weight[0, 0].numel()) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        for zero in (self.bias, self.points.weight, bias_of(self.points)):
            if zero is not None:
                nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H/stride, W/stride)``."""
        places = self.points(x)
        offsets, logits = places.split([places.shape[1] // 3 * 2, places.shape[1] // 3], dim=1)
        y = deformable_convolution(
            x,
            offsets,
            logits.sigmoid(),
            self.weight,
            self.bias,
            (self.stride, self.padding, self.dilation),
        )
        return self.act(self.norm(y.to(places.dtype)))
