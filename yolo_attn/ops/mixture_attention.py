"""Mixture of softmaxes: several attentions to the same values, mixed before the sum.

``y_i = sum_j A_ij v_j``, ``A = sum_n p_n softmax_j(scale * q_n,i . k_n,j)``. A chunk of queries at
a time gets its logits, softmaxes and one sum over the values; the backward pass computes the
weights again. Nothing of size N x M is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo_attn.ops.attention import attend
from yolo_attn.ops.precision import without_autocast

# Values up to this width are faster in the fused kernels of the CPU (measured), although these sum
# them once a softmax.
FUSED_WIDTH_CPU = 128
# Logits of one chunk.
CHUNK = 1 << 20


def mixture_attention(q: Tensor, k: Tensor, v: Tensor, p: Tensor, scale: float = 1.0) -> Tensor:
    """Sum v with the mixed weights; O(N + M) memory, softmax in float32 (float64).

    Args:
        q: Queries ``(B, n, N, d)`` of n softmaxes.
        k: Keys ``(B, n, M, d)``.
        v: Values ``(B, M, e)``, the same for all softmaxes.
        p: Shares ``(B, n)`` of the softmaxes, which sum to 1.
        scale: Factor of the logits.

    Returns:
        ``(B, N, e)`` in the dtype of v.
    """
    if q.shape[1] == 1:
        return attend(q[:, 0], k[:, 0], v, scale)
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if v.device.type == "cpu" and v.shape[2] > FUSED_WIDTH_CPU and not traced:
        with without_autocast(v):
            return _MixtureAttention.apply(q, k, v, p, scale)
    # Fused kernels know no mixture: one attention a softmax, each with its copy of the values.
    out = attend(q, k, v[:, None].expand(-1, q.shape[1], -1, -1), scale)
    return (out * p.to(out.dtype)[..., None, None]).sum(1)


def mixture_rows(q: Tensor, k: Tensor, p: Tensor, scale: float = 1.0) -> Tensor:
    """The mixed weights ``(B, N, M)`` themselves, in float32 (float64); for a few queries."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q):
        weights = (scale * q.to(dtype) @ k.to(dtype).transpose(2, 3)).softmax(3)
        return (weights * p.to(dtype)[..., None, None]).sum(1)


def squared_distance(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys whose products are minus squared distances, but for a constant a query.

    ``-|q - k|^2 = 2 (q . k - |k|^2 / 2) - |q|^2``, and a softmax over the keys cancels ``|q|^2``.

    Args:
        q: ``(..., N, d)``.
        k: ``(..., M, d)``.

    Returns:
        Both in float32 (float64), with at least one further column; the widths are multiples of 8,
        which the fused kernels want.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q):
        q, k = q.to(dtype), k.to(dtype)
        # Distances from the mean key are smaller numbers, hence more exact differences.
        centre = k.mean(-2, keepdim=True)
        q, k = q - centre, k - centre
        pad = (0, -(q.shape[-1] + 1) % 8)
        q = F.pad(2 * q, (0, 1), value=2.0)
        k = torch.cat([k, -0.5 * (k * k).sum(-1, keepdim=True)], dim=-1)
        return F.pad(q, pad), F.pad(k, pad)


def _chunks(q: Tensor, k: Tensor) -> list[tuple[int, int]]:
    """Ranges of queries whose logits fit into one chunk."""
    batch, mixed, count = q.shape[:3]
    step = max(CHUNK // (batch * mixed * k.shape[2]), 32)
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def _mixed(weights: Tensor, p: Tensor) -> Tensor:
    """``(B, n, N, M) -> (B, N, M)``, the sum with shares ``(B, n)``."""
    return (p[:, None] @ weights.flatten(2)).view(weights.shape[0], *weights.shape[2:])


class _MixtureAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, p: Tensor, scale: float) -> Tensor:
        dtype = torch.promote_types(q.dtype, torch.float32)
        queries, keys, values = scale * q.to(dtype), k.to(dtype).transpose(2, 3), v.to(dtype)
        parts = []
        for start, end in _chunks(q, k):
            weights = (queries[:, :, start:end] @ keys).softmax(3)
            parts.append(_mixed(weights, p.to(dtype)) @ values)
        ctx.save_for_backward(q, k, v, p)
        ctx.scale = scale
        return torch.cat(parts, dim=1).to(v.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        dtype = torch.promote_types(q.dtype, torch.float32)
        with without_autocast(grad):
            queries, keys, values = ctx.scale * q.to(dtype), k.to(dtype), v.to(dtype)
            shares, grad = p.to(dtype), grad.to(dtype)
            grad_k, grad_v = torch.zeros_like(keys), torch.zeros_like(values)
            grad_p, parts = torch.zeros_like(shares), []
            for start, end in _chunks(q, k):
                query, dy = queries[:, :, start:end], grad[:, start:end]
                weights = (query @ keys.transpose(2, 3)).softmax(3)
                grad_v += _mixed(weights, shares).transpose(1, 2) @ dy
                # dL/dA, then each softmax's backward but for its share: P * (dA - sum_j P_j dA_j).
                slope = (dy @ values.transpose(1, 2))[:, None]
                product = weights * slope
                dot = product.sum(3, keepdim=True)
                grad_p += dot.sum((2, 3))
                d_logits = torch.addcmul(product, weights, dot, value=-1.0)
                parts.append(d_logits @ keys)
                grad_k += d_logits.transpose(2, 3) @ query
            factor = shares[..., None, None]
            grad_q = torch.cat(parts, dim=2) * (factor * ctx.scale)
            grad_k = grad_k * factor
        return (
            grad_q.to(q.dtype),
            grad_k.to(k.dtype),
            grad_v.to(v.dtype),
            grad_p.to(p.dtype),
            None,
        )
