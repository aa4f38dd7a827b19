"""Parallelized patch-aware attention and its local-global attention (HCF-Net).

Shibiao Xu, ShuChen Zheng, Wenhao Xu, Rongtao Xu, Changwei Wang, Jiguang Zhang, Xiaoqiang Teng, Ao
Li, Li Guo. HCF-Net: Hierarchical Context Fusion Network for Infrared Small Object Detection. ICME
2024. https://arxiv.org/abs/2403.10778
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    at_least_float32,
    bias_of,
    check_channels,
    check_choice,
    check_number,
    check_width,
)
from yolo_attn.blocks._conv_norm import ConvNorm
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.blocks.cbam import _maximum
from yolo_attn.blocks.eca import adaptive_kernel, channel_kernel, correlate, reset_channel_kernel
from yolo_attn.ops.precision import without_autocast
from yolo_attn.registry import register

PAPER = (
    "Xu, Zheng, Xu, Xu, Wang, Zhang, Teng, Li, Guo: HCF-Net: Hierarchical Context Fusion Network "
    "for Infrared Small Object Detection, ICME 2024, arXiv 2403.10778"
)
PATCH_MEANS = ("channels", "memory")
BORDERS = ("pad", "drop")


class LocalGlobalAttention(nn.Module):
    """Patches chosen by a learned prompt: ``y = W up(s_i T^T z_i) + b``, one z_i (C) a patch.

    ``v = W2 LN(W1 t + b1) + b2``, ``z = v * softmax_c(v)``, ``s = clamp(cos(z, prompt), 0, 1)``;
    t (P^2) are the means over the channels at each place of a P x P patch. The patches' vectors are
    resized bilinearly to the map.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        patch_size: P.
        patch_mean: What t is; see :class:`PPA`.
        border: What happens to rows and columns that fill no patch; see :class:`PPA`.
    """

    def __init__(
        self, channels: int, patch_size: int, patch_mean: str = "channels", border: str = "pad"
    ):
        super().__init__()
        self.patch_size = patch_size
        self.patch_mean = patch_mean
        self.border = border
        self.mlp1 = nn.Linear(patch_size**2, max(channels // 2, 1))
        self.norm = nn.LayerNorm(max(channels // 2, 1), eps=1e-5)
        self.mlp2 = nn.Linear(max(channels // 2, 1), channels)
        self.prompt = nn.Parameter(torch.empty(channels))
        self.top_down = nn.Parameter(torch.empty(channels, channels))
        self.conv = nn.Conv2d(channels, channels, 1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A normal prompt, on the side of an empty patch's vector; T is the identity.

        At the start the vectors of all patches point about the same way. On the other side of the
        prompt the clamp would let no gradient through, and the branch would stay 0 for good (every
        second time, were the side left to chance).
        """
        nn.init.normal_(self.prompt)
        nn.init.eye_(self.top_down)
        empty = self._vectors(self.mlp1.weight.new_zeros(self.patch_size**2))
        self.prompt.mul_(torch.where(empty @ self.prompt < 0, -1.0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return self.spread(self.summary(x))

    def summary(self, x: Tensor) -> Tensor:
        """All that the patches read of x: the mean over its channels, or x itself."""
        return x.mean(1, keepdim=True) if self.patch_mean == "channels" else x

    def spread(self, summary: Tensor) -> Tensor:
        """The output ``(B, C, H, W)`` for the summary of an input."""
        p, size = self.patch_size, summary.shape[2:]
        down, right = (self._missing(length) for length in size)
        # Channels of a patch in the order (c, row, column): the memory order of the reference.
        t = F.pixel_unshuffle(F.pad(summary, (0, right, 0, down)), p)
        grid = t.shape[2:]
        if self.patch_mean == "memory":
            t = t.unflatten(1, (p * p, -1)).mean(2)
        z = self._chosen(t.flatten(2).transpose(1, 2))
        # The bilinear weights of a position sum to 1: the convolution may act on the patches.
        weight = self.conv.weight.flatten(1)
        y = (weight.to(z.dtype) @ z.transpose(1, 2)).unflatten(2, grid)
        y = y + bias_of(self.conv).to(y.dtype)[:, None, None]
        if self.border == "drop":
            return F.interpolate(y, size=size, mode="bilinear", align_corners=False)
        y = F.interpolate(y, scale_factor=float(p), mode="bilinear", align_corners=False)
        return y[:, :, : size[0], : size[1]]

    def _missing(self, length: int) -> int:
        """Zeros to add at the end of an axis (below 0: rows to drop)."""
        p = self.patch_size
        if self.border == "drop" and length >= p:
            return -(length % p)
        return -length % p

    def _chosen(self, t: Tensor) -> Tensor:
        """``s T^T z`` ``(B, n, C)`` for the patches' vectors ``(B, n, P^2)``."""
        z = self._vectors(t)
        dtype = t.dtype
        # The floor of the norms, 1e-12, is 0 in float16.
        with without_autocast(z):
            prompt = F.normalize(self.prompt.to(z.dtype), dim=0, eps=1e-12)
            # A column: MNN's converter does not take a matrix times a vector.
            z = z * (F.normalize(z, dim=2, eps=1e-12) @ prompt[:, None]).clamp(0, 1)
        return z.to(dtype) @ self.top_down.to(dtype)

    def _vectors(self, t: Tensor) -> Tensor:
        """The vectors z of patches ``(..., P^2)``, at least in float32."""
        v = at_least_float32(self.mlp2(self.norm(self.mlp1(t))))
        return v * v.softmax(-1)


@register(
    paper=PAPER,
    cost="time O(9 N D (C + 2 D) + N D), memory O(N D)",
    placement="every stage of a U-Net's encoder and decoder; here after P2, P3 or a neck layer",
    width_options=("out_channels",),
)
class PPA(nn.Module):
    """Convolutions beside attention to patches: ``y = relu(BN(drop(s_s(s_c(u)))))``.

    ``u = x1 + x2 + x3 + s + lga_2(s) + lga_4(s)``; ``s = BN(W x)`` (1 x 1), ``x1 = f(x)``,
    ``x2 = f(x1)``, ``x3 = f(x2)`` with ``f = relu(BN(conv3x3))``. s_c is ECA's channel gate, s_s a
    position gate ``sigma(conv7x7 [mean_c, max_c])``. All D channels wide. lga_P of P x P patches:
    ``v = W2 LN(W1 t + b1) + b2``, ``z = v * softmax_c(v)``, ``clamp(cos(z, prompt), 0, 1) T^T z``,
    resized bilinearly to the map, 1 x 1 convolution (applied before the resize: the two commute).
    t (P^2) holds the mean over channels at each place of the patch. Not the identity at the start.

    The authors' code reads a patch, which lies in memory as (channel, row, column), as P^2 rows of
    D and averages those: ``patch_mean: memory``. It also drops rows and columns that fill no patch
    and stretches the others over the map: ``border: drop``, which differs from the default only
    where 4 (or 2) does not divide the map's sides. Biases in front of a BN are left out.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: D, C by default.
        dropout: Share of channels to drop in training.
        patch_mean: ``channels`` (the paper's mean) or ``memory`` (the code's).
        border: ``pad`` (zeros complete the last patches) or ``drop`` (as the code; in an axis
            shorter than a patch, zeros).

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        dropout: float = 0.1,
        patch_mean: str = "channels",
        border: str = "pad",
    ):
        super().__init__()
        check_channels("PPA", channels)
        d = channels if out_channels is None else check_width("PPA", "out_channels", out_channels)
        check_choice("PPA", "patch_mean", patch_mean, PATCH_MEANS)
        check_choice("PPA", "border", border, BORDERS)
        self.dropout = check_number("PPA", "dropout", dropout, 0.0, 1.0)
        self.out_channels = d
        self.skip = ConvNorm(channels, d, 1, slope=1.0)
        self.c1 = ConvNorm(channels, d, 3)
        self.c2 = ConvNorm(d, d, 3)
        self.c3 = ConvNorm(d, d, 3)
        self.lga2 = LocalGlobalAttention(d, 2, patch_mean, border)
        self.lga4 = LocalGlobalAttention(d, 4, patch_mean, border)
        self.gate = channel_kernel(adaptive_kernel("PPA", d, 2, "beta", 1))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)
        self.norm = batch_norm(d)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's default for the channel gate's kernel."""
        reset_channel_kernel(self.gate)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, D, H, W)``."""
        u = self._sum(x)
        v = u * self._channel_gate(u)[:, :, None, None]
        y = v * self._position_gate(v)
        if self.dropout:
            y = F.dropout2d(y, self.dropout, self.training)
        return F.relu(self.norm(y))

    def channel_weights(self, x: Tensor) -> Tensor:
        """Channel gates ``(B, D)`` for the input `x`."""
        return self._channel_gate(self._sum(x))

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """The position gate.

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column); the gate does not depend on them.

        Returns:
            ``(B, Q, H, W)``, each value in (0, 1).
        """
        u = self._sum(x)
        gate = self._position_gate(u * self._channel_gate(u)[:, :, None, None])
        return gate.expand(-1, len(queries), -1, -1)

    def _sum(self, x: Tensor) -> Tensor:
        """The sum u ``(B, D, H, W)``."""
        s = self.skip(x)
        x1 = self.c1(x)
        x2 = self.c2(x1)
        u = s + x1 + x2 + self.c3(x2)
        summary = self.lga2.summary(s)
        return u + self.lga2.spread(summary) + self.lga4.spread(summary)

    def _channel_gate(self, u: Tensor) -> Tensor:
        return correlate(u.mean((2, 3)), self.gate).sigmoid()

    def _position_gate(self, v: Tensor) -> Tensor:
        """s_s ``(B, 1, H, W)``."""
        return self.spatial(torch.stack([v.mean(1), _maximum(v, (1,))], dim=1)).sigmoid()
