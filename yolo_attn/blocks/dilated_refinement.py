"""Multi-dilated channel refiner (HCF-Net).

Shibiao Xu, ShuChen Zheng, Wenhao Xu, Rongtao Xu, Changwei Wang, Jiguang Zhang, Xiaoqiang Teng, Ao
Li, Li Guo. HCF-Net: Hierarchical Context Fusion Network for Infrared Small Object Detection. ICME
2024. https://arxiv.org/abs/2403.10778
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    check_channels,
    check_choice,
    check_flag,
    check_int,
    check_width,
)
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.blocks.patch_aware_attention import PAPER
from yolo_attn.errors import YoloAttnError
from yolo_attn.registry import register


class SharedNorm(nn.BatchNorm2d):
    """Batch norm of groups that come one after the other to the same few channels.

    The input has n channels for each of this norm's; channel ``k * n + j`` is channel k of group j.
    In training every group has its own mean and variance, and the running ones take n steps, in the
    order of j: ``r <- (1 - m)^n r + m sum_j (1 - m)^(n - 1 - j) r_j``.
    """

    if TYPE_CHECKING:  # this one always has them
        running_mean: Tensor
        running_var: Tensor
        num_batches_tracked: Tensor
        momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """``(B, K n, H, W) -> (B, K n, H, W)``."""
        n = x.shape[1] // self.num_features
        weight, bias = (p.repeat_interleave(n) for p in (self.weight, self.bias))
        if not self.training:
            mean, var = (r.repeat_interleave(n) for r in (self.running_mean, self.running_var))
            return F.batch_norm(x, mean, var, weight, bias, eps=self.eps)
        # Running statistics that take everything from this batch are this batch's statistics.
        mean = torch.zeros(x.shape[1], dtype=self.running_mean.dtype, device=x.device)
        var = torch.ones_like(mean)
        y = F.batch_norm(x, mean, var, weight, bias, training=True, momentum=1.0, eps=self.eps)
        with torch.no_grad():
            keep = 1 - self.momentum
            step = torch.arange(n - 1, -1, -1, dtype=mean.dtype, device=mean.device)
            share = self.momentum * keep**step
            for running, batch in ((self.running_mean, mean), (self.running_var, var)):
                running.mul_(keep**n).add_((batch.view(-1, n) * share).sum(1))
            self.num_batches_tracked.add_(n)
        return y


@register(
    paper=PAPER,
    cost="time O(N O (9 + 4 + O)), memory O(N O)",
    placement="the bottom of a U-Net (512 channels, stride 16); here after P5 or P4",
    width_options=("out_channels",),
)
class MDCR(nn.Module):
    """Four dilations, one for each quarter of the channels, mixed channel by channel.

    ``z_i = f(dw_i(x_i))``: 3 x 3 depthwise convolution with dilation r_i of the i-th quarter of the
    channels to O/4. ``h_j = f(W_s [z_1j, z_2j, z_3j, z_4j])`` with one 4 x 4 matrix W_s for all j,
    ``y = f(W [h_1, ..., h_{O/4}])``; ``f = relu(BN)``. Not the identity at the start.

    The BN behind W_s has statistics and an affine map of its own for every channel. The authors'
    code has one BN of four channels for all j (``stats: shared``): in training every j has its own
    statistics, and the running ones take O/4 steps a batch in the order of j, so that the last few
    j, about ``1 / momentum`` of them, make up what evaluation uses for all. Its block is another
    function in evaluation than in training (outputs differ by 16 to 66 %). Here W_s acts on all j
    at once.

    The code fixes the number of groups at 128, which is depthwise at the paper's 512 channels; the
    default is depthwise at every width. Biases in front of a BN are left out.

    Args:
        channels: C of the input ``(B, C, H, W)``, a multiple of 4.
        out_channels: O, a multiple of 4; C by default.
        rates: The four dilations.
        groups: Groups of the dilated convolutions, or the nearest lower number that divides both
            C/4 and O/4; by default as many as possible.
        norm: ``bn`` or ``none`` (a bias instead), for all of f.
        activation: Whether f has a ReLU.
        stats: ``channel`` or ``shared``: the BN behind W_s, see above.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        rates: Sequence[int] = (1, 6, 12, 18),
        groups: int | None = None,
        norm: str = "bn",
        activation: bool = True,
        stats: str = "channel",
    ):
        super().__init__()
        c = check_channels("MDCR", channels, 4)
        o = c if out_channels is None else check_width("MDCR", "out_channels", out_channels)
        if o % 4:
            raise YoloAttnError(
                f"MDCR: out_channels={o} is not accepted (accepted: a multiple of 4)"
            )
        if not isinstance(rates, (list, tuple)) or len(rates) != 4:
            raise YoloAttnError(
                f"MDCR: rates={rates!r} is not accepted (accepted: four whole numbers >= 1)"
            )
        rates = [check_int("MDCR", "rates", rate, maximum=64) for rate in rates]
        most = math.gcd(c // 4, o // 4)
        wanted = most if groups is None else check_int("MDCR", "groups", groups, maximum=1024)
        groups = max(g for g in range(1, min(wanted, most) + 1) if most % g == 0)
        bias = check_choice("MDCR", "norm", norm, ("bn", "none")) == "none"
        self.activation = check_flag("MDCR", "activation", activation)
        check_choice("MDCR", "stats", stats, ("channel", "shared"))
        self.out_channels = o
        self.branches = nn.ModuleList(
            nn.Conv2d(c // 4, o // 4, 3, padding=r, dilation=r, groups=groups, bias=bias)
            for r in rates
        )
        self.norm = None if bias else batch_norm(o)
        self.mix = nn.Conv2d(4, 4, 1, bias=bias)
        self.mix_norm: nn.Module | None = None
        if not bias:
            self.mix_norm = batch_norm(o) if stats == "channel" else SharedNorm(4)
        self.out = nn.Conv2d(o, o, 1, bias=bias)
        self.out_norm = None if bias else batch_norm(o)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, O, H, W)``."""
        z = torch.cat([f(q) for f, q in zip(self.branches, x.chunk(4, dim=1))], dim=1)
        z = self._f(z, self.norm)
        # Branch by branch, all j of a branch in one long row: W_s mixes the branches without
        # bringing the four channels of a j together. So h is ordered by branch, not by j.
        h = self.mix(z.reshape(z.shape[0], 4, -1, z.shape[3])).reshape(z.shape)
        return self._f(self.out(self._f(h, self.mix_norm)), self.out_norm)

    def _f(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        x = x if norm is None else norm(x)
        return F.relu(x) if self.activation else x
