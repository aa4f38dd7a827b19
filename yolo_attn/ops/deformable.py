"""Modulated deformable convolution: by torchvision's operator, or by bilinear sampling.

Both compute the same. torchvision's operator has no ONNX of the TorchScript exporter, no count of
its FLOPs and, on CPUs, one thread and no vector instructions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_attn.ops.point_sampling import sample_points
from yolo_attn.ops.precision import without_autocast

Geometry = tuple[int, int, int]  # stride, padding, dilation


def deformable_convolution(
    x: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry
) -> Tensor:
    """``y[o] = sum_ct weight[o, c, t] mask[g, t] x[c](p + t + offset[g, t]) + bias[o]``.

    Args:
        x: ``(B, C, H, W)``; zero outside.
        offsets: ``(B, 2 G K, h, w)`` in pixels; of tap t in group g, the row at channel
            ``(g K + t) 2`` and the column behind it.
        mask: ``(B, G K, h, w)``.
        weight: ``(O, C / groups, k, k)``, K = k^2.
        bias: ``(O,)`` or None.
        at: Stride, padding and dilation of the undeformed grid.

    Returns:
        ``(B, O, h, w)``, in float32 where x has half precision.
    """
    with without_autocast(x):
        if x.dtype in (torch.float16, torch.bfloat16) or offsets.dtype != weight.dtype:
            full = torch.float64 if x.dtype == torch.float64 else torch.float32
            x, offsets, mask, weight = (t.to(full) for t in (x, offsets, mask, weight))
            bias = None if bias is None else bias.to(full)
        if x.is_cuda and not (torch.jit.is_tracing() or torch.compiler.is_compiling()):
            from torchvision.ops import deform_conv2d  # type: ignore[import-untyped]

            return deform_conv2d(x, offsets, weight, bias, at[0], at[1], at[2], mask)
        return by_sampling(x, offsets, mask, weight, bias, at)


def by_sampling(
    x: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry
) -> Tensor:
    """The same by sampling every tap of every position, then one 1 x 1 convolution."""
    stride, padding, dilation = at
    k, taps = weight.shape[3], weight.shape[2] * weight.shape[3]
    groups = mask.shape[1] // taps
    height, width = mask.shape[2:]
    moved = offsets.unflatten(1, (groups, taps, 2)).flatten(0, 1)
    step = torch.arange(taps, device=x.device)
    row = torch.div(step, k, rounding_mode="floor") * dilation - padding
    column = step % k * dilation - padding
    down = torch.arange(height, device=x.device) * stride
    right = torch.arange(width, device=x.device) * stride
    rows = moved[:, :, 0] + (row[:, None] + down).to(x.dtype)[:, :, None]
    columns = moved[:, :, 1] + (column[:, None] + right).to(x.dtype)[:, None, :]
    # Taps stand below each other, a group takes the place of an image.
    maps = x.reshape(-1, x.shape[1] // groups, x.shape[2], x.shape[3])
    values = sample_points(maps, rows.flatten(1, 2), columns.flatten(1, 2), "zeros")
    values = values * mask.reshape(-1, 1, taps * height, width)
    values = values.reshape(-1, x.shape[1] * taps, height, width)
    kernel = weight.flatten(1)[:, :, None, None]
    return F.conv2d(values, kernel, bias, groups=x.shape[1] // weight.shape[1])
