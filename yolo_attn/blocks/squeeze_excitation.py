"""Squeeze-and-excitation.

Jie Hu, Li Shen, Samuel Albanie, Gang Sun, Enhua Wu.
Squeeze-and-Excitation Networks. CVPR 2018. https://arxiv.org/abs/1709.01507
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    NARROWEST,
    PooledNorm,
    check_channels,
    check_choice,
    check_flag,
    check_int,
    reduced_channels,
)
from yolo_attn.registry import register

ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}
GATES = {"sigmoid": F.sigmoid, "hard_sigmoid": F.hardsigmoid}


@register(
    paper="Hu, Shen, Albanie, Sun, Wu: Squeeze-and-Excitation Networks, CVPR 2018, "
    "arXiv 1709.01507",
    cost="time O(N C + 2 C^2/r), memory O(C)",
    placement="at the end of a residual branch, in every block; here after a stage",
    width_options=("rd_channels",),
)
class SE(nn.Module):
    """Scale each channel by a gate that sees all channel means.

    ``z = x * sigma(W2 relu(W1 mean_n x))``

    W1: C -> h, W2: h -> C, ``h = C * rd_ratio``. Not the identity at the start (about x/2).

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: h as a share of C, at least 8.
        rd_channels: h itself; overrides `rd_ratio`.
        rd_divisor: Round h to a multiple of this (timm: 8).
        bias: Whether W1 and W2 have a bias.
        pool: Squeeze by ``avg`` or by ``avg_max`` (half the mean and half the maximum).
        norm: ``none`` or ``bn`` behind W1 (with its running statistics in a batch of one image).
        act: ``relu``, ``silu``, ``gelu`` or ``hardswish`` behind W1.
        gate: ``sigmoid`` or ``hard_sigmoid``.
        rd_min: Smallest h that `rd_ratio` gives, 1 to 8 (1: what forks have).

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        bias: bool = True,
        pool: str = "avg",
        norm: str = "none",
        act: str = "relu",
        gate: str = "sigmoid",
        rd_min: int = NARROWEST,
    ):
        super().__init__()
        check_channels("SE", channels)
        check_int("SE", "rd_divisor", rd_divisor, maximum=256)
        check_flag("SE", "bias", bias)
        self.pool = check_choice("SE", "pool", pool, ("avg", "avg_max"))
        check_choice("SE", "norm", norm, ("none", "bn"))
        self.act = check_choice("SE", "act", act, ACTS)
        self.gate = check_choice("SE", "gate", gate, GATES)
        check_int("SE", "rd_min", rd_min, maximum=NARROWEST)
        h = reduced_channels("SE", channels, rd_ratio, rd_channels, rd_min, rd_divisor)
        self.out_channels = channels
        self.fc1 = nn.Conv2d(channels, h, 1, bias=bias)
        self.norm = PooledNorm(h) if norm == "bn" else None
        self.fc2 = nn.Conv2d(h, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return x * self._gates(x)

    def channel_weights(self, x: Tensor) -> Tensor:
        """Gates ``(B, C)`` for the input `x`."""
        return self._gates(x).flatten(1)

    def _gates(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3), keepdim=True)
        if self.pool == "avg_max":
            s = 0.5 * s + 0.5 * x.amax((2, 3), keepdim=True)
        s = self.fc1(s)
        if self.norm is not None:
            s = self.norm(s)
        return GATES[self.gate](self.fc2(ACTS[self.act](s)))
