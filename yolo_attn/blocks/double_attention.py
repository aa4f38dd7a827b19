"""Double attention block.

Yunpeng Chen, Yannis Kalantidis, Jianshu Li, Shuicheng Yan, Jiashi Feng.
A^2-Nets: Double Attention Networks. NeurIPS 2018. https://arxiv.org/abs/1810.11579
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    bias_of,
    check_channels,
    check_choice,
    check_hidden,
    query_index,
    reduced_channels,
)
from yolo_attn.registry import register


@register(
    paper="Chen, Kalantidis, Li, Yan, Feng: A^2-Nets: Double Attention Networks, NeurIPS 2018, "
    "arXiv 1810.11579",
    aliases=("A2",),
    cost="time O(4 N C k + 2 C m k), memory O(2 N k); m = k = C/4",
    identity_at_start=True,
    placement="behind several residual blocks of res3 and res4; here after P3, P4 or P5",
    width_options=("rd_channels", "descriptors"),
)
class DoubleAttention(nn.Module):
    """Gather k descriptors of the image, hand each position its own mix: ``z_n = x_n + W_o y_n``.

    - gather: ``g_q = sum_n beta_qn (W_a x_n)``, ``beta_q = softmax_n(W_b x_n)_q`` over the
      positions
    - distribute: ``y_n = sum_q alpha_qn g_q``, ``alpha_n = softmax_q(W_v x_n)`` over the
      descriptors

    W_a: C -> m, W_b and W_v: C -> k, W_o: m -> C, no scale factor. Linear in N. Both weights sum to
    1, so W_a may follow the sum over n and W_o precede the sum over q: the same result on k vectors
    instead of N; it is done so where it takes fewer products. The bias of W_b is left out: the
    softmax cancels it. W_o starts at zero: the identity at the start.

    A popular port leaves the shortcut outside (``form: projected``, ``W_o y``), and W_o on request
    (``form: plain``, y with m channels). Copies whose softmax has no axis take it over the batch
    instead; that is a mistake and not an option.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: m as a share of C, at least 8.
        rd_channels: m itself; overrides `rd_ratio`.
        descriptors: k; m by default.
        form: ``residual``, ``projected`` or ``plain``, see above.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 4,
        rd_channels: int | None = None,
        descriptors: int | None = None,
        form: str = "residual",
    ):
        super().__init__()
        check_channels("DoubleAttention", channels)
        self.form = check_choice(
            "DoubleAttention", "form", form, ("residual", "projected", "plain")
        )
        m = reduced_channels("DoubleAttention", channels, rd_ratio, rd_channels)
        k = (
            m
            if descriptors is None
            else check_hidden("DoubleAttention", "descriptors", descriptors, channels)
        )
        self.out_channels = m if form == "plain" else channels
        self.starts_as_identity = form == "residual"
        # Products per position: C k with the projection on the sums, else C m + m k.
        self.project_sums = channels * k <= m * (channels + k)
        self.a = nn.Conv2d(channels, m, 1)
        self.b = nn.Conv2d(channels, k, 1, bias=False)
        self.v = nn.Conv2d(channels, k, 1)
        self.out = nn.Conv2d(m, channels, 1) if form != "plain" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero W_o in front of a shortcut, else PyTorch's default."""
        if self.out is not None and self.form == "residual":
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(bias_of(self.out))

    def zero_started(self) -> Tensor | None:
        """Weights of W_o; None where no shortcut makes their zero the identity."""
        return self.out.weight if self.out is not None and self.form == "residual" else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``; m channels with ``form: plain``."""
        alpha, g = self._distribution(x), self._gather(x)
        if self.out is None:
            return (g @ alpha).unflatten(2, x.shape[2:])
        if self.project_sums:
            z = (self.out(g[..., None])[..., 0] @ alpha).unflatten(2, x.shape[2:])
        else:
            z = self.out((g @ alpha).unflatten(2, x.shape[2:]))
        return x + z if self.form == "residual" else z

    def _gather(self, x: Tensor) -> Tensor:
        """Descriptors ``(B, m, k)``."""
        beta = _softmax(self.b(x).flatten(2), 2).transpose(1, 2)
        if self.project_sums:
            return self.a((x.flatten(2) @ beta.to(x.dtype))[..., None])[..., 0]
        a = self.a(x).flatten(2)
        return a @ beta.to(a.dtype)

    def _distribution(self, x: Tensor) -> Tensor:
        """Weights alpha ``(B, k, N)`` of the descriptors at each position."""
        logits = self.v(x).flatten(2)
        return _softmax(logits, 1).to(logits.dtype)

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """Where given positions look, ``sum_q alpha_qi beta_qn``.

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column).

        Returns:
            ``(B, Q, H, W)``; each map sums to 1.
        """
        beta = _softmax(self.b(x).flatten(2), 2)
        logits = self.v(x).flatten(2)[..., query_index(queries, x.shape[3])]
        return (_softmax(logits, 1).transpose(1, 2) @ beta).unflatten(2, x.shape[2:])


def _softmax(logits: Tensor, axis: int) -> Tensor:
    """Softmax in float32 (float64 for float64)."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(axis)
