"""Attention of every channel on its own to a small window, without k^2 copies of keys and values.

``y[c, i] = sum_o P_o v[c, w(i) + o]``, ``P = softmax_o(q[c, i] (k[c, w(i) + o] + rel[c, o]))``: the
softmax runs over the offsets o of a ``size x size`` window and the channels do not mix. Queries may
lie on a finer grid than keys: blocks of ``s x t`` queries then share a window. One offset at a time
is computed; the backward pass computes the weights again from the logarithm of the normaliser.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from yolo_attn.ops.precision import without_autocast


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, size: int, rel: Tensor | None = None, mix: Tensor | None = None
) -> Tensor:
    """Sum v over the window of each query with softmax weights, per channel.

    Args:
        q: Queries ``(B, C, H, W)``.
        k: Keys ``(B, C, h + size - 1, w + size - 1)``, border included. The window of query
            (y, x) starts at ``(y // s, x // t)``, where ``s = ceil(H / h)``, ``t = ceil(W / w)``
            and ``h = ceil(H / s)``, ``w = ceil(W / t)``.
        v: Values ``(B, m, C, h + size - 1, w + size - 1)``; m maps that `mix` mixes.
        size: Side of the window.
        rel: ``(C, size^2)``, added to the keys by their place in the window; or None.
        mix: ``(m, size^2)`` shares of the value maps by the place in the window; None for m = 1.

    Returns:
        ``(B, C, H, W)`` in the dtype of v; softmax and sums are float32 (float64).
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    rel = q.new_zeros(q.shape[1], size**2) if rel is None else rel
    mix = q.new_ones(1, size**2) if mix is None else mix
    height, width = q.shape[2:]
    # Only these are constants of an exported file: levels of a pyramid keep their ratio.
    s, t = (-(-int(n) // (int(m) - size + 1)) for n, m in zip((height, width), k.shape[2:]))
    with without_autocast(v):
        blocks = _to_blocks(q.to(dtype), s, t)
        args: tuple[Any, ...] = (blocks, *(t.to(dtype) for t in (k, v, rel, mix)), size)
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            # Exporters see plain operations only.
            y = _plain(*args)
        else:
            y = _LocalAttention.apply(*args)
        return _from_blocks(y, s, t)[:, :, :height, :width].to(v.dtype)


def local_rows(
    q: Tensor, k: Tensor, size: int, start: tuple[Tensor, Tensor], rel: Tensor | None = None
) -> Tensor:
    """The weights themselves for a few queries, averaged over the channels.

    Args:
        q: ``(B, C, Q)``.
        k: As in :func:`local_attention`.
        size: Side of the window.
        start: Rows and columns ``(Q,)`` of `k` where the windows start.
        rel: As in :func:`local_attention`.

    Returns:
        ``(B, Q, h + size - 1, w + size - 1)``; each map sums to 1.
    """
    rows, columns = start
    dtype = torch.promote_types(q.dtype, torch.float32)
    offsets = [(u, v) for u in range(size) for v in range(size)]
    keys = torch.stack([k[:, :, rows + u, columns + v] for u, v in offsets], dim=3).to(dtype)
    keys = keys if rel is None else keys + rel[:, None].to(dtype)
    weights = (q.to(dtype)[..., None] * keys).softmax(3).mean(1)
    out = weights.new_zeros(weights.shape[0], len(rows), *k.shape[2:])
    number = torch.arange(len(rows), device=rows.device)
    for o, (u, v) in enumerate(offsets):
        out[:, number, rows + u, columns + v] = weights[..., o]
    return out


def _to_blocks(q: Tensor, s: int, t: int) -> Tensor:
    """``(B, C, H, W) -> (s t, B, C, h, w)``, zeros where the blocks reach over the border.

    The place in the block is the first dimension: what all of a block share is then repeated in
    long rows, not in runs of t.
    """
    height, width = q.shape[2:]
    missing = (0, (t - width % t) % t, 0, (s - height % s) % s)
    q = F.pad(q, missing) if any(missing) else q
    blocks = q.unflatten(3, (-1, t)).unflatten(2, (-1, s)).permute(3, 5, 0, 1, 2, 4)
    return blocks.flatten(0, 1).contiguous()


def _from_blocks(y: Tensor, s: int, t: int) -> Tensor:
    """Undo :func:`_to_blocks`, but for what it added."""
    return y.unflatten(0, (s, t)).permute(2, 3, 4, 0, 5, 1).flatten(4, 5).flatten(2, 3)


def _windows(x: Tensor, size: int) -> Iterator[Tensor]:
    """Views ``(..., h, w)`` of a bordered map, one an offset."""
    ends = [u - size + 1 or None for u in range(size)]
    for u, bottom in enumerate(ends):
        for v, right in enumerate(ends):
            yield x[..., u:bottom, v:right]


def _mixed(values: Tensor, mix: Tensor, o: int) -> Tensor:
    """``(B, m, C, h, w) -> (B, C, h, w)`` with the shares of offset o."""
    return values[:, 0] if mix.shape[0] == 1 else torch.einsum("bmchw,m->bchw", values, mix[:, o])


def _plain(q: Tensor, k: Tensor, v: Tensor, rel: Tensor, mix: Tensor, size: int) -> Tensor:
    keys = [x + rel[:, o, None, None] for o, x in enumerate(_windows(k, size))]
    values = [_mixed(x, mix, o) for o, x in enumerate(_windows(v, size))]
    weights = torch.stack([q * x for x in keys]).softmax(0)
    products = (p * x for p, x in zip(weights.unbind(0), values))
    return sum(products)  # type: ignore[return-value]  # a window has a position


class _LocalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, rel: Tensor, mix: Tensor, size: int
    ) -> Tensor:
        keys = (x + rel[:, o, None, None] for o, x in enumerate(_windows(k, size)))
        high = low = next(keys)
        for key in keys:
            high, low = torch.maximum(high, key), torch.minimum(low, key)
        # The largest logit is the query times the largest or the smallest key of the window.
        shift = torch.maximum(q * high, q * low).neg_()
        total, out = torch.zeros_like(q), torch.zeros_like(q)
        for o, (window, values) in enumerate(zip(_windows(k, size), _windows(v, size))):
            p = torch.addcmul(shift, q, window + rel[:, o, None, None]).exp_()
            total.add_(p)
            out.addcmul_(p, _mixed(values, mix, o))
        out.div_(total)
        ctx.save_for_backward(q, k, v, rel, mix, out, shift.sub_(total.log_()))
        ctx.size = size
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rel, mix, out, shift = ctx.saved_tensors
        size = ctx.size
        with without_autocast(grad):
            grad = grad.contiguous()
            dot = (grad * out).neg_()
            grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
            grad_rel, grad_mix = torch.zeros_like(rel), torch.zeros_like(mix)
            windows = zip(*(_windows(t, size) for t in (k, v, grad_k, grad_v)))
            for o, (window, values, into_k, into_v) in enumerate(windows):
                key = window + rel[:, o, None, None]
                p = torch.addcmul(shift, q, key).exp_()
                # dS = P * (dP - sum_o P_o dP_o), and that sum is grad . out.
                slope = torch.addcmul(dot, grad, _mixed(values, mix, o)).mul_(p)
                grad_q.addcmul_(slope, key)
                d_key = slope.mul_(q).sum(0)
                into_k.add_(d_key)
                grad_rel[:, o] = d_key.sum((0, 2, 3))
                d_value = p.mul_(grad).sum(0)[:, None]
                into_v.addcmul_(d_value, mix[:, o, None, None, None])
                if ctx.needs_input_grad[4]:
                    grad_mix[:, o] = (d_value * values).sum((0, 2, 3, 4))
        return grad_q, grad_k, grad_v, grad_rel, grad_mix, None
