"""Softmax attention without an N x M matrix, for keys and values of any two widths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_attn.ops.chunked_attention import attend_chunked

# How a CPU computes it was measured on an AMD EPYC, the number for other devices is the widest head
# of the flash kernels.
FUSED_WIDTH = 256
# Narrower heads than this leave the fused kernel's products on a CPU nearly empty.
FUSED_WIDTH_CPU = 9
# Most weights of one image's head, and of all images and heads, that a CPU keeps: they stay in its
# caches, and computing them again takes longer than reading them.
KEPT_CPU, ALL_KEPT_CPU = 1 << 18, 1 << 22


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """``softmax_j(scale * q_i . k_j) v_j``, softmax in float32 (float64), O(N + M) memory.

    By fused kernels, or by plain products in chunks where these would have to pad: much on a GPU,
    at all on a CPU. A CPU keeps the N x M weights for the backward pass where they are few (at most
    `ALL_KEPT_CPU` numbers) or no larger than queries and result.

    Args:
        q: Queries ``(B, N, d)`` or ``(B, heads, N, d)``.
        k: Keys ``(B, M, d)`` or ``(B, heads, M, d)``.
        v: Values ``(B, M, e)`` or ``(B, heads, M, e)``.
        scale: Factor of the logits.

    Returns:
        ``(B, N, e)`` or ``(B, heads, N, e)``; like the values, it lies in memory along positions
        or along channels.
    """
    if q.dim() == 3:
        return attend(q[:, None], k[:, None], v[:, None], scale)[:, 0]
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return _fused(q, k, v, scale)
    d, e, on_cpu = q.shape[-1], v.shape[-1], v.device.type == "cpu"
    keep = on_cpu and _keeps_weights(q, k, v)
    if keep or (d != e or d < FUSED_WIDTH_CPU if on_cpu else e > max(FUSED_WIDTH, 2 * d)):
        heads = q.shape[1]
        qm, km, vm = (t.flatten(0, 1).transpose(1, 2) for t in (q, k, v))
        return attend_chunked(qm, km, vm, scale, keep).transpose(1, 2).unflatten(0, (-1, heads))
    out = _fused(q, k, v, scale)
    if v.stride(-1) == 1:
        return out
    # Maps come channel by channel, and so does the result: a convolution and a norm behind it are
    # many times slower on a mixture of both layouts.
    return out.transpose(-1, -2).contiguous().transpose(-1, -2)


def _keeps_weights(q: Tensor, k: Tensor, v: Tensor) -> bool:
    queries, keys = q.shape[-2], k.shape[-2]
    if keys <= q.shape[-1] + v.shape[-1]:
        return True
    pairs = queries * keys
    return pairs <= KEPT_CPU and q.shape[0] * q.shape[1] * pairs <= ALL_KEPT_CPU


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    d, e = q.shape[-1], v.shape[-1]
    # The fused kernels need one width for q, k and v (else they fall back to the N x M matrix).
    # Zeros added to q and k leave every product as it is; zeros added to v give columns that are
    # cut off again.
    if d < e:
        q, k = F.pad(q, (0, e - d)), F.pad(k, (0, e - d))
    elif e < d:
        v = F.pad(v, (0, d - e))
    # Rows must be dense: on a transposed map the CPU kernel is several times slower.
    out = F.scaled_dot_product_attention(
        q.contiguous(), k.contiguous(), v.contiguous(), scale=scale
    )
    return out[..., :e]


def attention_rows(q: Tensor, k: Tensor, scale: float = 1.0) -> Tensor:
    """The rows ``softmax_j(scale * q_i . k_j)`` themselves, for a few queries.

    Args:
        q: Queries ``(B, Q, d)``.
        k: Keys ``(B, M, d)``.
        scale: Factor of the logits.

    Returns:
        ``(B, Q, M)`` float32 (or float64); every row sums to 1.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    return (scale * q.to(dtype) @ k.to(dtype).transpose(1, 2)).softmax(-1)
