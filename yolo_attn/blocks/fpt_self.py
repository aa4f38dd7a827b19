"""Self-transformer of the Feature Pyramid Transformer.

Dong Zhang, Hanwang Zhang, Jinhui Tang, Meng Wang, Xiansheng Hua, Qianru Sun.
Feature Pyramid Transformer. ECCV 2020. https://arxiv.org/abs/2007.09451
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    NARROWEST,
    as_map,
    check_channels,
    check_choice,
    check_flag,
    check_hidden,
    check_int,
    check_ratio,
    query_index,
    reduced_channels,
)
from yolo_attn.blocks._conv_norm import ConvNorm
from yolo_attn.blocks._mixture_of_softmaxes import MixtureOfSoftmaxes
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.errors import YoloAttnError
from yolo_attn.registry import register

PAPER = (
    "Zhang, Zhang, Tang, Wang, Hua, Sun: Feature Pyramid Transformer, ECCV 2020, arXiv 2007.09451"
)


@register(
    paper=PAPER,
    aliases=("FPTST",),
    cost="time O(N^2 d / 4), a quarter of the keys by pooling; memory O(N C); d = C",
    placement="on every level of the pyramid, between backbone and head; here P4 and P5",
    width_options=("rd_channels", "value_channels"),
)
class FPTSelf(nn.Module):
    """A level reads itself by a mixture of softmaxes: ``y_i = x_i + BN(W sum_j A_ij v_j)``.

    ``q = W_q x``, ``k = W_q x'``, ``v = W_v x'`` where ``x'`` is x averaged over 3 x 3 windows with
    stride 2, and ``A = sum_n p_n softmax_j(q_n,i . k_n,j / sqrt(d))`` mixes the softmaxes of the
    n_mix parts of q and k with shares ``p = softmax_n(w_n . mean(k))``. Not the identity at the
    start.

    No N x M matrix is kept (:mod:`yolo_attn.ops.mixture_attention`). With one head, W acts on the
    values, of which there are a quarter. The bias of W_v is left out: the weights sum to 1 and BN
    holds it. The released code takes the shares from the mean query (``prior: query``) and drops a
    tenth of the attention weights in training, which is left out here.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: d of all heads together as a share of C; rounded so that heads and mixture divide.
        rd_channels: d of one head; overrides `rd_ratio`, must be a multiple of `n_mix`.
        value_channels: Channels of v of one head; as d by default.
        num_heads: Heads; each has its own mixture, all of them the same w.
        n_mix: Softmaxes that are mixed (the released simplified pyramid: 4).
        prior: ``key`` (the paper) or ``query``: whose mean decides the shares.
        kq_transform: ``conv`` (W_q is 1 x 1), ``ffn`` or ``dffn`` (3 x 3, BN, ReLU, 1 x 1; in dffn
            with dilation 4).
        pooling: Average the keys' and values' input.
        concat: Return ``[z, x]`` (2 C channels) instead of ``z + x``.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1.0,
        rd_channels: int | None = None,
        value_channels: int | None = None,
        num_heads: int = 1,
        n_mix: int = 2,
        prior: str = "key",
        kq_transform: str = "conv",
        pooling: bool = True,
        concat: bool = False,
    ):
        super().__init__()
        check_channels("FPTSelf", channels)
        self.num_heads = check_int("FPTSelf", "num_heads", num_heads, maximum=max(channels, 8))
        check_int("FPTSelf", "n_mix", n_mix, maximum=64)
        check_choice("FPTSelf", "prior", prior, ("key", "query"))
        check_choice("FPTSelf", "kq_transform", kq_transform, ("conv", "ffn", "dffn"))
        self.pooling = check_flag("FPTSelf", "pooling", pooling)
        self.concat = check_flag("FPTSelf", "concat", concat)
        check_ratio("FPTSelf", rd_ratio)
        if rd_channels is None:
            d = reduced_channels("FPTSelf", channels, rd_ratio, divisor=num_heads * n_mix)
            d //= num_heads
        else:
            d = mixed_channels("FPTSelf", rd_channels, channels, n_mix)
            # Of all heads together, as the ratio counts.
            check_hidden("FPTSelf", "num_heads * rd_channels", num_heads * d, channels, NARROWEST)
        e = d if value_channels is None else value_channels
        check_hidden("FPTSelf", "value_channels", e, channels)
        check_hidden("FPTSelf", "num_heads * value_channels", num_heads * e, channels)
        self.out_channels = 2 * channels if concat else channels

        self.query: nn.Conv2d | _ConvNormConv
        if kq_transform == "conv":
            self.query = nn.Conv2d(channels, num_heads * d, 1)
        else:
            self.query = _ConvNormConv(channels, num_heads * d, 4 if kq_transform == "dffn" else 1)
        self.value = nn.Conv2d(channels, num_heads * e, 1, bias=False)
        self.mixture = MixtureOfSoftmaxes(d, n_mix, prior)
        self.out = nn.Conv2d(num_heads * e, channels, 1, bias=False)
        self.norm = batch_norm(channels)
        self.d, self.e = d, e
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal queries and values, as released."""
        channels = self.value.in_channels
        if isinstance(self.query, nn.Conv2d):
            nn.init.normal_(self.query.weight, std=math.sqrt(2 / (channels + self.d)))
        else:
            nn.init.normal_(self.query.out.weight, std=math.sqrt(1 / self.d))
        nn.init.normal_(self.value.weight, std=math.sqrt(2 / (channels + self.e)))
        self.mixture.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``, or 2 C channels with `concat`."""
        source = self._pool(x)
        q, k = self._queries_keys(x, source)
        v = self.value(source)
        if self.num_heads == 1:
            v = self.out(v)
        y = self.mixture(q, k, self._heads(v)).reshape(x.shape[0], -1, q.shape[2])
        y = as_map(y, like=x)
        z = self.norm(y if self.num_heads == 1 else self.out(y))
        return torch.cat([z, x], dim=1) if self.concat else z + x

    def _pool(self, x: Tensor) -> Tensor:
        if not self.pooling:
            return x
        return F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)

    def _queries_keys(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        q = self._heads(self.query(x))
        return q, (self._heads(self.query(source)) if self.pooling else q)

    def _heads(self, x: Tensor) -> Tensor:
        """``(B, heads * d, H, W) -> (B * heads, d, N)``."""
        return x.unflatten(1, (self.num_heads, -1)).flatten(0, 1).flatten(2)

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """Where given positions look, averaged over the heads.

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column).

        Returns:
            ``(B, Q, H', W')`` over the key positions; each map sums to 1.
        """
        source = self._pool(x)
        rows = self.mixture.rows(
            *self._queries_keys(x, source), index=query_index(queries, x.shape[3])
        )
        rows = rows.unflatten(0, (-1, self.num_heads)).mean(1)
        return rows.unflatten(2, source.shape[2:])


def mixed_channels(block: str, rd_channels: int, channels: int, n_mix: int) -> int:
    """Return `rd_channels` if it is a multiple of `n_mix`, and at most twice `channels`.

    Raises:
        YoloAttnError: It is not.
    """
    check_hidden(block, "rd_channels", rd_channels, channels, least=NARROWEST)
    if rd_channels % n_mix:
        raise YoloAttnError(
            f"{block}: rd_channels={rd_channels} is not accepted with n_mix={n_mix} "
            f"(accepted: a multiple of {n_mix})"
        )
    return rd_channels


class _ConvNormConv(nn.Module):
    """3 x 3, BN, ReLU, 1 x 1."""

    def __init__(self, channels: int, out_channels: int, dilation: int):
        super().__init__()
        self.inner = ConvNorm(channels, out_channels, 3)
        self.inner.conv.dilation = (dilation, dilation)
        self.inner.conv.padding = (dilation, dilation)
        self.out = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x))
