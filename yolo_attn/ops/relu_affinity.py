"""``y_i = sum_j relu(a_i + b_j) g_j`` in O(N log N) time and O(N d) memory, exactly.

Sort b. The j with ``a_i + b_j > 0`` are then a suffix, whose start a binary search for ``-a_i``
finds, and

    y_i = a_i * G_i + H_i,    G_i = sum_{j in suffix} g_j,    H_i = sum_{j in suffix} b_j g_j

are two look-ups in suffix sums. The gradient has the same form with the roles of a and b exchanged,
so the backward pass is the same look-up again: gathers only, no scatter, hence deterministic on any
device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def relu_affinity(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """Sum ``relu(a_i + b_j) g_j`` over j.

    Args:
        a: ``(B, N)`` query terms.
        b: ``(B, M)`` key terms.
        g: ``(B, M, d)`` values.

    Returns:
        ``(B, N, d)`` in float32 (float64 for float64 inputs): the sums outgrow half precision.
    """
    dtype = torch.promote_types(g.dtype, torch.float32)
    a, b, g = a.to(dtype), b.to(dtype), g.to(dtype)
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        # Exporters have no binary search; an exported graph keeps the plain sum.
        return torch.relu(a[:, :, None] + b[:, None, :]) @ g
    return _ReluAffinity.apply(a, b, g)


def _suffix_sums(threshold: Tensor, b: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """``sum g_j`` and ``sum b_j g_j`` over ``b_j > threshold_i``, each ``(B, N, d)``."""
    b_sorted, order = b.sort(dim=1, descending=True)
    index = order[:, :, None].expand_as(g)
    g_sorted = g.gather(1, index)
    both = torch.cat([g_sorted, b_sorted[:, :, None] * g_sorted], dim=2)
    # In descending order the suffix is a prefix; row 0 is the empty sum.
    sums = torch.cat([both.new_zeros(both.shape[0], 1, both.shape[2]), both.cumsum(1)], dim=1)
    count = torch.searchsorted(-b_sorted, (-threshold).contiguous(), right=False)
    picked = sums.gather(1, count[:, :, None].expand(-1, -1, sums.shape[2]))
    return picked[..., : g.shape[2]], picked[..., g.shape[2] :]


class _ReluAffinity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, g: Tensor) -> Tensor:
        sum_g, sum_bg = _suffix_sums(-a, b, g)
        ctx.save_for_backward(a, b, g, sum_g)
        return torch.addcmul(sum_bg, a[:, :, None], sum_g)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, g, sum_g = ctx.saved_tensors
        grad_a = (grad * sum_g).sum(2)
        # dL/dg_j = sum_i relu(a_i + b_j) dy_i: the same sum seen from the keys.
        sum_dy, sum_ady = _suffix_sums(-b, a, grad)
        grad_b = (sum_dy * g).sum(2)
        grad_g = torch.addcmul(sum_ady, b[:, :, None], sum_dy)
        return grad_a, grad_b, grad_g
