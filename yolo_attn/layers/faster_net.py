"""FasterNet's partial convolution, its block, and a C2f of such blocks.

Jierun Chen, Shiu-hong Kao, Hao He, Weipeng Zhuo, Song Wen, Chul-Ho Lee, S.-H. Gary Chan. Run, Don't
Walk: Chasing Higher FLOPS for Faster Neural Networks. CVPR 2023. https://arxiv.org/abs/2303.03667
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import check_channels, check_int, check_number
from yolo_attn.errors import YoloAttnError
from yolo_attn.layers._common import (
    activation,
    drop_path,
    host_conv,
    kept_width,
    kernel_side,
    out_width,
)
from yolo_attn.layers._split_stage import SplitStage
from yolo_attn.registry import register

PAPER = (
    "Chen, Kao, He, Zhuo, Wen, Lee, Chan: Run, Don't Walk: Chasing Higher FLOPS for Faster Neural "
    "Networks, CVPR 2023, arXiv 2303.03667"
)


@register(
    layer=True,
    paper=PAPER,
    cost="time O(k^2 N (C / n)^2): 1 / n^2 of a convolution",
    placement="first in a FasterNetBlock; in place of a bottleneck's 3 x 3 convolution",
    width_options=("out_channels",),
)
class PConv(nn.Module):
    """Convolve the first channels only: ``y = [conv_k x[:C/n], x[C/n:]]``, no norm, no bias.

    Not the pinwheel convolution that goes by the same name.

    Args:
        channels: C of the input ``(B, C, H, W)``, at least n.
        out_channels: None or C, which the layer keeps.
        kernel_size: k, odd.
        stride: 1: most channels stay as they are.
        n_div: n; C / n is rounded down.

    Raises:
        YoloAttnError: An option's value is not accepted; fewer channels than n.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        n_div: int = 4,
    ):
        super().__init__()
        check_channels("PConv", channels)
        self.out_channels = kept_width("PConv", out_channels, channels)
        k = kernel_side("PConv", kernel_size)
        if isinstance(stride, bool) or stride != 1:
            raise YoloAttnError(f"PConv: stride={stride!r} is not accepted (accepted: 1)")
        c = self.convolved = channels // check_int("PConv", "n_div", n_div, maximum=channels)
        if c < 1:
            raise YoloAttnError(
                f"PConv: n_div={n_div} is not accepted with channels={channels} (accepted: at most "
                f"{channels})"
            )
        self.conv = nn.Conv2d(c, c, k, padding=k // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        first, rest = x.split([self.convolved, x.shape[1] - self.convolved], dim=1)
        y = self.conv(first)
        return torch.cat([y, rest.to(y.dtype)], 1)


@register(
    layer=True,
    paper=PAPER,
    cost="time O(N C^2 (9 / n^2 + 2 r)), 2 r C^2 and a few parameters",
    placement="FasterNet is made of them; here in place of a stage's bottlenecks",
    width_options=("out_channels",),
)
class FasterNetBlock(nn.Module):
    """Partial convolution and a two-layer MLP: ``y = x + l * W2 act(BN(W1 PConv(x)))``.

    Only the first C/n channels meet their neighbours, always the same ones; the 1 x 1 layers
    exchange them. No norm after W2. FasterNet's larger models have ReLU, T0 and T1 GELU, the YOLO
    forks (`Faster_Block`) SiLU.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: D; where it is not C, a 1 x 1 convolution with norm and activation gives x
            this width first. Default C.
        mlp_ratio: r, hidden width as a multiple of D.
        n_div: n of the partial convolution.
        act: ``silu``, ``relu``, ``relu6``, ``gelu``, ``mish``, ``hardswish`` or ``none``; None is
            the model's own.
        layer_scale: Start of l, one learned factor a channel; 0 for none.
        drop_path: Share of images whose branch is dropped in training (the forks: 0.1, always).

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        mlp_ratio: float = 2.0,
        n_div: int = 4,
        act: str | None = "relu",
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        c1 = check_channels("FasterNetBlock", channels)
        d = self.out_channels = out_width("FasterNetBlock", out_channels, c1)
        # FasterNet has 2; 16 is a channel count or a divisor in its place.
        hidden = int(d * check_number("FasterNetBlock", "mlp_ratio", mlp_ratio, 0.0, 8.0))
        scale = check_number("FasterNetBlock", "layer_scale", layer_scale, 0.0, 100.0)
        self.drop_path = check_number("FasterNetBlock", "drop_path", drop_path, 0.0, 1.0)
        if hidden < 1:
            raise YoloAttnError(
                f"FasterNetBlock: mlp_ratio={mlp_ratio!r} is not accepted with out_channels={d} "
                "(accepted: one that gives a hidden width of at least 1)"
            )
        conv = host_conv()
        self.adjust = conv(c1, d, 1, 1) if d != c1 else nn.Identity()
        self.mix = PConv(d, n_div=n_div)
        self.fc1 = conv(d, hidden, 1, 1, act=activation("FasterNetBlock", "act", act))
        self.fc2 = nn.Conv2d(hidden, d, 1, bias=False)
        self.layer_scale = nn.Parameter(torch.full((d,), scale)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, D, H, W)``."""
        x = self.adjust(x)
        y = self.fc2(self.fc1(self.mix(x)))
        if self.layer_scale is not None:
            y = y * self.layer_scale.to(y.dtype)[:, None, None]
        return x + drop_path(y, self.drop_path, self.training)


@register(
    layer=True,
    paper=PAPER,
    cost="time O(N C^2 (2 + n (0.5 + r / 2 + 9 / 64))) at equal widths and e = 1/2",
    placement="in place of a C2f or C3k2",
    width_options=("out_channels",),
    repeats="n",
)
class C2fFaster(SplitStage):
    """C2f with FasterNet's blocks for bottlenecks: ``z = cv2 [p, q_0, ..., q_n]``.

    ``[p, q_0] = cv1 x`` (halves), ``q_i = FasterNetBlock(q_{i-1})``; cv1 and cv2 are 1 x 1 with
    norm and activation.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        shortcut: As in a row of C2f; the blocks always have their residual.
        e: Width of p and of each q as a share of the output's.
        mlp_ratio: See FasterNetBlock.
        n_div: See FasterNetBlock.
        act: See FasterNetBlock; None is the model's own.
        layer_scale: See FasterNetBlock.
        drop_path: See FasterNetBlock.
        n: Number of blocks; in a model YAML the row's repeats.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        shortcut: bool = True,
        e: float = 0.5,
        mlp_ratio: float = 2.0,
        n_div: int = 4,
        act: str | None = None,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
        n: int = 1,
    ):
        def unit(c: int) -> nn.Module:
            return FasterNetBlock(c, c, mlp_ratio, n_div, act, layer_scale, drop_path)

        super().__init__("C2fFaster", channels, out_channels, shortcut, e, n, unit)
