"""Softmax attention without an N x M matrix, for keys and values of any two widths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_attn.ops.chunked_attention import attend_chunked
from yolo_attn.ops.precision import without_autocast

# Up to this width, fused kernels are the fastest whatever the other width is, padding included; the
# CPU's number is measured, the other is the widest head of the flash kernels.
FUSED_WIDTH_CPU, FUSED_WIDTH = 128, 256


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """``softmax_j(scale * q_i . k_j) v_j``, softmax in float32 (float64), O(N + M) memory.

    By fused kernels, by chunks where these would have to pad much, or (on a CPU) by plain products
    where the N x M weights are no larger than queries and result.

    Args:
        q: Queries ``(B, N, d)`` or ``(B, heads, N, d)``.
        k: Keys ``(B, M, d)`` or ``(B, heads, M, d)``.
        v: Values ``(B, M, e)`` or ``(B, heads, M, e)``.
        scale: Factor of the logits.

    Returns:
        ``(B, N, e)`` or ``(B, heads, N, e)``.
    """
    if q.dim() == 3:
        return attend(q[:, None], k[:, None], v[:, None], scale)[:, 0]
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return _fused(q, k, v, scale)
    d, e, on_cpu = q.shape[-1], v.shape[-1], v.device.type == "cpu"
    if on_cpu and v.shape[-2] <= d + e:
        return _dense(q, k, v, scale)
    fused_width = FUSED_WIDTH_CPU if on_cpu else FUSED_WIDTH
    if e > max(fused_width, 2 * d) or (on_cpu and d > max(fused_width, e)):
        heads = q.shape[1]
        maps = (t.flatten(0, 1).transpose(1, 2) for t in (q * scale if scale != 1 else q, k, v))
        return attend_chunked(*maps).transpose(1, 2).unflatten(0, (-1, heads))
    return _fused(q, k, v, scale)


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


def _dense(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(v):
        q = q.to(dtype)
        weights = ((q * scale if scale != 1 else q) @ k.to(dtype).transpose(-1, -2)).softmax(-1)
        weights = weights.to(v.dtype)
        if v.stride(-1) == 1:
            return weights @ v
        # Maps come channel by channel, and so does the result: what follows runs along them.
        return (v.transpose(-1, -2) @ weights.transpose(-1, -2)).transpose(-1, -2)


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
