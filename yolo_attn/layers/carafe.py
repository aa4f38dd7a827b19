"""Content-aware reassembly of features.

Jiaqi Wang, Kai Chen, Rui Xu, Ziwei Liu, Chen Change Loy, Dahua Lin. CARAFE: Content-Aware
ReAssembly of FEatures. ICCV 2019. https://arxiv.org/abs/1905.02188
"""

from __future__ import annotations

from torch import Tensor, nn

from yolo_attn.blocks._common import (
    at_least_float32,
    bias_of,
    check_channels,
    check_choice,
    check_flag,
    check_int,
    check_width,
)
from yolo_attn.errors import YoloAttnError
from yolo_attn.layers._common import (
    MOST_DILATION,
    activation,
    checked_stride,
    host_conv,
    kept_width,
    kernel_side,
    out_width,
    plain_activation,
)
from yolo_attn.ops.reassembly import reassemble
from yolo_attn.registry import register

NORMS = ("none", "bn")


@register(
    layer=True,
    paper="Wang, Chen, Xu, Liu, Loy, Lin: CARAFE: Content-Aware ReAssembly of FEatures, ICCV 2019, "
    "arXiv 1905.02188",
    cost="time O(N (C m + m s^2 k^2 k_e^2 + s^2 k^2 C)), memory O(s^2 N (C + k^2))",
    placement="in place of the neck's nearest-neighbour up-sampling",
    width_options=("out_channels",),
)
class CARAFE(nn.Module):
    """Enlarge a map by a kernel of its own for each new pixel: ``y_p = sum_t w_pt x_{p/s + t}``.

    ``E = conv_{k_e}(W x)``, W: C -> m, gives each position s^2 kernels of k x k taps t (of each
    group of channels), which a softmax over the taps normalises. Outside of the map x is zero, so
    that the border of a constant map is darkened. At the start all taps weigh about the same.

    The paper's (OpenMMLab's) convolutions have biases and no norm. The common PyTorch port is
    ``{norm: bn, act: relu}``, the YOLO forks' ``{norm: bn, act: silu}``; the YOLOv5-era one has
    C / 4 hidden channels, equal kernels and ``out_conv``.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: None or C, which the layer keeps; any width with `out_conv`.
        scale: s.
        k_up: k, odd.
        k_enc: k_e, odd.
        c_mid: m; not scaled with the model's width.
        groups: Groups of C / G channels that have kernels of their own.
        dilation: Of the convolution k_e.
        norm: ``none``, or ``bn`` behind both convolutions.
        act: Behind W: ``none``, ``silu``, ``relu``, ``relu6``, ``gelu``, ``mish`` or
            ``hardswish``; None is the model's own.
        out_conv: Whether a 1 x 1 convolution with bias follows.

    Raises:
        YoloAttnError: An option's value is not accepted; groups that do not divide C.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        scale: int = 2,
        k_up: int = 5,
        k_enc: int = 3,
        c_mid: int = 64,
        groups: int = 1,
        dilation: int = 1,
        norm: str = "none",
        act: str | None = "none",
        out_conv: bool = False,
    ):
        super().__init__()
        c1 = check_channels("CARAFE", channels)
        if check_flag("CARAFE", "out_conv", out_conv):
            self.out_channels = out_width("CARAFE", out_channels, c1)
        else:
            hint = "; `out_conv: true` changes it"
            self.out_channels = kept_width("CARAFE", out_channels, c1, hint)
        s = self.scale = checked_stride("CARAFE", scale, "scale")
        k = self.k_up = kernel_side("CARAFE", k_up, "k_up")
        k_enc = kernel_side("CARAFE", k_enc, "k_enc")
        m = check_width("CARAFE", "c_mid", c_mid)
        g = self.groups = check_int("CARAFE", "groups", groups, maximum=c1)
        d = check_int("CARAFE", "dilation", dilation, maximum=MOST_DILATION)
        check_choice("CARAFE", "norm", norm, NORMS)
        if c1 % g:
            raise YoloAttnError(
                f"CARAFE: groups={g} is not accepted with channels={c1} (accepted: a divisor)"
            )
        kernels = g * k * k * s * s
        if norm == "bn":
            conv = host_conv()
            self.comp = conv(c1, m, 1, 1, act=activation("CARAFE", "act", act))
            self.enc = conv(m, kernels, k_enc, 1, d=d, act=False)
        else:
            f = plain_activation("CARAFE", "act", act)
            self.comp = nn.Sequential(nn.Conv2d(c1, m, 1), f)
            self.enc = nn.Conv2d(m, kernels, k_enc, padding=d * (k_enc // 2), dilation=d)
        self.out = nn.Conv2d(c1, self.out_channels, 1) if out_conv else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Without norms as OpenMMLab: Xavier's W, kernels of a thousandth, biases 0."""
        if isinstance(self.enc, nn.Conv2d):
            nn.init.xavier_uniform_(self.comp[0].weight)
            nn.init.zeros_(bias_of(self.comp[0]))
            nn.init.normal_(self.enc.weight, std=1e-3)
            nn.init.zeros_(bias_of(self.enc))

    def kernels(self, x: Tensor) -> Tensor:
        """The kernels ``(B, groups, k_up^2, scale^2, H, W)``; each sums to 1 over its taps."""
        e = at_least_float32(self.enc(self.comp(x)))
        return e.unflatten(1, (self.groups, self.k_up**2, self.scale**2)).softmax(2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, scale H, scale W)``."""
        return self.out(reassemble(x, self.kernels(x).to(x.dtype), self.scale))
