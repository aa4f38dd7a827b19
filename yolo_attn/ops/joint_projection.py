"""Several 1 x 1 convolutions of one map as a single one.

Queries, keys and values are three small products; as one, the map is read once, threads meet once,
and the backward pass makes one gradient of the map instead of three and two sums.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

CONVOLVE = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


def project_jointly(x: Tensor, *convs: _ConvNd) -> tuple[Tensor, ...]:
    """``tuple(conv(x) for conv in convs)``, for plain 1 x 1 convolutions in one product.

    Args:
        x: ``(B, C, *spatial)``.
        *convs: Convolutions of one type with kernels of 1, with or without biases.

    Returns:
        One map ``(B, C_i, *spatial)`` for each convolution; slices of one tensor.
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or not _are_plain(convs):
        return tuple(conv(x) for conv in convs)
    weight = torch.cat([conv.weight for conv in convs])
    y = CONVOLVE[type(convs[0])](x, weight, _bias(convs))  # type: ignore[index]
    return y.split([conv.out_channels for conv in convs], dim=1)


def _are_plain(convs: tuple[_ConvNd, ...]) -> bool:
    """Whether calling them does nothing but the convolution (no hook, no subclass)."""
    kind = type(convs[0])
    return kind in CONVOLVE and all(
        type(conv) is kind and not conv._forward_hooks and not conv._forward_pre_hooks
        for conv in convs
    )


def _bias(convs: tuple[_ConvNd, ...]) -> Tensor | None:
    """The biases one after the other, zeros where a convolution has none."""
    if all(conv.bias is None for conv in convs):
        return None
    return torch.cat(
        [
            conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
            for conv in convs
        ]
    )
