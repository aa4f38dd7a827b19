"""Softmax attention by plain products, a chunk of queries at a time.

For what fused kernels serve badly: widths that differ (they want one for queries, keys and values,
and zeros up to the widest make the narrow products as dear as the wide ones), and small matrices.
Nothing of size N x M is kept: the backward pass computes the weights again, unless it is told to
keep them, all in one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo_attn.ops.precision import without_autocast

# Logits of one chunk: on a CPU, for each thread, what its caches hold (measured).
CHUNK_CPU, CHUNK = 1 << 19, 1 << 26


def attend_chunked(
    q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0, keep_weights: bool = False
) -> Tensor:
    """``softmax_j(scale * q_i . k_j) v_j``; logits and softmax in float32 (float64).

    Args:
        q: Queries ``(B, d, N)``.
        k: Keys ``(B, d, M)``.
        v: Values ``(B, e, M)``.
        scale: Factor of the logits.
        keep_weights: Keep the N x M weights for the backward pass instead of O(N + M).

    Returns:
        ``(B, e, N)``, laid out in memory as the values are.
    """
    with without_autocast(v):
        return _ChunkedAttention.apply(q, k, v, scale, keep_weights)


def _chunks(q: Tensor, k: Tensor, whole: bool) -> list[tuple[int, int]]:
    """Ranges of queries whose logits fit into one chunk."""
    batch, count = q.shape[0], q.shape[2]
    size = CHUNK_CPU * torch.get_num_threads() if q.device.type == "cpu" else CHUNK
    step = count if whole else max(size // (batch * k.shape[2]), 32)
    return [(start, min(start + step, count)) for start in range(0, count, step)]


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, keep_weights: bool
    ) -> Tensor:
        queries, keys = q.to(_dtype(q)), k.to(_dtype(k))
        along_positions = v.stride(1) != 1 or v.stride(2) == 1
        parts, weights = [], None
        for start, end in _chunks(q, k, keep_weights):
            weights = _weights(queries[:, :, start:end], keys, scale)
            p = weights.to(v.dtype)
            # Written along the axis that lies densely in the values: what follows runs along it.
            if along_positions:
                parts.append(v @ p.transpose(1, 2))
            else:
                parts.append((p @ v.transpose(1, 2)).transpose(1, 2))
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, out, weights if keep_weights else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, kept = ctx.saved_tensors
        dtype = _dtype(q)
        with without_autocast(v):
            queries, keys = q.to(dtype), k.to(dtype)
            # The softmax's backward: dS = P * (dP - sum_j P_j dP_j), and that sum is grad . out.
            dot = (grad.to(dtype) * out.to(dtype)).sum(1)[..., None]
            grad_v: Any = None
            grad_k: Any = None
            parts = []
            for start, end in _chunks(q, k, kept is not None):
                query, dy = queries[:, :, start:end], grad[:, :, start:end]
                weights = _weights(query, keys, ctx.scale) if kept is None else kept
                grad_v = _add(grad_v, dy @ weights.to(v.dtype))
                d_logits = (dy.transpose(1, 2) @ v).to(dtype)
                d_logits.sub_(dot[:, start:end]).mul_(weights)
                parts.append(keys @ d_logits.transpose(1, 2))
                grad_k = _add(grad_k, query @ d_logits)
            grad_q = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
            if ctx.scale != 1:
                grad_q, grad_k = grad_q.mul_(ctx.scale), grad_k.mul_(ctx.scale)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def _dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _weights(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """``softmax_j(scale * q_i . k_j)`` ``(B, n, M)``."""
    nothing = keys.new_empty(1, 1, 1)  # its factor is 0
    logits = torch.baddbmm(nothing, queries.transpose(1, 2), keys, beta=0, alpha=scale)
    # In place on a CPU, whose kernel reads a row before it writes it.
    return torch.softmax(logits, -1, out=logits) if logits.is_cpu else logits.softmax(-1)


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    """Sum over the chunks in float32 (float64), in place."""
    dtype = _dtype(part)
    return part.to(dtype) if total is None else total.add_(part)
