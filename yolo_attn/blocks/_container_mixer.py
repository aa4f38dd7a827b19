"""Mixing with dynamic and static affinities, the core of :mod:`yolo_attn.blocks.container`.

``y = W2 concat_m (alpha A_m + beta S_m) v_m`` is computed as ``alpha (A_m v_m) + beta (S_m v_m)``,
so that the dynamic affinity A (N x N for each head) is never formed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import query_index
from yolo_attn.ops.attention import attend, attention_rows
from yolo_attn.ops.elementwise import add_product
from yolo_attn.ops.linear_resample import linear_matrix, resample


class DepthwiseAffinity(nn.Conv2d):
    """A Toeplitz matrix for each channel: ``S_c[i, j] = kernel_c[j - i]``, 0 outside the window."""

    def __init__(self, channels: int, side: int, bias: bool):
        super().__init__(channels, channels, side, padding=side // 2, groups=channels, bias=bias)

    def forward(self, v: Tensor, beta: Tensor | None = None) -> Tensor:
        """``beta (S v + bias)`` of ``(B, C, H, W)``; beta is put on the kernels, not on the map."""
        weight, bias = self.weight, self.bias
        if beta is not None:
            weight = beta * weight
            bias = None if bias is None else beta * bias
        return F.conv2d(v, weight, bias, padding=self.padding, groups=self.groups)

    def rows(self, index: Tensor, height: int, width: int) -> Tensor:
        """Rows `index` ``(Q,)`` of S, mean of the channels: ``(Q, H, W)``."""
        one_hot = F.one_hot(index, height * width).to(self.weight.dtype)
        # Row i holds the kernel around i: a correlation of the unit map of i with its mirror image.
        kernel = self.weight.mean(0, keepdim=True).flip(2, 3)
        return F.conv2d(one_hot.view(-1, 1, height, width), kernel, padding=self.padding)[:, 0]


class DenseAffinity(nn.Module):
    """A learned matrix for each head, ``S_m (N0, N0)`` on a map of h0 x w0 = N0 positions.

    On a map of another size it is ``U S_m D``: D resamples the values to h0 x w0, U resamples the
    sums back (:mod:`yolo_attn.ops.linear_resample`). Rows of D and U sum to 1, so the row sums of
    S are kept, and both are unit matrices at h0 x w0.
    """

    def __init__(self, heads: int, size: tuple[int, int]):
        super().__init__()
        self.heads, self.size = heads, size
        n = size[0] * size[1]
        # 2-D: an optimiser with matrix updates takes it for the linear map that it is.
        self.weight = nn.Parameter(torch.empty(heads * n, n))

    def forward(self, v: Tensor, beta: Tensor | None = None) -> Tensor:
        """``beta S v`` of ``(B, C, H, W)``."""
        height, width = v.shape[2:]
        u = resample(v, *self.size).flatten(2)
        if beta is not None:
            u = u * beta.to(u.dtype)
        if self.heads == 1:
            y = u @ self.weight.t()
        else:
            s = self.weight.view(self.heads, -1, u.shape[2])
            # Heads outside, images inside: one product a head, S is not repeated for each image.
            y = u.unflatten(1, (self.heads, -1)).transpose(0, 1).flatten(1, 2) @ s.transpose(1, 2)
            y = y.unflatten(1, (-1, v.shape[1] // self.heads)).transpose(0, 1).flatten(1, 2)
        return resample(y.unflatten(2, self.size), height, width)

    def rows(self, index: Tensor, height: int, width: int) -> Tensor:
        """Rows `index` ``(Q,)`` of S (``U S D``), mean of the heads: ``(Q, H, W)``."""
        h0, w0 = self.size
        s = self.weight.view(self.heads, h0 * w0, h0 * w0).mean(0)
        row = torch.div(index, width, rounding_mode="floor")
        up_rows = linear_matrix(h0, height, s)[row]
        up_columns = linear_matrix(w0, width, s)[index % width]
        u = (up_rows[:, :, None] * up_columns[:, None]).flatten(1)
        down_rows, down_columns = linear_matrix(height, h0, s), linear_matrix(width, w0, s)
        return down_rows.t() @ (u @ s).view(-1, h0, w0) @ down_columns


class Mixer(nn.Module):
    """``W2 concat_m (alpha A_m + beta S_m) v_m`` without residual.

    ``A_m = softmax_j(scale q_i . k_j)``; the bias of ``W_k`` is left out, the softmax cancels it.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        heads: M of the dynamic affinity; 0 for a static one alone.
        scale: Factor of the logits.
        static: S, or None.
        weights: ``gate`` (``alpha = sigma(gate)``, ``beta = 1 - alpha``), ``scalars`` (alpha and
            beta themselves) or ``ones``.
        bias: Whether q and v have a bias.
        out_bias: Whether ``W2`` has one.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        scale: float,
        static: DepthwiseAffinity | DenseAffinity | None,
        weights: str,
        bias: bool,
        out_bias: bool,
    ):
        super().__init__()
        self.heads, self.scale, self.weights = heads, scale, weights
        if heads:
            self.query_value = nn.Conv2d(channels, 2 * channels, 1, bias=bias)
            self.key = nn.Conv2d(channels, channels, 1, bias=False)
        else:
            self.value = nn.Conv2d(channels, channels, 1, bias=bias)
        self.static = static
        if weights == "gate":
            self.gate = nn.Parameter(torch.zeros(1))
        elif weights == "scalars":
            self.alpha = nn.Parameter(torch.ones(1)) if heads else None
            self.beta = nn.Parameter(torch.ones(1)) if static is not None else None
        self.out = nn.Conv2d(channels, channels, 1, bias=out_bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        alpha, beta = self._factors()
        if not self.heads:
            s = self.static(self.value(x), beta)  # type: ignore[misc]  # no heads: there is S
            return self.out(s)
        q, v = self.query_value(x).chunk(2, 1)
        q, k, values = (self._per_head(t) for t in (q, self.key(x), v))
        y = attend(q, k, values, self.scale).transpose(2, 3).reshape(v.shape)
        if self.static is None:
            return self.out(y if alpha is None else alpha.to(y.dtype) * y)
        s = self.static(v, beta)
        return self.out(s + y if alpha is None else add_product(s, alpha.to(y.dtype), y))

    def rows(self, x: Tensor, queries: Tensor) -> Tensor:
        """Rows of ``alpha A + beta S`` for `queries` ``(Q, 2)``, mean of the heads or channels."""
        b, _, height, width = x.shape
        index = query_index(queries, width)
        alpha, beta = self._factors()
        total = None
        if self.static is not None:
            rows = self.static.rows(index, height, width).expand(b, -1, -1, -1)
            total = rows if beta is None else beta * rows
        if self.heads:
            q, k = self.query_value(x).chunk(2, 1)[0], self.key(x)
            q, k = (self._per_head(t).flatten(0, 1) for t in (q, k))
            rows = attention_rows(q[:, index], k, self.scale)
            rows = rows.unflatten(0, (b, self.heads)).mean(1).unflatten(2, (height, width))
            rows = rows if alpha is None else alpha * rows
            total = rows if total is None else total + rows
        return total  # type: ignore[return-value]  # A, S or both are there

    def _per_head(self, t: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, M, N, C/M)``, a view of dense maps of either memory format."""
        t = t.permute(0, 2, 3, 1).flatten(1, 2)
        return t.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _factors(self) -> tuple[Tensor | None, Tensor | None]:
        """Alpha and beta; None stands for 1 (or for an affinity that is not there)."""
        if self.weights == "gate":
            alpha = self.gate.sigmoid()
            return alpha, 1 - alpha
        return (self.alpha, self.beta) if self.weights == "scalars" else (None, None)
