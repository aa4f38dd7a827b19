"""Mixture of softmaxes, the similarity of the Feature Pyramid Transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.ops.mixture_attention import mixture_attention, mixture_rows, squared_distance
from yolo_attn.ops.precision import without_autocast


class MixtureOfSoftmaxes(nn.Module):
    """``y_i = sum_j A_ij v_j``, ``A = sum_n p_n softmax_j(s(q_n,i, k_n,j) / sqrt(d))``.

    ``q_n`` and ``k_n`` are the n-th of `n_mix` equal parts of the d channels of q and k, but the
    temperature is that of all d channels. ``p = softmax_n(w_n . mean(k))``.

    Args:
        d: Channels of queries and keys, a multiple of `n_mix`.
        n_mix: Number of softmaxes; 1 is ordinary attention.
        prior: ``key`` or ``query``: whose mean decides the shares p.
        distance: The similarity s is minus the squared distance instead of the dot product.
    """

    def __init__(self, d: int, n_mix: int, prior: str = "key", distance: bool = False):
        super().__init__()
        self.n_mix, self.prior, self.distance = n_mix, prior, distance
        self.scale = d**-0.5
        self.weight = nn.Parameter(torch.empty(n_mix, d)) if n_mix > 1 else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform up to ``n_mix ** -0.5``."""
        if self.weight is not None:
            nn.init.uniform_(self.weight, -(self.n_mix**-0.5), self.n_mix**-0.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``(B, d, N), (B, d, M), (B, e, M) -> (B, e, N)``."""
        shares = self.shares(q, k)
        q, k = self._parts(q), self._parts(k)
        values = v.transpose(1, 2)
        if not self.distance:
            y = mixture_attention(q, k, values.to(q.dtype), shares, self.scale)
        else:
            # Squares outgrow half precision.
            with without_autocast(v):
                q, k = squared_distance(q, k)
                y = mixture_attention(q, k, values.to(q.dtype), shares, self.scale)
        return y.transpose(1, 2).to(v.dtype)

    def rows(self, q: Tensor, k: Tensor, index: Tensor | None = None) -> Tensor:
        """``(B, Q, M)``: A of all queries, or of those that `index` picks."""
        shares = self.shares(q, k)
        q, k = self._parts(q if index is None else q[:, :, index]), self._parts(k)
        if self.distance:
            q, k = squared_distance(q, k)
        return mixture_rows(q, k, shares, self.scale)

    def shares(self, q: Tensor, k: Tensor) -> Tensor:
        """Shares p ``(B, n_mix)`` in float32 (float64)."""
        source = k if self.prior == "key" else q
        dtype = torch.promote_types(source.dtype, torch.float32)
        if self.weight is None:
            return source.new_ones(source.shape[0], 1, dtype=dtype)
        with without_autocast(source):
            mean = source.to(dtype).mean(2)
            return (mean @ self.weight.to(dtype).t()).softmax(1)

    def _parts(self, x: Tensor) -> Tensor:
        """``(B, d, N) -> (B, n_mix, N, d / n_mix)``."""
        return x.unflatten(1, (self.n_mix, -1)).transpose(2, 3)
