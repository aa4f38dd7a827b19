"""Softmax attention without an N x M matrix, for keys and values of any two widths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """``softmax_j(scale * q_i . k_j) v_j`` by fused attention: O(N + M) memory, softmax in float32.

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
