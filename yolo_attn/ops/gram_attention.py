"""Attention of channels to channels through their Gram matrix.

``z = x + gamma softmax(x x^T) x``. By hand, the two gradients through the Gram matrix are one
product with its symmetric part, and neither the sum nor its gradient is a map of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo_attn.ops.precision import without_autocast


def gram_weights(x: Tensor, minus: bool = False) -> Tensor:
    """Weights of each channel on all channels.

    Args:
        x: ``(B, C, N)``.
        minus: Softmax of the products' negatives.

    Returns:
        ``(B, C, C)`` in float32 (float64), rows sum to 1.
    """
    # The products grow with N: 80 x 80 positions of size 4 pass the limit of float16.
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    with without_autocast(x):
        energy = torch.bmm(x, x.transpose(1, 2))
        return (energy.neg_() if minus else energy).softmax(2)


def add_gram_attention(x: Tensor, gamma: Tensor, minus: bool = False) -> Tensor:
    """``x + gamma A x`` with ``A = gram_weights(x)``.

    Args:
        x: ``(B, C, N)``.
        gamma: ``(1,)``.
        minus: As in :func:`gram_weights`.

    Returns:
        ``(B, C, N)`` in the dtype of x.
    """
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        weights = gram_weights(x, minus)
        return x + (gamma * weights).to(x.dtype) @ x
    with without_autocast(x):
        return _GramAttention.apply(x, gamma, minus)


class _GramAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, minus: bool) -> Tensor:
        weights = gram_weights(x, minus)
        gamma = gamma.to(weights.dtype)
        ctx.minus = minus
        ctx.save_for_backward(x, gamma, weights)
        return torch.baddbmm(x, (weights * gamma).to(x.dtype), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gamma, weights = ctx.saved_tensors
        dtype = weights.dtype
        with without_autocast(grad):
            d_energy = torch.bmm(grad.to(dtype), x.to(dtype).transpose(1, 2)).mul_(weights)
            # The softmax's backward: P * (dP - sum_j P_j dP_j).
            dot = d_energy.sum(2, keepdim=True)
            grad_gamma = dot.sum().view(1)
            d_energy.addcmul_(weights, dot, value=-1).mul_(-gamma if ctx.minus else gamma)
            # x meets itself in the energy: both of its gradients at once.
            d_energy = d_energy + d_energy.transpose(1, 2)
            total = torch.bmm(weights.to(grad.dtype).transpose(1, 2), grad).to(dtype)
            total.mul_(gamma).add_(grad).baddbmm_(d_energy, x.to(dtype))
        return total.to(x.dtype), grad_gamma.to(gamma.dtype), None
