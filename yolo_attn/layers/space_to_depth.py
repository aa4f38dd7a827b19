"""Space to depth, then a convolution that does not stride.

Raja Sunkara, Tie Luo. No More Strided Convolutions or Pooling: A New CNN Building Block for
Low-Resolution Images and Small Objects. ECML PKDD 2022. https://arxiv.org/abs/2208.03641
"""

from __future__ import annotations

from torch import Tensor, nn

from yolo_attn.blocks._common import check_channels
from yolo_attn.layers._common import activation, checked_stride, host_conv, kernel_side, out_width
from yolo_attn.ops.space_to_depth import pad_to_multiple, space_to_depth
from yolo_attn.registry import register


@register(
    layer=True,
    paper="Sunkara, Luo: No More Strided Convolutions or Pooling: A New CNN Building Block for "
    "Low-Resolution Images and Small Objects, ECML PKDD 2022, arXiv 2208.03641",
    cost="time O(k^2 N C C_out) for N input positions, s^2 k^2 C C_out parameters: s^2 times a "
    "strided convolution of the same kernel",
    placement="in place of the strided convolutions of backbone and neck",
    width_options=("out_channels",),
)
class SPDConv(nn.Module):
    """Shrink a map without losing a pixel: ``y = act(BN(conv_k z))``, z the phases of x.

    ``z[(j s + i) C + c] = x[c, i::s, j::s]``: for s = 2 the order of (row, column) is (0, 0),
    (1, 0), (0, 1), (1, 1). Note that it differs from PixelUnshuffle's where weights are carried
    over. Sides that s does not divide are completed with zeros at the bottom and the right.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        kernel_size: k, odd; 1 costs a ninth of 3.
        scale: s, by which the map shrinks; the place of a convolution's stride.
        act: ``silu``, ``relu``, ``relu6``, ``gelu``, ``mish``, ``hardswish`` or ``none``; None is
            the model's own.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        scale: int = 2,
        act: str | None = None,
    ):
        super().__init__()
        c1 = check_channels("SPDConv", channels)
        c2 = self.out_channels = out_width("SPDConv", out_channels, c1)
        k = kernel_side("SPDConv", kernel_size)
        self.scale = checked_stride("SPDConv", scale, "scale")
        self.conv = host_conv()(scale**2 * c1, c2, k, 1, act=activation("SPDConv", "act", act))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H/scale, W/scale)``, sides rounded up."""
        return self.conv(space_to_depth(pad_to_multiple(x, self.scale), self.scale))
