"""Selective kernel unit.

Xiang Li, Wenhai Wang, Xiaolin Hu, Jian Yang.
Selective Kernel Networks. CVPR 2019. https://arxiv.org/abs/1903.06586
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    PooledNorm,
    at_least_float32,
    check_channels,
    check_flag,
    check_int,
    check_kernel,
    check_width,
    reduced_channels,
)
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.errors import YoloAttnError
from yolo_attn.ops.elementwise import add_product
from yolo_attn.registry import register


@register(
    paper="Li, Wang, Hu, Yang: Selective Kernel Networks, CVPR 2019, arXiv 1903.06586",
    aliases=("SelectiveKernel",),
    cost="time O(M N C^2 k^2 / G + C d), memory O(M N C) in training, M branches, G = 32 groups",
    placement="in place of the 3x3 convolution of a bottleneck; here after a stage",
    width_options=("out_channels", "rd_channels"),
)
class SK(nn.Module):
    """Every channel chooses among receptive fields: ``v = sum_m a_m * u_m``.

    ``u_m = relu(BN(conv_m x))`` for M branches of different reach, ``s = mean_n sum_m u_m`` (B, C),
    ``z = relu(BN(W s))`` (B, d), ``a = softmax_m(A_m z)`` (B, M, C): for each channel its own
    softmax over the branches. ``d = max(C/16, 32)``. No shortcut; not the identity at the start.

    The paper's 5x5 branch is a 3x3 one of dilation 2 (``keep_3x3``), with 32 groups; where 32 does
    not divide the widths, the largest smaller number that does (16 for C = 16, 20 for C = 40 and
    80). timm's default is another: every branch sees only its part of the channels
    (``split_input: true``) and convolves it in one group.

    The BN of z sees one vector an image. A batch of 1 has no variance: z is normalised with the
    running statistics then, in training too (they start as mean 0, variance 1, and such a step
    leaves them as they are). A batch of 2 lets little more than signs through.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: d as a share of the output channels, at least 32.
        rd_channels: d itself; overrides `rd_ratio`.
        kernel_size: Sides of the branches' reach, one a branch, odd, at least two of them.
        groups: Groups of the branches' convolutions, see above.
        out_channels: Channels of the output; C by default.
        stride: Stride of the branches.
        dilation: Dilation of the branches, on top of that of `keep_3x3`.
        keep_3x3: Reach k by a 3x3 kernel with dilation (k - 1) / 2 instead of a k x k one.
        split_input: Branch m sees only the m-th part of the channels.

    Raises:
        YoloAttnError: An option's value is not accepted, or `split_input` does not divide C.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        kernel_size: Sequence[int] = (3, 5),
        groups: int = 32,
        out_channels: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        keep_3x3: bool = True,
        split_input: bool = False,
    ):
        super().__init__()
        check_channels("SK", channels)
        out_channels = channels if out_channels is None else out_channels
        check_width("SK", "out_channels", out_channels)
        check_int("SK", "groups", groups, maximum=1024)
        check_int("SK", "stride", stride, maximum=8)
        check_int("SK", "dilation", dilation, maximum=64)
        check_flag("SK", "keep_3x3", keep_3x3)
        self.split_input = check_flag("SK", "split_input", split_input)
        sides = _sides(kernel_size, smallest=3 if keep_3x3 else 1)
        if split_input:
            check_channels("SK: split_input=True", channels, divisor=len(sides))
        seen = channels // len(sides) if split_input else channels
        common = math.gcd(seen, out_channels)
        groups = next(g for g in range(min(groups, common), 0, -1) if common % g == 0)
        self.out_channels = out_channels
        self.branches = nn.ModuleList(
            Branch(
                seen,
                out_channels,
                kernel=3 if keep_3x3 else k,
                stride=stride,
                dilation=dilation * (k - 1) // 2 if keep_3x3 else dilation,
                groups=groups,
            )
            for k in sides
        )
        d = reduced_channels("SK", out_channels, rd_ratio, rd_channels, minimum=32)
        self.select = BranchSoftmax(out_channels, len(sides), d)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H, W)``, smaller with a stride."""
        maps = self._maps(x)
        weights = self.select(maps).unbind(1)
        v = maps[0] * weights[0]
        for u, a in zip(maps[1:], weights[1:]):
            v = add_product(v, u, a)
        return v

    def branch_weights(self, x: Tensor) -> Tensor:
        """Softmax weights a ``(B, M, C)`` for the input `x`."""
        return self.select(self._maps(x)).flatten(2)

    def _maps(self, x: Tensor) -> list[Tensor]:
        parts = x.chunk(len(self.branches), 1) if self.split_input else [x] * len(self.branches)
        return [branch(part) for branch, part in zip(self.branches, parts)]


class Branch(nn.Module):
    """``relu(BN(conv x))``, "same" padding."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int, stride: int, dilation: int, groups: int
    ):
        super().__init__()
        self.conv = nn.Conv2d(
            channels,
            out_channels,
            kernel,
            stride=stride,
            padding=(stride - 1 + dilation * (kernel - 1)) // 2,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.norm = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, H, W) -> (B, out_channels, H', W')``."""
        return F.relu(self.norm(self.conv(x)))


class BranchSoftmax(nn.Module):
    """Weights of M maps ``(B, C, H, W)`` from their summed means; logits start near zero."""

    def __init__(self, channels: int, branches: int, d: int):
        super().__init__()
        self.branches = branches
        self.reduce = nn.Conv2d(channels, d, 1, bias=False)
        self.norm = PooledNorm(d)
        # Output channel m * C + c belongs to branch m.
        self.expand = nn.Conv2d(d, branches * channels, 1, bias=False)
        nn.init.normal_(self.expand.weight, std=0.01)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """M maps ``(B, C, H, W) -> (B, M, C, 1, 1)``."""
        total = maps[0]
        for u in maps[1:]:
            total = total + u
        s = total.mean((2, 3), keepdim=True)
        logits = self.expand(self.norm(self.reduce(s)).relu())
        # In float32, then back: float32 weights would lift the whole map to float32 under autocast.
        weights = at_least_float32(logits).unflatten(1, (self.branches, -1)).softmax(1)
        return weights.to(maps[0].dtype)


def _sides(kernel_size: Sequence[int], smallest: int) -> list[int]:
    if not isinstance(kernel_size, (list, tuple)) or len(kernel_size) < 2:
        raise YoloAttnError(
            f"SK: kernel_size={kernel_size!r} is not accepted "
            "(accepted: a list of at least two odd whole numbers)"
        )
    return [check_kernel("SK", "kernel_size", k, smallest) for k in kernel_size]
