"""Expectation-maximization attention unit.

Xia Li, Zhisheng Zhong, Jianlong Wu, Yibo Yang, Zhouchen Lin, Hong Liu.
Expectation-Maximization Attention Networks for Semantic Segmentation. ICCV 2019.
https://arxiv.org/abs/1907.13426
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    at_least_float32,
    bias_of,
    check_channels,
    check_hidden,
    check_int,
    check_number,
    query_index,
)
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.ops.precision import without_autocast
from yolo_attn.registry import register

EPS = 1e-6
CUT = "lies before the EM steps, through which the paper lets no gradient"


@register(
    paper="Li, Zhong, Wu, Yang, Lin, Liu: Expectation-Maximization Attention Networks for Semantic "
    "Segmentation, ICCV 2019, arXiv 1907.13426",
    cost="time O(N C^2 + N C K (2 T + 1) + 2 T C^2 K), memory O(N (C + K)); K = 64, T = 3",
    placement="between the backbone (output stride 8) and the classifier; here after P4 or P5",
    dead_parameters={"reduce.weight": CUT, "reduce.bias": CUT},
)
class EMAU(nn.Module):
    """Rebuild the map from K bases that EM fits to each image: ``z = relu(BN(W relu(R)) + x)``.

    ``f = W_1 x + b_1``, bases mu ``(C, K)``, T times

    - ``z_n = softmax_k(f_n . mu_k)`` for each position n
    - ``mu_k = sum_n z_nk f_n / (eps + sum_n z_nk)``, then ``mu_k / (eps + |mu_k|)``

    and ``R_n = sum_k z_nk mu_k``. Every image starts from the same bases, which follow the batch
    mean of the fitted ones in training (`momentum`; the authors do this in their training script).
    The steps run without gradient, as the authors intend: W_1 stays as it was drawn and x learns
    through the shortcut alone. Not the identity at the start.

    W_1 is linear, so it acts on the K bases in place of the N positions where there are many.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        bases: K.
        steps: T.
        momentum: Share of the running bases that a training step keeps; 1 leaves them alone.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(self, channels: int, bases: int = 64, steps: int = 3, momentum: float = 0.9):
        super().__init__()
        check_channels("EMAU", channels)
        check_hidden("EMAU", "bases", bases, channels)
        self.steps = check_int("EMAU", "steps", steps, maximum=32)
        self.momentum = check_number("EMAU", "momentum", momentum, 0.0, 1.0)
        self.out_channels = channels
        self.reduce = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = batch_norm(channels)
        self.bases: Tensor
        self.register_buffer("bases", torch.empty(channels, bases))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal convolutions with variance ``2 / fan_out``; normal bases of length 1."""
        for conv in (self.reduce, self.out):
            nn.init.normal_(conv.weight, std=(2 / conv.out_channels) ** 0.5)
        nn.init.zeros_(bias_of(self.reduce))
        nn.init.normal_(self.bases, std=(2 / self.bases.shape[1]) ** 0.5)
        with torch.no_grad():
            self.bases.copy_(_unit(self.bases))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        z, mu = self.fit(x)
        if self.training and self.momentum < 1:
            with torch.no_grad():
                self.bases.lerp_(mu.mean(0).to(self.bases.dtype), 1 - self.momentum)
        r = (mu.to(x.dtype) @ z.to(x.dtype)).relu().reshape(x.shape)
        return F.relu(self.norm(self.out(r)) + x)

    @torch.no_grad()
    def fit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The EM steps.

        Args:
            x: The block's input ``(B, C, H, W)``.

        Returns:
            Responsibilities z ``(B, K, N)`` of the last step, which sum to 1 over K, and the bases
            ``(B, C, K)`` after it; in float32 (float64 for float64).
        """
        with without_autocast(x):
            positions = at_least_float32(x).flatten(2)
            weight = at_least_float32(self.reduce.weight).flatten(1)
            bias = at_least_float32(bias_of(self.reduce))[:, None]
            mu = at_least_float32(self.bases).expand(x.shape[0], -1, -1)
            on_bases = positions.shape[2] > 4 * self.steps * mu.shape[2]
            f = positions if on_bases else weight @ positions + bias
            for _ in range(self.steps):
                if on_bases:
                    # The bias adds the same to a base's logits everywhere, another to each base.
                    logits = (weight.T @ mu).transpose(1, 2) @ f + mu.transpose(1, 2) @ bias
                else:
                    logits = mu.transpose(1, 2) @ f
                z = logits.softmax(1)
                total = z.sum(2)[:, None]
                sums = f @ z.transpose(1, 2)
                sums = weight @ sums + bias * total if on_bases else sums
                mu = _unit(sums / (EPS + total))
        return z, mu

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """Which positions share their bases with given ones, ``sum_k z_ik z_jk / sum_j z_jk``.

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column).

        Returns:
            ``(B, Q, H, W)``; each map sums to 1.
        """
        z, _ = self.fit(x)
        share = z / z.sum(2, keepdim=True).clamp_min(EPS)
        rows = z[..., query_index(queries, x.shape[3])].transpose(1, 2) @ share
        return rows.unflatten(2, x.shape[2:])


def _unit(mu: Tensor) -> Tensor:
    """Columns ``(..., C, K)`` of length 1."""
    return mu / (EPS + mu.norm(dim=-2, keepdim=True))
