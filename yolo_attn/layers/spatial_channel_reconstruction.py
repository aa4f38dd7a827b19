"""Spatial and channel reconstruction convolution.

Jiafeng Li, Ying Wen, Lianghua He. SCConv: Spatial and Channel Reconstruction Convolution for
Feature Redundancy. CVPR 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    at_least_float32,
    check_channels,
    check_flag,
    check_int,
    check_number,
)
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.errors import YoloAttnError
from yolo_attn.layers._common import kept_width, kernel_side, plain_activation
from yolo_attn.registry import register


class SpatialReconstruction(nn.Module):
    """SRU: what a group norm's own weights hold for informative is kept, the rest is crossed over.

    ``r = sigma(v GN(x))``, ``v = gamma / sum gamma``. Where r is above the threshold, a is x and b
    is zero; elsewhere both are ``r x``. ``y = [a_1 + b_2, a_2 + b_1]``, the halves of the channels.

    Args:
        channels: C of the input ``(B, C, H, W)``, even.
        groups: Groups of the norm.
        threshold: Of r.
    """

    def __init__(self, channels: int, groups: int, threshold: float):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        gamma = self.norm.weight
        share = (gamma / gamma.sum())[:, None, None]
        r = (self.norm(x) * share).sigmoid()
        high, weak = r > self.threshold, x * r.to(x.dtype)
        a = torch.where(high, x, weak)
        b = weak.masked_fill(high, 0.0)
        return a + b.roll(x.shape[1] // 2, 1)


class ChannelReconstruction(nn.Module):
    """CRU: two squeezed parts, convolved and copied, weighed by a softmax over their channels.

    ``u, l = W_u x[:aC], W_l x[aC:]``; ``y = [GWC(u) + W_1 u, W_2 l, l]`` (2 C channels);
    ``s = softmax(mean y)``; ``z = (s y)[:C] + (s y)[C:]``.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        alpha: a.
        squeeze: Both parts are narrowed by this.
        groups: Groups of GWC.
        kernel_size: Kernel side of GWC, odd.
    """

    def __init__(self, channels: int, alpha: float, squeeze: int, groups: int, kernel_size: int):
        super().__init__()
        upper = self.upper = int(alpha * channels)
        u, low = upper // squeeze, (channels - upper) // squeeze
        self.squeeze1 = nn.Conv2d(upper, u, 1, bias=False)
        self.squeeze2 = nn.Conv2d(channels - upper, low, 1, bias=False)
        pad = kernel_size // 2
        self.gwc = nn.Conv2d(u, channels, kernel_size, padding=pad, groups=groups)
        self.pwc1 = nn.Conv2d(u, channels, 1, bias=False)
        self.pwc2 = nn.Conv2d(low, channels - low, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        u, low = x.split([self.upper, x.shape[1] - self.upper], dim=1)
        u, low = self.squeeze1(u), self.squeeze2(low)
        y1 = self.gwc(u) + self.pwc1(u)
        y2 = torch.cat([self.pwc2(low), low], 1)
        means = torch.cat([y1.mean((2, 3)), y2.mean((2, 3))], 1)
        s1, s2 = at_least_float32(means).softmax(1).to(y1.dtype)[:, :, None, None].chunk(2, 1)
        return y1 * s1 + y2 * s2


@register(
    layer=True,
    paper="Li, Wen, He: SCConv: Spatial and Channel Reconstruction Convolution for Feature "
    "Redundancy, CVPR 2023",
    cost="time O(29 / 16 N C^2), 29 / 16 C^2 parameters: a fifth of a 3 x 3 convolution",
    placement="in place of a bottleneck's second 3 x 3 convolution",
    width_options=("out_channels",),
)
class ScConv(nn.Module):
    """Reconstruct a map from its informative half, then its channels: ``y = CRU(SRU(x))``.

    SRU: ``r = sigma(v GN(x))``, ``v = gamma / sum gamma``; x where r is above `threshold` and r x
    elsewhere makes a, r x elsewhere alone b; ``[a_1 + b_2, a_2 + b_1]`` by halves of the channels.
    CRU: ``u, l = W_u x[:aC], W_l x[aC:]``, ``y = [GWC(u) + W_1 u, W_2 l, l]``; the 2 C channels
    are weighed by the softmax of their means, and the halves added.

    That softmax makes the output small (1 / 2C of the input): in a residual branch start with
    `norm`. As published, no norm and no activation. Not SCNet's self-calibrated convolution.

    Args:
        channels: C of the input ``(B, C, H, W)``; a multiple of 8 with the defaults.
        out_channels: None or C, which the layer keeps.
        kernel_size: Kernel side of GWC, odd.
        stride: 1.
        group_num: Groups of the norm (the YOLO forks: 16); they divide C.
        threshold: Of r.
        alpha: a.
        squeeze: Both parts of CRU are narrowed by this.
        groups: Groups of GWC.
        norm: Whether batch norm and the model's activation follow.

    Raises:
        YoloAttnError: An option's value is not accepted; a width that is not divided.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        group_num: int = 4,
        threshold: float = 0.5,
        alpha: float = 0.5,
        squeeze: int = 2,
        groups: int = 2,
        norm: bool = False,
    ):
        super().__init__()
        c = check_channels("ScConv", channels, 2)
        self.out_channels = kept_width("ScConv", out_channels, c)
        k = kernel_side("ScConv", kernel_size)
        if isinstance(stride, bool) or stride != 1:
            raise YoloAttnError(f"ScConv: stride={stride!r} is not accepted (accepted: 1)")
        check_int("ScConv", "group_num", group_num, maximum=c)
        check_number("ScConv", "threshold", threshold, 0.0, 1.0)
        check_number("ScConv", "alpha", alpha, 0.0, 1.0)
        check_int("ScConv", "squeeze", squeeze, maximum=c)
        check_int("ScConv", "groups", groups, maximum=c)
        check_flag("ScConv", "norm", norm)
        upper = int(alpha * c)
        u, low = upper // squeeze, (c - upper) // squeeze
        if c % group_num or u < 1 or low < 1 or u % groups or c % groups:
            raise YoloAttnError(
                f"ScConv: channels={c} is not accepted with group_num={group_num}, alpha={alpha}, "
                f"squeeze={squeeze}, groups={groups} (accepted: a multiple of group_num whose "
                "squeezed parts are not empty and a multiple of groups; with the defaults, of 8)"
            )
        self.sru = SpatialReconstruction(c, group_num, threshold)
        self.cru = ChannelReconstruction(c, alpha, squeeze, groups, k)
        self.norm = batch_norm(c) if norm else nn.Identity()
        self.act = plain_activation("ScConv", "act", None) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return self.act(self.norm(self.cru(self.sru(x))))
