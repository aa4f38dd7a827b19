"""Softmax attention a chunk of queries at a time, for widths that fused kernels serve badly.

Fused kernels want one width for queries, keys and values, and zeros up to the widest make the
narrow products as dear as the wide ones. Here each chunk gets its logits, softmax and sum by plain
products; the backward pass computes the weights again. Nothing of size N x M is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo_attn.ops.precision import without_autocast

# Logits of one chunk.
CHUNK_CPU, CHUNK = 1 << 21, 1 << 26


def attend_chunked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``softmax_j(q_i . k_j) v_j`` in O(N + M) memory; logits and softmax in float32 (float64).

    Args:
        q: Queries ``(B, d, N)``.
        k: Keys ``(B, d, M)``.
        v: Values ``(B, e, M)``.

    Returns:
        ``(B, e, N)``.
    """
    with without_autocast(v):
        return _ChunkedAttention.apply(q, k, v)


def _chunks(q: Tensor, k: Tensor) -> list[tuple[int, int]]:
    """Ranges of queries whose logits fit into one chunk."""
    batch, count = q.shape[0], q.shape[2]
    size = CHUNK_CPU if q.device.type == "cpu" else CHUNK
    step = max(size // (batch * k.shape[2]), 32)
    return [(start, min(start + step, count)) for start in range(0, count, step)]


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dtype = torch.promote_types(q.dtype, torch.float32)
        queries, keys = q.to(dtype).transpose(1, 2), k.to(dtype)
        parts = []
        for start, end in _chunks(q, k):
            weights = (queries[:, start:end] @ keys).softmax(2).to(v.dtype)
            parts.append(v @ weights.transpose(1, 2))
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out = ctx.saved_tensors
        dtype = torch.promote_types(q.dtype, torch.float32)
        with without_autocast(v):
            queries, keys = q.to(dtype), k.to(dtype)
            # The softmax's backward: dS = P * (dP - sum_j P_j dP_j), and that sum is grad . out.
            dot = (grad.to(dtype) * out.to(dtype)).sum(1)[..., None]
            grad_v: Any = None
            grad_k: Any = None
            parts = []
            for start, end in _chunks(q, k):
                query, dy = queries[:, :, start:end], grad[:, :, start:end]
                weights = (query.transpose(1, 2) @ keys).softmax(2)
                grad_v = _add(grad_v, dy @ weights.to(v.dtype))
                d_logits = (dy.transpose(1, 2) @ v).to(dtype)
                d_logits.sub_(dot[:, start:end]).mul_(weights)
                parts.append(keys @ d_logits.transpose(1, 2))
                grad_k = _add(grad_k, query @ d_logits)
        return torch.cat(parts, dim=2).to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    """Sum over the chunks in float32 (float64), in place."""
    dtype = torch.promote_types(part.dtype, torch.float32)
    return part.to(dtype) if total is None else total.add_(part)
