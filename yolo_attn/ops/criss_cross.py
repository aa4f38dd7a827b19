"""Attention of every position to its row and column: two batched attentions, one normaliser.

For position (h, w), the column's logits ``q[:, h, w] . k[:, j, w]`` and the row's
``q[:, h, w] . k[:, h, j]`` go through one softmax; the position itself is counted once, in the row.
Between the passes, the weights are kept where they are smaller than the values; elsewhere the
backward pass computes them again from the logarithm of the normaliser.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo_attn.ops.precision import without_autocast


def criss_cross(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Sum v over the row and the column of each position, with softmax weights.

    Logits and softmax are float32 (or float64); memory O(N (H + W + C)) during a pass, O(N C)
    between the passes.

    Args:
        q: Queries ``(B, d, H, W)``.
        k: Keys ``(B, d, H, W)``.
        v: Values ``(B, C, H, W)``.

    Returns:
        ``(B, C, H, W)``.
    """
    with without_autocast(v):
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            # Exporters see plain operations only.
            return _map(_sums(_cast(criss_cross_weights(q, k), v.dtype), _lines(v)))
        return _CrissCross.apply(q, k, v)


def criss_cross_weights(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax weights themselves.

    Args:
        q: Queries ``(B, d, H, W)``.
        k: Keys ``(B, d, H, W)``.

    Returns:
        ``(B, W, H, H)``: of query (h, w) on (j, w), zero for j = h; and ``(B, H, W, W)``: of query
        (h, w) on (h, j). The weights of a query sum to 1 over both.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    columns, rows = _products(_lines(q.to(dtype)), _lines(k.to(dtype)))
    index = torch.arange(columns.shape[-1], device=q.device)
    diagonal = index[:, None] == index
    if torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export():
        # NCNN fills no masks; exp(-1e30) is 0, too. (ONNX files may be halved: 0 times infinity.)
        columns = columns - 1e30 * diagonal.to(dtype)
    else:
        columns = columns.masked_fill(diagonal, -torch.inf)
    both = torch.cat([columns.transpose(1, 2), rows], dim=3).softmax(3)
    height, width = columns.shape[-1], rows.shape[-1]
    return both[..., :height].transpose(1, 2), both[..., height : height + width]


def _lines(x: Tensor) -> tuple[Tensor, Tensor]:
    """``(B, c, H, W)`` as dense columns ``(B, W, H, c)`` and rows ``(B, H, W, c)``."""
    rows = x.permute(0, 2, 3, 1).contiguous()
    return rows.transpose(1, 2).contiguous(), rows


def _merge(columns: Tensor, rows: Tensor) -> Tensor:
    """Sum of columns ``(B, W, H, c)`` and fresh rows ``(B, H, W, c)``, in place of the rows."""
    return rows.add_(columns.transpose(1, 2))


def _products(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Dot products over c within columns ``(B, W, H, H)`` and within rows ``(B, H, W, W)``."""
    return a[0] @ b[0].transpose(2, 3), a[1] @ b[1].transpose(2, 3)


def _sums(weights: tuple[Tensor, Tensor], v: tuple[Tensor, Tensor]) -> Tensor:
    """Weighted sums of v over columns and rows ``(B, H, W, c)``."""
    return _merge(weights[0] @ v[0], weights[1] @ v[1])


def _spreads(weights: tuple[Tensor, Tensor], v: tuple[Tensor, Tensor]) -> Tensor:
    """The same with the transposed weights."""
    return _merge(weights[0].transpose(2, 3) @ v[0], weights[1].transpose(2, 3) @ v[1])


def _cast(pair: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return pair[0].to(dtype), pair[1].to(dtype)


def _map(rows: Tensor) -> Tensor:
    """``(B, H, W, c)`` as ``(B, c, H, W)``."""
    return rows.permute(0, 3, 1, 2)


def _weights(
    q: tuple[Tensor, Tensor], k: tuple[Tensor, Tensor], normaliser: Tensor
) -> tuple[Tensor, Tensor]:
    """The softmax weights from the logarithm of their normaliser ``(B, H, W)``."""
    columns, rows = _products(q, k)
    columns.diagonal(dim1=2, dim2=3).fill_(-torch.inf)
    columns.sub_(normaliser.transpose(1, 2)[..., None]).exp_()
    rows.sub_(normaliser[..., None]).exp_()
    return columns, rows


class _CrissCross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Without a scale factor the logits of ordinary activations leave the range of float16.
        dtype = torch.promote_types(q.dtype, torch.float32)
        columns, rows = _products(_lines(q.to(dtype)), _lines(k.to(dtype)))
        columns.diagonal(dim1=2, dim2=3).fill_(-torch.inf)
        # (B, H, W); the row's maximum is finite, also where H = 1 leaves the column empty.
        top = torch.maximum(columns.amax(3).transpose(1, 2), rows.amax(3))
        columns.sub_(top.transpose(1, 2)[..., None]).exp_()
        rows.sub_(top[..., None]).exp_()
        total = columns.sum(3).transpose(1, 2) + rows.sum(3)
        columns.div_(total.transpose(1, 2)[..., None])
        rows.div_(total[..., None])
        v_lines = _lines(v)
        out = _sums(_cast((columns, rows), v.dtype), v_lines)
        ctx.keeps_weights = columns.shape[3] + rows.shape[3] <= v.shape[1]
        # v in rows replaces v: nothing else needs the latter.
        kept = (columns, rows) if ctx.keeps_weights else (out, top + total.log())
        ctx.save_for_backward(q, k, v_lines[1], *kept)
        return _map(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v_rows, *kept = ctx.saved_tensors
        dtype = kept[1].dtype
        with without_autocast(grad):
            q_lines, k_lines, grad_lines = _lines(q.to(dtype)), _lines(k.to(dtype)), _lines(grad)
            if ctx.keeps_weights:
                columns, rows = kept
            else:
                out, normaliser = kept
                columns, rows = _weights(q_lines, k_lines, normaliser)
            grad_v = _spreads(_cast((columns, rows), v_rows.dtype), grad_lines)
            v_lines = v_rows.transpose(1, 2).contiguous(), v_rows
            d_columns, d_rows = _cast(_products(grad_lines, v_lines), dtype)
            # The softmax's backward: dS = P * (dP - sum_j P_j dP_j); that sum is also grad . out.
            if ctx.keeps_weights:
                d_columns, d_rows = d_columns.mul_(columns), d_rows.mul_(rows)
                dot = d_columns.sum(3).transpose(1, 2) + d_rows.sum(3)
                d_columns.addcmul_(columns, dot.transpose(1, 2)[..., None], value=-1)
                d_rows.addcmul_(rows, dot[..., None], value=-1)
            else:
                dot = (grad_lines[1].to(dtype) * out.to(dtype)).sum(3)
                d_columns.sub_(dot.transpose(1, 2)[..., None]).mul_(columns)
                d_rows.sub_(dot[..., None]).mul_(rows)
            grad_q = _sums((d_columns, d_rows), k_lines)
            grad_k = _spreads((d_columns, d_rows), q_lines)
        return _map(grad_q).to(q.dtype), _map(grad_k).to(k.dtype), _map(grad_v)
