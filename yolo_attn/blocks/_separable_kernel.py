"""The gate of large separable kernel attention.

Kin Wai Lau, Lai-Man Po, Yasar Abbas Ur Rehman. Large Separable Kernel Attention: Rethinking the
Large Kernel Attention Design in CNN. 2023. https://arxiv.org/abs/2309.01439
"""

from __future__ import annotations

from torch import Tensor, nn

from yolo_attn.blocks._common import check_choice

# Side of the kernel -> sides of the two it is made of, and the dilation of the second.
KERNELS = {
    7: (3, 3, 2),
    11: (3, 5, 2),
    23: (5, 7, 3),
    35: (5, 11, 3),
    41: (5, 13, 3),
    53: (5, 17, 3),
}


class SeparableKernelGate(nn.Module):
    """``z = x * W dw(x)``: depthwise 1 x a, a x 1, then 1 x b and b x 1 with dilation d.

    No sigmoid, no norm, no residual; every convolution has a bias.

    Args:
        block: Name for error messages.
        channels: C of the input ``(B, C, H, W)``.
        kernel_size: 7, 11, 23, 35, 41 or 53: the field of all four.
        option: Name of that option of the block.

    Raises:
        YoloAttnError: Another kernel size.
    """

    def __init__(self, block: str, channels: int, kernel_size: int, option: str = "kernel_size"):
        super().__init__()
        check_choice(block, option, kernel_size, KERNELS)
        a, b, d = KERNELS[kernel_size]

        def line(size: tuple[int, int], dilation: int) -> nn.Conv2d:
            pad = [dilation * (side // 2) for side in size]
            return nn.Conv2d(channels, channels, size, 1, tuple(pad), dilation, groups=channels)  # type: ignore[arg-type]

        self.near_row, self.near_column = line((1, a), 1), line((a, 1), 1)
        self.far_row, self.far_column = line((1, b), d), line((b, 1), d)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        y = self.near_column(self.near_row(x))
        return x * self.mix(self.far_column(self.far_row(y)))
