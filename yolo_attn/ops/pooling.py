"""Weighted sums over positions with softmax weights."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_map(logits: Tensor) -> Tensor:
    """Softmax over the positions of ``(B, 1, H, W)`` in float32 (float64 for float64)."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype).flatten(2).softmax(-1).view_as(logits)


def attention_pool(x: Tensor, logits: Tensor) -> Tensor:
    """``sum_n softmax_n(logits)_n x_n``.

    Args:
        x: ``(B, C, H, W)``.
        logits: ``(B, 1, H, W)``.

    Returns:
        ``(B, C, 1, 1)``.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    weights = logits.flatten(1).softmax(1, dtype=dtype)
    return row_sums(x.flatten(2), weights.to(x.dtype)[:, None])[..., None]


def row_sums(x: Tensor, weights: Tensor) -> Tensor:
    """``sum_n w_n x_n``, a product of matrix and vector for each matrix of a batch.

    Args:
        x: ``(..., C, N)``.
        weights: ``(..., 1, N)``.

    Returns:
        ``(..., C, 1)``.
    """
    if torch.jit.is_tracing():
        # ONNX Runtime (1.31) multiplies transposed maps by a vector wrongly.
        return x @ weights.transpose(-1, -2)
    # The vector first: as a row, the CPU's batched product is ten times faster than as a column.
    return (weights @ x.transpose(-1, -2)).transpose(-1, -2)
