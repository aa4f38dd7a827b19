"""Position attention, channel attention, and the dual attention head.

Jun Fu, Jing Liu, Haijie Tian, Yong Li, Yongjun Bao, Zhiwei Fang, Hanqing Lu.
Dual Attention Network for Scene Segmentation. CVPR 2019. https://arxiv.org/abs/1809.02983
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    check_channels,
    check_choice,
    check_number,
    check_width,
    query_index,
    reduced_channels,
    tokens,
    untokens,
)
from yolo_attn.blocks._conv_norm import ConvNorm
from yolo_attn.blocks._zero_gamma import GAMMA_STEP, ZeroGamma
from yolo_attn.ops.attention import attend, attention_rows
from yolo_attn.ops.elementwise import add_product
from yolo_attn.ops.gram_attention import add_gram_attention, gram_weights
from yolo_attn.ops.joint_projection import project_jointly
from yolo_attn.registry import register

PAPER = (
    "Fu, Liu, Tian, Li, Bao, Fang, Lu: Dual Attention Network for Scene Segmentation, CVPR 2019, "
    "arXiv 1809.02983"
)
SIGNS = ("plus", "minus")


@register(
    paper=PAPER,
    aliases=("PAM",),
    cost="time O(N^2 C + N C^2), memory O(N C)",
    identity_at_start=True,
    placement="one branch of the head on stride 8 features; here after P5 or P4",
    width_options=("rd_channels",),
)
class PositionAttention(ZeroGamma):
    """Every position reads every other: ``z_i = x_i + gamma sum_j a_ij v_j``.

    ``a_ij = softmax_j(q_i . k_j)``. ``q = W_q x`` and ``k = W_k x`` have ``d`` channels (C/8),
    ``v = W_v x`` has C; the paper has no scale factor. gamma starts at 0: the identity at the
    start. No N x N matrix is kept (fused or chunked attention). The bias of ``W_k`` is left out,
    the softmax cancels it.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: d as a share of C, at least 8.
        rd_channels: d itself; overrides `rd_ratio`.
        gamma_step: Step size of gamma, which is this number times a learned one (the paper: 1).

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 8,
        rd_channels: int | None = None,
        gamma_step: float = GAMMA_STEP,
    ):
        super().__init__()
        check_channels("PositionAttention", channels)
        d = reduced_channels("PositionAttention", channels, rd_ratio, rd_channels)
        self.out_channels = channels
        self.query = nn.Conv2d(channels, d, 1)
        self.key = nn.Conv2d(channels, d, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1)
        self._add_gamma("PositionAttention", gamma_step)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        q, k, v = map(tokens, project_jointly(x, self.query, self.key, self.value))
        o = untokens(attend(q, k, v), like=x)
        return add_product(x, self.scale_of_branch().to(o.dtype), o)

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """Where given positions look.

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column).

        Returns:
            ``(B, Q, H, W)``; each map sums to 1.
        """
        q = tokens(self.query(x))[:, query_index(queries, x.shape[3])]
        return attention_rows(q, tokens(self.key(x))).unflatten(2, x.shape[2:])


@register(
    paper=PAPER,
    cost="time O(N C^2), memory O(N C + C^2)",
    identity_at_start=True,
    placement="one branch of the head on stride 8 features; here after P5 or P4",
)
class ChannelGram(ZeroGamma):
    """Every channel reads every other: ``z_c = x_c + gamma sum_e a_ce x_e``.

    ``a_ce = softmax_e(x_c . x_e)``. ``x_c . x_e`` is a sum over all N positions: the Gram matrix of
    the channels, without projections or a scale factor; it is computed in float32. gamma starts at
    0: the identity at the start.

    The authors' code has the softmax of ``-x_c . x_e``, so that the *least* similar channels get
    the most weight: ``sign: minus``. The paper has ``plus``.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        sign: ``plus`` (the paper's softmax of the products) or ``minus`` (the code's softmax of
            their negatives).
        gamma_step: Step size of gamma, which is this number times a learned one (the paper: 1).

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(self, channels: int, sign: str = "plus", gamma_step: float = GAMMA_STEP):
        super().__init__()
        check_channels("ChannelGram", channels)
        self.sign = check_choice("ChannelGram", "sign", sign, SIGNS)
        self.out_channels = channels
        self._add_gamma("ChannelGram", gamma_step)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return add_gram_attention(x.flatten(2), self.scale_of_branch(), self.sign == "minus").view(
            x.shape
        )

    def affinity(self, x: Tensor) -> Tensor:
        """Float32 weights ``(B, C, C)`` of each channel (row) on all channels; rows sum to 1."""
        return gram_weights(x.flatten(2), self.sign == "minus")


@register(
    paper=PAPER,
    cost="time O(N^2 C/4 + 11 N C^2), memory O(N C)",
    placement="the head of a segmentation net, on stride 8 features; here after P5",
    width_options=("rd_channels", "out_channels"),
)
class DANet(nn.Module):
    """Position and channel attention in two branches, summed: ``y = W_s (f_p + f_c)``.

    ``f_p = cbr(PositionAttention(cbr(x)))`` and ``f_c = cbr(ChannelGram(cbr(x)))`` with ``m``
    channels (C/4), where ``cbr`` is a 3 x 3 convolution with batch norm and ReLU; W_s: m ->
    `out_channels`. Not the identity at the start.

    The paper supervises three maps, ``W_s (f_p + f_c)``, ``W_p f_p`` and ``W_c f_c``:
    ``outputs: all`` returns them in this order. Its code drops out a tenth of the channels in front
    of the W, which classify there; here they do not, and `dropout` is off.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: m as a share of C, at least 8.
        rd_channels: m itself; overrides `rd_ratio`. The queries of the position branch then have
            m/8 channels, as in the authors' code; else at least 8.
        out_channels: Channels of the output; C by default.
        outputs: ``fused`` (one map) or ``all`` (a list of three).
        sign: As in ChannelGram.
        dropout: Share of channels to drop in front of the last convolutions in training.
        gamma_step: As in PositionAttention, of both branches.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 4,
        rd_channels: int | None = None,
        out_channels: int | None = None,
        outputs: str = "fused",
        sign: str = "plus",
        dropout: float = 0.0,
        gamma_step: float = GAMMA_STEP,
    ):
        super().__init__()
        check_channels("DANet", channels)
        check_choice("DANet", "sign", sign, SIGNS)
        width = (
            channels if out_channels is None else check_width("DANet", "out_channels", out_channels)
        )
        m = reduced_channels("DANet", channels, rd_ratio, rd_channels)
        self.outputs = check_choice("DANet", "outputs", outputs, ("fused", "all"))
        self.dropout = check_number("DANet", "dropout", dropout, 0.0, 1.0)
        self.out_channels: int | list[int] = width if outputs == "fused" else [width] * 3
        self.position_reduce = ConvNorm(channels, m, 3)
        self.channel_reduce = ConvNorm(channels, m, 3)
        # An m that was asked for comes with the authors' query width, however narrow.
        inner = None if rd_channels is None else max(m // 8, 1)
        self.position = PositionAttention(m, rd_channels=inner, gamma_step=gamma_step)
        self.channel = ChannelGram(m, sign, gamma_step)
        self.position_conv = ConvNorm(m, m, 3)
        self.channel_conv = ConvNorm(m, m, 3)
        self.fused_out = nn.Conv2d(m, width, 1)
        if outputs == "all":
            self.position_out = nn.Conv2d(m, width, 1)
            self.channel_out = nn.Conv2d(m, width, 1)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(B, C, H, W) -> (B, out_channels, H, W)``, or three such maps."""
        f_p = self.position_conv(self.position(self.position_reduce(x)))
        f_c = self.channel_conv(self.channel(self.channel_reduce(x)))
        fused = self.fused_out(self._drop(f_p + f_c))
        if self.outputs == "fused":
            return fused
        return [fused, self.position_out(self._drop(f_p)), self.channel_out(self._drop(f_c))]

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """Where given positions look in the position branch ``(B, Q, H, W)``."""
        return self.position.attention(self.position_reduce(x), queries)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout2d(x, self.dropout, self.training) if self.dropout else x
