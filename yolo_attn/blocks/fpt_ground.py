"""Grounding transformer of the Feature Pyramid Transformer.

Dong Zhang, Hanwang Zhang, Jinhui Tang, Meng Wang, Xiansheng Hua, Qianru Sun.
Feature Pyramid Transformer. ECCV 2020. https://arxiv.org/abs/2007.09451
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    as_map,
    at_least_float32,
    bias_of,
    check_channel_list,
    check_choice,
    check_flag,
    check_int,
    check_kernel,
    check_ratio,
    query_index,
    reduced_channels,
    run_float32,
)
from yolo_attn.blocks._locality_constrained import LocalityConstrained
from yolo_attn.blocks._mixture_of_softmaxes import MixtureOfSoftmaxes
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.blocks.fpt_self import PAPER, mixed_channels
from yolo_attn.errors import YoloAttnError
from yolo_attn.ops.attention import attend, attention_rows
from yolo_attn.ops.precision import without_autocast
from yolo_attn.ops.relu_affinity import relu_affinity
from yolo_attn.registry import register
from yolo_attn.versions import made_before

SOFTMAX = ("euclidean", "embedded", "gaussian")
MODES = (*SOFTMAX, "dot", "concatenate", "local")


@register(
    paper=PAPER,
    aliases=("FPTGT",),
    inputs=2,
    levels=(1.0, 0.5),
    identity_at_start=True,
    cost="time O(N M d), dot O((N + M) d C), concatenate O(N log M + N d C), local O(N k^2 C); "
    "memory O(N C); d = C/2, N positions of low and M of high",
    placement="from each coarser level of the pyramid to each finer one; here [P3, P4], [P4, P5]",
    width_options=("rd_channels",),
)
class FPTGround(nn.Module):
    """A shallow map is grounded on the concepts of a deep one: ``y = low + BN(W sum_j A_ij v_j)``.

    ``q = W_q low``, ``k = W_k high`` and ``v = W_v high`` have d channels; i runs over the N
    positions of low, j over the M of high:

    - ``euclidean`` (the paper): ``A = sum_n p_n softmax_j(-|q_n,i - k_n,j|^2 / sqrt(d))`` over the
      n_mix parts of q and k, with shares ``p = softmax_n(w_n . mean(k))``
    - ``embedded``: ``softmax_j(q_i . k_j)``; ``gaussian``: ``softmax_j(low_i . high_j)``
    - ``dot`` (the released default): ``q_i . k_j / M``
    - ``concatenate``: ``relu(w_f . [q_i, k_j] + b_f) / M``
    - ``local``: ``y = low + BN(o)``, where o is a softmax a channel over the k x k positions of
      high around i (:class:`~yolo_attn.blocks._locality_constrained.LocalityConstrained`)

    Inputs: ``[low, high]``; the first is refined and gives the output its size and channels, the
    second may have any size. The identity at the start: the BN, or W without it, begins at zero
    (with ``norm: none``, ``local`` has nothing that could). The released code has no residual.

    No N x M matrix is kept: the softmax modes use fused attention, the dot product is associated as
    ``(W v k^T / M) q``, concatenation is summed by sorting (:mod:`yolo_attn.ops.relu_affinity`).
    Biases that a softmax or the BN cancels, or that others hold, are left out.

    Args:
        channels: ``[C of low, C of high]``; equal ones in gaussian mode.
        mode: The affinity, see above.
        rd_ratio: d as a share of the C of low; local has C channels instead.
        rd_channels: d itself; overrides `rd_ratio`; a multiple of `n_mix` in euclidean mode.
        n_mix: Softmaxes that are mixed in euclidean mode.
        prior: Euclidean mode: ``key`` or ``query``, whose mean decides the shares.
        kernel_size: k of local mode, odd.
        value_mix: Local mode: 0, or the number of value maps that are mixed by their place in the
            window (the stem's form), which replaces the positions in the keys.
        norm: ``bn`` or ``none``.
        residual: Add low.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: list[int],
        mode: str = "euclidean",
        rd_ratio: float = 0.5,
        rd_channels: int | None = None,
        n_mix: int = 2,
        prior: str = "key",
        kernel_size: int = 3,
        value_mix: int = 0,
        norm: str = "bn",
        residual: bool = True,
    ):
        super().__init__()
        low, high = check_channel_list("FPTGround", channels, 2)
        self.mode = check_choice("FPTGround", "mode", mode, MODES)
        check_int("FPTGround", "n_mix", n_mix, maximum=64)
        check_choice("FPTGround", "prior", prior, ("key", "query"))
        check_kernel("FPTGround", "kernel_size", kernel_size)
        check_int("FPTGround", "value_mix", value_mix, minimum=0, maximum=16)
        check_choice("FPTGround", "norm", norm, ("bn", "none"))
        self.residual = check_flag("FPTGround", "residual", residual)
        if mode == "gaussian" and low != high:
            raise YoloAttnError(
                f"FPTGround: channels={channels!r} is not accepted with mode='gaussian' "
                "(accepted: two equal widths)"
            )
        parts = n_mix if mode == "euclidean" else 1
        check_ratio("FPTGround", rd_ratio)
        if rd_channels is None:
            d = reduced_channels("FPTGround", low, rd_ratio, divisor=parts)
        else:
            d = mixed_channels("FPTGround", rd_channels, low, parts)

        self.out_channels = low
        self.starts_as_identity = residual and (mode != "local" or norm == "bn")
        if mode == "local":
            self.local = LocalityConstrained(low, high, low, kernel_size, value_mix)
        else:
            # A constant of the values passes through a softmax, to W and the BN behind it.
            self.g = nn.Conv2d(high, d, 1, bias=mode not in SOFTMAX)
            self.out = nn.Conv2d(d, low, 1, bias=norm == "none")
        if mode in ("euclidean", "embedded", "dot", "concatenate"):
            # w_f's bias holds those of both; a softmax cancels that of the embedded keys.
            self.theta = nn.Conv2d(low, d, 1, bias=mode != "concatenate")
            self.phi = nn.Conv2d(high, d, 1, bias=mode in ("euclidean", "dot"))
        if mode == "euclidean":
            self.mixture = MixtureOfSoftmaxes(d, n_mix, prior, distance=True)
        if mode == "concatenate":
            self.w_f = nn.Parameter(torch.empty(2 * d))
            self.b_f = nn.Parameter(torch.empty(1))
        self.norm = batch_norm(low) if norm == "bn" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's defaults, zero for the last layer; what a BN normalises keeps its variance."""
        if self.norm is not None and self.mode != "local" and not made_before("0.2.0"):
            # PyTorch's start divides the variance by 3 in each layer, and the mean over positions
            # leaves little: BN's eps would take over.
            for conv in (self.g, self.out):
                nn.init.normal_(conv.weight, std=conv.in_channels**-0.5)
        if self.mode == "concatenate":
            for parameter in (self.w_f, self.b_f):
                nn.init.uniform_(parameter, -(len(self.w_f) ** -0.5), len(self.w_f) ** -0.5)
        last = self.norm if self.norm is not None else getattr(self, "out", None)
        if last is not None:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def zero_started(self) -> Tensor | None:
        """Scales of the BN, or weights of W without one; None where neither is the identity."""
        if not self.starts_as_identity:
            return None
        return self.out.weight if self.norm is None else self.norm.weight

    def forward(self, xs: list[Tensor]) -> Tensor:
        """``[(B, C, H, W), (B, C_high, H', W')] -> (B, C, H, W)``."""
        low, high = xs
        if self.mode in ("dot", "concatenate"):
            y = self._unnormalised(low, high).to(low.dtype)
        else:
            y = self.local(low, high) if self.mode == "local" else self._softmax(low, high)
            y = y if self.norm is None else self.norm(y)
        return low + y if self.residual else y

    def _softmax(self, low: Tensor, high: Tensor) -> Tensor:
        """``W sum_j A_ij v_j``."""
        q, k = self._queries_keys(low, high)
        v = self.g(high)
        # The rows sum to 1, so W commutes with the weighted sum. High has fewer positions, but the
        # fused kernels want values no wider than queries.
        early = q.shape[1] >= self.out_channels
        v = (self.out(v) if early else v).flatten(2)
        if self.mode == "euclidean":
            y = self.mixture(q, k, v)
        else:
            values = v.transpose(1, 2).to(q.dtype)
            y = attend(q.transpose(1, 2), k.transpose(1, 2), values).transpose(1, 2).to(v.dtype)
        y = as_map(y, like=low)
        return y if early else self.out(y)

    def _queries_keys(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, d, N), (B, d, M)``; the maps themselves in gaussian mode."""
        if self.mode == "gaussian":
            # Such products reach 1e6 for ordinary activations: float32 logits.
            return at_least_float32(low).flatten(2), at_least_float32(high).flatten(2)
        return self.theta(low).flatten(2), self.phi(high).flatten(2)

    def _unnormalised(self, low: Tensor, high: Tensor) -> Tensor:
        """``BN(W sum_j f_ij v_j / M)`` in float32 (float64): f v outgrows half precision."""
        dtype = torch.promote_types(low.dtype, torch.float32)
        if self.mode == "dot":
            q, k = self._queries_keys(low, high)
        else:
            q, k = self._terms(low, high)
        v = self.g(high)
        with without_autocast(low):
            q, k, w = q.to(dtype), k.to(dtype), self.out.weight.flatten(1).to(dtype)
            v = v.to(dtype).flatten(2) / k.shape[-1]
            if self.mode == "dot":
                y = (w @ (v @ k.transpose(1, 2))) @ q
            else:
                y = w @ relu_affinity(q, k, v.transpose(1, 2)).transpose(1, 2)
            y = as_map(y, like=low)
            if self.norm is None:
                return y + bias_of(self.out).to(dtype)[:, None, None]
        return run_float32(self.norm, y)

    def _terms(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """``u . q_i + b_f`` ``(B, N)`` and ``v . k_j`` ``(B, M)`` where ``w_f = [u, v]``."""
        terms = []
        for conv, weights, x in zip((self.theta, self.phi), self.w_f.chunk(2), (low, high)):
            # Two linear maps in a row are one.
            both = weights @ conv.weight.flatten(1)
            bias = self.b_f if conv is self.theta else None
            terms.append(F.conv2d(x, both[None, :, None, None].to(conv.weight.dtype), bias))
        return terms[0].flatten(1), terms[1].flatten(1)

    def attention(self, xs: list[Tensor], queries: Tensor) -> Tensor:
        """Where given positions of the first map look in the second.

        Args:
            xs: The block's inputs ``[low, high]``.
            queries: ``(Q, 2)`` positions of low as (row, column).

        Returns:
            ``(B, Q, H', W')``; each map sums to 1 in the modes with one softmax over all
            positions. In local mode the mean of the channels, on the window grid that high is
            resized to if its size is no whole fraction of low's; less than 1 over the border.
        """
        low, high = xs
        if self.mode == "local":
            return self.local.rows(low, high, queries)
        index = query_index(queries, low.shape[3])
        if self.mode == "concatenate":
            a, b = self._terms(low, high)
            rows = (a[:, index, None] + b[:, None]).relu() / b.shape[1]
        else:
            q, k = self._queries_keys(low, high)
            if self.mode == "euclidean":
                rows = self.mixture.rows(q, k, index)
            elif self.mode == "dot":
                rows = q[:, :, index].transpose(1, 2) @ k / k.shape[2]
            else:
                rows = attention_rows(q[:, :, index].transpose(1, 2), k.transpose(1, 2))
        return rows.unflatten(2, high.shape[2:])
