"""GSConv, the GS bottleneck and VoV-GSCSP (slim-neck).

Hulin Li, Jun Li, Hanbing Wei, Zheng Liu, Zhenfei Zhan, Qiliang Ren. Slim-neck by GSConv: a
lightweight-design for real-time detector architectures. Journal of Real-Time Image Processing 2024.
https://arxiv.org/abs/2206.02424
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    check_channels,
    check_choice,
    check_flag,
    check_int,
    module_list,
)
from yolo_attn.errors import YoloAttnError
from yolo_attn.layers._common import (
    MOST_UNITS,
    activation,
    checked_stride,
    even_width,
    host_conv,
    kernel_side,
    out_width,
    width_share,
)
from yolo_attn.registry import register

PAPER = (
    "Li, Li, Wei, Liu, Zhan, Ren: Slim-neck by GSConv: a lightweight-design for real-time detector "
    "architectures, Journal of Real-Time Image Processing 2024, arXiv 2206.02424"
)
SHUFFLES = ("interleave", "deinterleave", "conv")
FORMS = ("plain", "e", "e2")
STAGES = ("bottleneck", "c2f")
SHORTCUTS = ("conv", "depthwise")


@register(
    layer=True,
    paper=PAPER,
    cost="time O(N C_out (k^2 C + 25) / 2) for N output positions: half a convolution",
    placement="in place of the neck's convolutions, where maps are small and wide",
    width_options=("out_channels",),
)
class GSConv(nn.Module):
    """Half a convolution, its depthwise echo, shuffled: ``y = shuffle [a, b]``.

    ``a = act(BN(conv_k x))`` with half of the output's channels, ``b = act(BN(dw_5x5 a))``.

    - ``interleave`` (the paper's words, the authors' YOLOv8 code): ``y_{2i} = a_i``,
      ``y_{2i+1} = b_i``
    - ``deinterleave`` (the authors' YOLOv5 code, most forks), the inverse permutation: the even
      channels of [a, b], then the odd ones
    - ``conv``: ``y = relu(W [a, b])``, 1 x 1

    Forms of the authors' later code: ``e``: ``b = GELU(dw_3x3 conv_3x3 a)`` without norms; ``e2``:
    a has a quarter of the channels, and its depthwise 9 x 9, 13 x 13 and 17 x 17 echoes follow it.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output, even (``e2``: a multiple of 4); default C.
        kernel_size: k, odd.
        stride: Of the first convolution.
        act: ``silu``, ``relu``, ``relu6``, ``gelu``, ``mish`` (the paper), ``hardswish`` or
            ``none``; None is the model's own.
        shuffle: ``interleave``, ``deinterleave`` or ``conv``, see above.
        form: ``plain``, ``e`` or ``e2``, see above.

    Raises:
        YoloAttnError: An option's value is not accepted; an odd width.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 1,
        stride: int = 1,
        act: str | None = None,
        shuffle: str = "interleave",
        form: str = "plain",
    ):
        super().__init__()
        c1 = check_channels("GSConv", channels)
        c2 = self.out_channels = even_width(
            "GSConv", "out_channels", out_width("GSConv", out_channels, c1)
        )
        k = kernel_side("GSConv", kernel_size)
        s = checked_stride("GSConv", stride)
        self.shuffle = check_choice("GSConv", "shuffle", shuffle, SHUFFLES)
        check_choice("GSConv", "form", form, FORMS)
        if form == "e2" and c2 % 4:
            raise YoloAttnError(
                f"GSConv: out_channels={c2} is not accepted with form='e2' (accepted: a multiple "
                "of 4)"
            )
        conv, f = host_conv(), activation("GSConv", "act", act)
        c = c2 // 4 if form == "e2" else c2 // 2
        kernels = (9, 13, 17) if form == "e2" else (5,)
        self.cv1 = conv(c1, c, k, s, act=f)
        if form == "e":
            self.echoes = module_list([_Echo(c)])
        else:
            self.echoes = module_list(conv(c, c, size, 1, g=c, act=f) for size in kernels)
        self.mix = nn.Conv2d(c2, c2, 1, bias=False) if shuffle == "conv" else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H/stride, W/stride)``."""
        a = self.cv1(x)
        z = torch.cat([a, *(echo(a) for echo in self.echoes)], 1)
        if self.mix is not None:
            return F.relu(self.mix(z))
        pairs = (2, -1) if self.shuffle == "interleave" else (-1, 2)
        return z.unflatten(1, pairs).transpose(1, 2).flatten(1, 2)


class _Echo(nn.Module):
    """``GELU(dw_3x3 conv_3x3 a)``."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, a: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return F.gelu(self.depthwise(self.conv(a)))


@register(
    layer=True,
    paper=PAPER,
    cost="time O(N C^2 (9 / 4 + 1 + 1 / 4)) at equal widths and e = 1/2",
    placement="inside VoVGSCSP; in place of a stage's bottlenecks",
    width_options=("out_channels",),
)
class GSBottleneck(nn.Module):
    """Two GSConvs beside a projection: ``y = GSConv_3(GSConv_1(x)) + BN(W x)``.

    The second GSConv has no activation (the authors' YOLOv8 code and the forks have one).

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output, even; default C.
        e: Hidden width, even, as a share of the output's.
        act: ``silu``, ``relu``, ``relu6``, ``gelu``, ``mish`` (the paper), ``hardswish`` or
            ``none``; None is the model's own.
        second_act: Whether the second GSConv has the activation.
        shuffle: See GSConv.
        shortcut: W is a 1 x 1 convolution (``conv``) or ``depthwise`` (where the width changes, in
            as many groups as divide both).
        shortcut_kernel: Kernel side of the depthwise shortcut, odd.

    Raises:
        YoloAttnError: An option's value is not accepted; an odd width.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        e: float = 0.5,
        act: str | None = None,
        second_act: bool = False,
        shuffle: str = "interleave",
        shortcut: str = "conv",
        shortcut_kernel: int = 3,
    ):
        super().__init__()
        name = "GSBottleneck"
        c1 = check_channels(name, channels)
        c2 = self.out_channels = out_width(name, out_channels, c1)
        hidden = int(c2 * width_share(name, e))
        if hidden < 2 or hidden % 2 or c2 % 2:
            raise YoloAttnError(
                f"{name}: out_channels={c2} is not accepted with e={e!r} (accepted: an even number "
                f"whose product with e, {hidden}, is even and at least 2)"
            )
        check_flag(name, "second_act", second_act)
        check_choice(name, "shuffle", shuffle, SHUFFLES)
        check_choice(name, "shortcut", shortcut, SHORTCUTS)
        k = kernel_side(name, shortcut_kernel, "shortcut_kernel")
        conv = host_conv()
        self.cv1 = GSConv(c1, hidden, 1, 1, act, shuffle)
        self.cv2 = GSConv(hidden, c2, 3, 1, act if second_act else "none", shuffle)
        if shortcut == "conv":
            self.shortcut = conv(c1, c2, 1, 1, act=False)
        else:
            self.shortcut = conv(c1, c2, k, 1, g=math.gcd(c1, c2), act=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H, W)``."""
        return self.cv2(self.cv1(x)) + self.shortcut(x)


@register(
    layer=True,
    paper=PAPER,
    cost="time O(N C^2 (2 + 0.9 n)) at equal widths and e = 1/2",
    placement="in place of the neck's C2f or C3",
    width_options=("out_channels",),
    repeats="n",
    dead_parameters={
        f"units.0.{part}.bn.bias": "cancelled by the batch norm of cv3"
        for part in ("cv2.echoes.0", "shortcut")
    },
)
class VoVGSCSP(nn.Module):
    """A stage of GS bottlenecks beside a plain branch: ``y = cv3 [cv2(x), u_n(... u_1(cv1(x)))]``.

    cv1, cv2 and cv3 are 1 x 1 with norm and activation. Of the paper's three drawings only this
    one has published code. The authors' code keeps a further 3 x 3 convolution (`res`) that it
    never calls; it is left out: checkpoints have those keys more. Forms:

    - ``bottleneck``: u is GSBottleneck
    - ``c2f``: ``y = cv3 [GSConv_3(x), C2f(cv1(x))]`` with one bottleneck (their YOLOv8 code)

    Forks' VoVGSCSP: ``{bottleneck_e: 1.0, second_act: true, shuffle: deinterleave}`` (VoVGSCSPns:
    ``shuffle: conv``); their
    VoVGSCSPC: ``{shortcut_form: depthwise, shortcut_kernel: 1, shuffle: deinterleave, second_act:
    true}`` and one repeat.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output, even; default C.
        shortcut: As in a row of C3; GS bottlenecks always have their residual.
        e: Width of both branches as a share of the output's; even.
        act: ``silu``, ``relu``, ``relu6``, ``gelu``, ``mish`` (the paper), ``hardswish`` or
            ``none``; None is the model's own.
        form: ``bottleneck`` or ``c2f``, see above.
        bottleneck_e: e of the bottlenecks.
        second_act: See GSBottleneck.
        shuffle: See GSBottleneck.
        shortcut_form: `shortcut` of GSBottleneck.
        shortcut_kernel: See GSBottleneck.
        n: Number of units; in a model YAML the row's repeats.

    Raises:
        YoloAttnError: An option's value is not accepted; an odd width.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        shortcut: bool = True,
        e: float = 0.5,
        act: str | None = None,
        form: str = "bottleneck",
        bottleneck_e: float = 0.5,
        second_act: bool = False,
        shuffle: str = "interleave",
        shortcut_form: str = "conv",
        shortcut_kernel: int = 3,
        n: int = 1,
    ):
        super().__init__()
        name = "VoVGSCSP"
        c1 = check_channels(name, channels)
        c2 = self.out_channels = out_width(name, out_channels, c1)
        check_flag(name, "shortcut", shortcut)
        c = even_width(name, "hidden width", int(c2 * width_share(name, e)))
        check_int(name, "hidden width", c)
        self.form = check_choice(name, "form", form, STAGES)
        check_int(name, "n", n, maximum=MOST_UNITS)
        width_share(name, bottleneck_e, "bottleneck_e")
        conv, f = host_conv(), activation(name, "act", act)
        self.units: Sequence[nn.Module]
        self.cv1 = conv(c1, c, 1, 1, act=f)
        self.cv3 = conv(2 * c, c2, 1, 1, act=f)
        if form == "c2f":
            self.cv2 = GSConv(c1, c, 3, 1, act, shuffle)
            self.units = module_list([_PlainC2f(c, act)])
        else:
            self.cv2 = conv(c1, c, 1, 1, act=f)
            self.units = module_list(
                GSBottleneck(
                    c, c, bottleneck_e, act, second_act, shuffle, shortcut_form, shortcut_kernel
                )
                for _ in range(n)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H, W)``."""
        u = self.cv1(x)
        for unit in self.units:
            u = unit(u)
        return self.cv3(torch.cat([self.cv2(x), u], 1))


class _PlainC2f(nn.Module):
    """C2f of one width with one bottleneck of two 3 x 3 convolutions."""

    def __init__(self, channels: int, act: str | None):
        super().__init__()
        conv, f = host_conv(), activation("VoVGSCSP", "act", act)
        half = channels // 2
        self.cv1 = conv(channels, 2 * half, 1, 1, act=f)
        self.cv2 = conv(3 * half, channels, 1, 1, act=f)
        self.first = conv(half, half, 3, 1, act=f)
        self.second = conv(half, half, 3, 1, act=f)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        p, q = self.cv1(x).chunk(2, 1)
        return self.cv2(torch.cat([p, q, q + self.second(self.first(q))], 1))
