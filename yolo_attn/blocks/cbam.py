"""Convolutional block attention module, and each of its two gates alone.

Sanghyun Woo, Jongchan Park, Joon-Young Lee, In So Kweon.
CBAM: Convolutional Block Attention Module. ECCV 2018. https://arxiv.org/abs/1807.06521
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    NARROWEST,
    at_least_float32,
    check_channels,
    check_choice,
    check_flag,
    check_int,
    check_kernel,
    reduced_channels,
)
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.errors import YoloAttnError
from yolo_attn.registry import register


def _maximum(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Maximum over neighbouring dimensions.

    `amax` is the faster one forwards, but its gradient goes through masks as large as the map;
    `max` stores one index a maximum (and, as max pooling does, picks one of several equal ones).
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x.amax(dims)
    return x.flatten(dims[0], dims[-1]).max(dims[0]).values


def largest_channel(x: Tensor) -> Tensor:
    """``max_c x`` ``(B, H, W)``."""
    return _maximum(x, (1,))


def _average(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def _largest(x: Tensor) -> Tensor:
    return _maximum(x, (2, 3))


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(at_least_float32(x), dim=(2, 3)).to(x.dtype)


def _log_sum_exp(x: Tensor) -> Tensor:
    return at_least_float32(x).logsumexp((2, 3)).to(x.dtype)


POOLS = {"avg": _average, "max": _largest, "lp": _length, "lse": _log_sum_exp}


PAPER = (
    "Woo, Park, Lee, Kweon: CBAM: Convolutional Block Attention Module, ECCV 2018, arXiv 1807.06521"
)


@register(
    paper=PAPER,
    cost="time O(N C + 2 C^2/r), memory O(N C)",
    placement="the first half of CBAM; here after a stage",
    width_options=("rd_channels",),
)
class ChannelGate(nn.Module):
    """CBAM's channel gate alone: ``z = x * s_c``, ``s_c = sigma(m(mean_n x) + m(max_n x))`` (B, C).

    ``m(q) = W2 relu(W1 q + b1) + b2``, W1: C -> h. Not the identity at the start (about x/2).
    Unlike SE it also sees the largest value of each channel.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: h as a share of C.
        rd_channels: h itself; overrides `rd_ratio`.
        pools: What m sees of each channel, a list of ``avg``, ``max``, ``lp`` (square root of the
            sum of squares) and ``lse`` (logarithm of the sum of exponentials). b2 counts for each.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        pools: Sequence[str] = ("avg", "max"),
    ):
        super().__init__()
        self._add_channel_gate("ChannelGate", channels, rd_ratio, rd_channels, pools)

    def _add_channel_gate(
        self,
        block: str,
        channels: int,
        rd_ratio: float,
        rd_channels: int | None,
        pools: Sequence[str],
        bias: bool = True,
        rd_min: int = NARROWEST,
    ) -> None:
        check_channels(block, channels)
        if not isinstance(pools, (list, tuple)) or not pools:
            raise YoloAttnError(
                f"{block}: pools={pools!r} is not accepted (accepted: a list of {', '.join(POOLS)})"
            )
        self.pools = [check_choice(block, "pools", pool, POOLS) for pool in pools]
        check_int(block, "rd_min", rd_min, maximum=NARROWEST)
        h = reduced_channels(block, channels, rd_ratio, rd_channels, minimum=rd_min)
        self.out_channels = channels
        self.fc1 = nn.Linear(channels, h, bias=bias)
        self.fc2 = nn.Linear(h, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return x * self.channel_weights(x)[:, :, None, None]

    def channel_weights(self, x: Tensor) -> Tensor:
        """Channel gates ``(B, C)`` for the input `x`."""
        q = torch.stack([POOLS[pool](x) for pool in self.pools])
        # W2 is linear: once for the mean of the hidden vectors instead of once for each.
        hidden = self.fc1(q).relu().mean(0)
        return (len(self.pools) * self.fc2(hidden)).sigmoid()


@register(
    paper=PAPER,
    cost="time O(N (C + 2 k^2)), memory O(N C)",
    placement="the second half of CBAM; here after a stage",
)
class SpatialGate(nn.Module):
    """CBAM's position gate alone: ``z = x * s_s``, ``s_s = sigma(conv_kxk [max_c x, mean_c x])``.

    s_s is one map (B, 1, H, W) for all channels. Not the identity at the start (about x/2).

    The paper's text has no norm in it, the authors' code has one: ``norm: bn``.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        kernel_size: k, odd.
        norm: ``none`` or ``bn`` (momentum 0.01, in place of the bias) behind the k x k convolution.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    conv: nn.Conv2d | None
    norm: nn.BatchNorm2d | None

    def __init__(self, channels: int, kernel_size: int = 7, norm: str = "none"):
        super().__init__()
        self.out_channels = check_channels("SpatialGate", channels)
        self._add_position_gate("SpatialGate", kernel_size, norm)

    def _add_position_gate(
        self,
        block: str,
        kernel_size: int,
        norm: str,
        wanted: bool = True,
        bias: bool = True,
    ) -> None:
        check_kernel(block, "kernel_size", kernel_size)
        check_choice(block, "norm", norm, ("none", "bn"))
        padding, bias = kernel_size // 2, bias and norm == "none"
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=padding, bias=bias) if wanted else None
        self.norm = batch_norm(1, momentum=0.01) if wanted and norm == "bn" else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return x * self._position_gate(x)

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """The position gate.

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column); the gate does not depend on them.

        Returns:
            ``(B, Q, H, W)``, each value in (0, 1).
        """
        return self._position_gate(x).expand(-1, len(queries), -1, -1)

    def _position_gate(self, x: Tensor) -> Tensor:
        """s_s ``(B, 1, H, W)``."""
        assert self.conv is not None
        s = self.conv(torch.stack([largest_channel(x), x.mean(1)], dim=1))
        return (s if self.norm is None else self.norm(s)).sigmoid()


@register(
    paper=PAPER,
    cost="time O(N C + 4 C^2/r + 2 k^2 N), memory O(N C)",
    placement="at the end of every residual branch; here after a stage",
    width_options=("rd_channels",),
)
class CBAM(ChannelGate, SpatialGate):
    """Gate the channels, then the positions: ``x1 = x * s_c(x)``, ``z = x1 * s_s(x1)``.

    ``s_c = sigma(m(mean_n x) + m(max_n x))`` (B, C), ``m(q) = W2 relu(W1 q + b1) + b2``,
    W1: C -> h; ``s_s = sigma(conv_kxk [max_c x1, mean_c x1])`` (B, 1, H, W). Not the identity at
    the start (about x/4).

    The paper's text has no norm in the position gate, the authors' code has one: ``norm: bn``.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: h as a share of C, at least 8.
        rd_channels: h itself; overrides `rd_ratio`.
        kernel_size: k, odd.
        norm: ``none`` or ``bn`` (momentum 0.01, in place of the bias) behind the k x k convolution.
        pools: What m sees of each channel, a list of ``avg``, ``max``, ``lp`` (square root of the
            sum of squares) and ``lse`` (logarithm of the sum of exponentials). b2 counts for each.
        spatial: Whether there is a position gate.
        bias: Whether W1, W2 and the k x k convolution have biases.
        rd_min: Smallest h that `rd_ratio` gives, 1 to 8 (1: what forks have).

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        kernel_size: int = 7,
        norm: str = "none",
        pools: Sequence[str] = ("avg", "max"),
        spatial: bool = True,
        bias: bool = True,
        rd_min: int = NARROWEST,
    ):
        nn.Module.__init__(self)  # not those of the gates, which have other options
        check_flag("CBAM", "spatial", spatial)
        check_flag("CBAM", "bias", bias)
        self._add_channel_gate("CBAM", channels, rd_ratio, rd_channels, pools, bias, rd_min)
        self._add_position_gate("CBAM", kernel_size, norm, wanted=spatial, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        x = ChannelGate.forward(self, x)
        return x if self.conv is None else SpatialGate.forward(self, x)

    def gate_map(self, x: Tensor) -> Tensor:
        """Product of both gates ``(B, C, H, W)`` for the input `x`."""
        s_c = self.channel_weights(x)[:, :, None, None]
        if self.conv is None:
            return s_c.expand_as(x)
        return s_c * self._position_gate(x * s_c)

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """The position gate, as :meth:`SpatialGate.attention`.

        Raises:
            YoloAttnError: The block was built with ``spatial: false`` and has no such gate.
        """
        if self.conv is None:
            raise YoloAttnError("CBAM: spatial=False has no position gate (spatial=True has)")
        return SpatialGate.attention(self, ChannelGate.forward(self, x), queries)
