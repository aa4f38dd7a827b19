"""Dilated depthwise convolution on a CPU as an undilated one on the phases of the map.

With dilation r, a position meets only those whose row and column differ by multiples of r: the
r x r sub-grids of the map (its phases) do not see each other, and on each of them the convolution
has no dilation. torch's CPU kernels for those are several times faster, which pays for sorting the
map into phases and back where the kernel is larger than 3 x 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A 3 x 3 kernel has too little to do (measured).
SMALLEST_KERNEL = 5


def convolve_by_phases(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv(x)`` of a depthwise convolution with stride 1, one dilation and "same" padding.

    Exports, compiled code and other devices than a CPU get the convolution itself.

    Args:
        conv: The convolution.
        x: ``(B, C, H, W)``.

    Returns:
        ``(B, C, H, W)``.
    """
    r = conv.dilation[0]
    slow_kernel = x.device.type == "cpu" and r > 1 and conv.kernel_size[0] >= SMALLEST_KERNEL
    if not slow_kernel or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return conv(x)
    height, width = x.shape[2:]
    rows, columns = -(-height // r), -(-width // r)
    # Zeros behind the map are what the convolution's padding would have read there.
    padded = F.pad(x, (0, columns * r - width, 0, rows * r - height))
    grid = padded.unflatten(3, (columns, r)).unflatten(2, (rows, r))
    phases = grid.permute(0, 3, 5, 1, 2, 4).flatten(0, 2)
    y = F.conv2d(
        phases,
        conv.weight,
        conv.bias,
        padding=[k // 2 for k in conv.kernel_size],
        groups=x.shape[1],
    )
    y = y.unflatten(0, (-1, r, r)).permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)
    dense = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
    return y[:, :, :height, :width].contiguous(memory_format=dense)


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
