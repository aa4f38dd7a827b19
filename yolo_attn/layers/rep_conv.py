"""Re-parameterised convolution, in a row that keeps account of its channels.

Xiaohan Ding, Xiangyu Zhang, Ningning Ma, Jungong Han, Guiguang Ding, Jian Sun. RepVGG: Making
VGG-style ConvNets Great Again. CVPR 2021. https://arxiv.org/abs/2101.03697
"""

from __future__ import annotations

from torch import Tensor, nn

from yolo_attn.blocks._common import check_channels, check_int
from yolo_attn.layers._common import host_conv, out_width
from yolo_attn.registry import register


@register(
    layer=True,
    paper="Ding, Zhang, Ma, Han, Ding, Sun: RepVGG: Making VGG-style ConvNets Great Again, "
    "CVPR 2021, arXiv 2101.03697",
    cost="time O(N C^2), 10 C^2 parameters at equal widths; 9 C^2 after `fuse()`",
    placement="before the head of yolov7",
    width_options=("out_channels",),
)
class RepConv3x3(nn.Module):
    """Convolution of parallel branches: ``z = act(bn(conv3x3(x)) + bn(conv1x1(x)) [+ bn(x)])``.

    The last term only where widths are equal and the stride is 1. ``fuse()`` merges the branches
    into one 3x3 convolution. This is Ultralytics' `RepConv` with the identity branch of the paper,
    in a row that gets its input width from the row before (a `RepConv` row does not: Ultralytics'
    parser takes its output to be as wide as its input).

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        stride: Of both convolutions.

    Raises:
        YoloAttnError: A width or the stride is not a positive whole number.
    """

    def __init__(self, channels: int, out_channels: int | None = None, stride: int = 1):
        super().__init__()
        from ultralytics.nn.modules.conv import RepConv

        c1 = check_channels("RepConv3x3", channels)
        c2 = self.out_channels = out_width("RepConv3x3", out_channels, c1)
        s = check_int("RepConv3x3", "stride", stride, maximum=2)
        # RepConv has a default activation of its own, which a YAML's `activation` does not reach.
        self.rep = RepConv(c1, c2, 3, s, act=host_conv().default_act, bn=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H/stride, W/stride)``."""
        return self.rep(x)
