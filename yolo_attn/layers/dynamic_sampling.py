"""DySample: up-sampling by learned sampling points.

Wenze Liu, Hao Lu, Hongtao Fu, Zhiguo Cao. Learning to Upsample by Learning to Sample. ICCV 2023.
https://arxiv.org/abs/2308.15085
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
    check_flag,
    check_int,
)
from yolo_attn.errors import YoloAttnError
from yolo_attn.layers._common import checked_stride, kept_width
from yolo_attn.ops.point_sampling import sample_points
from yolo_attn.registry import register

STYLES = ("lp", "pl")


@register(
    layer=True,
    paper="Liu, Lu, Fu, Cao: Learning to Upsample by Learning to Sample, ICCV 2023, "
    "arXiv 2308.15085",
    cost="time O(2 g s^2 N C + 4 s^2 N C), 2 g s^2 C parameters (pl: 2 g C / s^2)",
    placement="in place of the neck's nearest-neighbour up-sampling",
    width_options=("out_channels",),
)
class DySample(nn.Module):
    """Enlarge a map by sampling it at learned points: ``y[c, Y, X] = x[c](p_y, p_x)``, bilinear.

    ``p_y = (Y + 1/2) / s - 1/2 + o_y`` in pixels of x, p_x likewise, clipped to the map; o is one
    offset for each of g groups of consecutive channels. ``lp``: ``o = A / 4`` with A a 1 x 1
    convolution of x, rearranged to s times the size; ``pl``: x is rearranged first, C / s^2
    channels, and convolved there. With `dyscope`, ``o = sigma(S) A / 2``, S a convolution like A.

    All offsets start near zero, at bilinear up-sampling. The paper's DySample is lp, DySample-S pl;
    the + of each has `dyscope`. Positions are computed in float32 whatever the precision.

    Args:
        channels: C of the input ``(B, C, H, W)``, a multiple of `groups` (pl: and of scale^2).
        out_channels: None or C, which the layer keeps.
        scale: s.
        style: ``lp`` or ``pl``, see above.
        groups: g.
        dyscope: Whether the range of the offsets is learned, too.
        scope_bias: Whether S has a bias (as in the copy of many YOLO forks); with `dyscope`.

    Raises:
        YoloAttnError: An option's value is not accepted, or does not divide C.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        scale: int = 2,
        style: str = "lp",
        groups: int = 4,
        dyscope: bool = False,
        scope_bias: bool = False,
    ):
        super().__init__()
        check_channels("DySample", channels)
        hint = "; the first option is the width, `[null, 2, lp]` or `[{scale: 2}]` says the scale"
        self.out_channels = kept_width("DySample", out_channels, channels, hint)
        s = self.scale = checked_stride("DySample", scale, "scale")
        self.style = check_choice("DySample", "style", style, STYLES)
        g = self.groups = check_int("DySample", "groups", groups, maximum=channels)
        check_flag("DySample", "dyscope", dyscope)
        check_flag("DySample", "scope_bias", scope_bias)
        for divisor in (g, s * s) if style == "pl" else (g,):
            if channels % divisor:
                raise YoloAttnError(
                    f"DySample: channels={channels} is not accepted with groups={g}, scale={s}, "
                    f"style={style!r} (accepted: a multiple of {divisor})"
                )
        width, offsets = (channels, 2 * g * s * s) if style == "lp" else (channels // s**2, 2 * g)
        self.offset = nn.Conv2d(width, offsets, 1)
        self.scope = nn.Conv2d(width, offsets, 1, bias=scope_bias) if dyscope else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets of a thousandth, and a range of a quarter of a pixel."""
        nn.init.normal_(self.offset.weight, std=1e-3)
        nn.init.zeros_(bias_of(self.offset))
        if self.scope is not None:
            for parameter in self.scope.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, scale H, scale W)``."""
        s, g = self.scale, self.groups
        offsets = self._offsets(x)
        maps = x.reshape(-1, x.shape[1] // g, x.shape[2], x.shape[3])
        # The group takes the place of an image: x for d = 0, y for d = 1.
        columns, rows = (o.flatten(0, 1) for o in offsets.split(g, dim=1))
        columns = columns + self._centres(x.shape[3], offsets)
        rows = rows + self._centres(x.shape[2], offsets)[:, None]
        y = sample_points(maps, rows, columns, "border")
        y = y.reshape(-1, self.out_channels, s * x.shape[2], s * x.shape[3])
        return y.to(x.dtype)

    def _offsets(self, x: Tensor) -> Tensor:
        """O ``(B, 2 g, s H, s W)`` in pixels of x, at least in float32: all g of x, then of y."""
        low = self.style == "lp"
        v = x if low else F.pixel_shuffle(x, self.scale)
        offsets = at_least_float32(self.offset(v))
        if self.scope is None:
            offsets = 0.25 * offsets
        else:
            offsets = 0.5 * at_least_float32(self.scope(v)).sigmoid() * offsets
        return F.pixel_shuffle(offsets, self.scale) if low else offsets

    def _centres(self, length: int, like: Tensor) -> Tensor:
        """Where the output's pixels of one axis lie on that of x, ``(s length,)``."""
        place = torch.arange(self.scale * length, device=like.device, dtype=like.dtype)
        return (place + 0.5) / self.scale - 0.5
