"""SPPF with large separable kernel attention.

Kin Wai Lau, Lai-Man Po, Yasar Abbas Ur Rehman. Large Separable Kernel Attention: Rethinking the
Large Kernel Attention Design in CNN. 2023. https://arxiv.org/abs/2309.01439
"""

from __future__ import annotations

from torch import Tensor, nn

from yolo_attn.blocks._common import check_channels, check_int
from yolo_attn.blocks._separable_kernel import SeparableKernelGate
from yolo_attn.layers._common import host_conv, kernel_side, out_width
from yolo_attn.layers.sim_sppf import serial_pyramid
from yolo_attn.registry import register


@register(
    layer=True,
    paper="Lau, Po, Rehman: Large Separable Kernel Attention: Rethinking the Large Kernel "
    "Attention Design in CNN, 2023, arXiv 2309.01439",
    cost="time O(N C (6.5 C + 32)) at equal widths: the 1 x 1 layer of the gate takes 4 C^2 of it",
    placement="behind the backbone, in place of SPPF",
    width_options=("out_channels",),
)
class SPPFLSKA(nn.Module):
    """SPPF whose joined maps are gated: ``y = cv2(u * W dw(u))``, u the pyramid of ``cv1(x)``.

    ``u = [h, p(h), p(p(h)), p(p(p(h)))]`` with ``h = cv1(x)`` of C / 2 channels and p the maximum
    over k x k neighbours; dw are four depthwise lines that make up a large kernel. No sigmoid: the
    gate starts small and of either sign, so that a pretrained model has to learn it anew.

    Args:
        channels: C of the input ``(B, C, H, W)``, at least 2.
        out_channels: Width of the output; default C.
        kernel_size: k, odd.
        lska_kernel: Field of the gate: 7, 11 (the forks), 23, 35, 41 or 53.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 5,
        lska_kernel: int = 11,
    ):
        super().__init__()
        c1 = check_int("SPPFLSKA", "channels", check_channels("SPPFLSKA", channels), minimum=2)
        c2 = self.out_channels = out_width("SPPFLSKA", out_channels, c1)
        self.k = kernel_side("SPPFLSKA", kernel_size)
        conv = host_conv()
        self.cv1 = conv(c1, c1 // 2, 1, 1)
        self.cv2 = conv(4 * (c1 // 2), c2, 1, 1)
        self.lska = SeparableKernelGate("SPPFLSKA", 4 * (c1 // 2), lska_kernel, "lska_kernel")

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H, W)``."""
        return self.cv2(self.lska(serial_pyramid(self.cv1(x), self.k)))
