"""Receptive-field attention: convolutions whose fields are weighed tap by tap.

Xin Zhang, Chen Liu, Degang Yang, Tingting Song, Yichen Ye, Ke Li, Yingze Song. RFAConv: Innovating
Spatial Attention and Standard Convolutional Operation. 2023. https://arxiv.org/abs/2304.03198
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    at_least_float32,
    check_channels,
    check_choice,
    check_hidden,
    check_number,
)
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.blocks.cbam import _maximum
from yolo_attn.errors import YoloAttnError
from yolo_attn.layers._common import (
    activation,
    apply_kernel,
    checked_stride,
    host_conv,
    kernel_side,
    out_width,
)
from yolo_attn.registry import register

PAPER = (
    "Zhang, Liu, Yang, Song, Ye, Li, Song: RFAConv: Innovating Spatial Attention and Standard "
    "Convolutional Operation, 2023, arXiv 2304.03198"
)
PLACE = "in place of the strided convolutions, or of a bottleneck's 3 x 3 convolution"
FORMS = ("group", "unfold")


class _FieldLayer(nn.Module):
    """What the three have in common: k^2 features a channel and position, and the convolution.

    The paper lays the features of a position out as k x k pixels and convolves those without
    overlap. That is a 1 x 1 convolution of the features, which nothing has to be moved for (where
    gates do not need the layout).
    """

    def __init__(self, name: str, channels: int, out_channels: int | None, k: int, s: int):
        super().__init__()
        self.channels = check_channels(name, channels)
        self.out_channels = out_width(name, out_channels, channels)
        self.k = kernel_side(name, k, least=3)
        checked_stride(name, s)

    def _features(self, k: int, s: int) -> nn.Module:
        """``relu(BN(conv))``, depthwise: k^2 features a channel."""
        c = self.channels
        return host_conv()(c, c * k * k, k, s, g=c, act=nn.ReLU())

    def _tail(self, name: str, k: int, act: str | None) -> nn.Module:
        return host_conv()(
            self.channels, self.out_channels, k, k, 0, act=activation(name, "act", act)
        )

    def _by_tap(self, features: Tensor) -> Tensor:
        """``(B, C k^2, h, w) -> (B, C, k^2, h, w)``."""
        return features.unflatten(1, (self.channels, self.k**2))


def _convolve(tail: nn.Module, z: Tensor) -> Tensor:
    """The convolution with stride k of the fields z ``(B, C, k^2, h, w)`` laid out side by side."""
    weight: Tensor = tail.conv.weight  # type: ignore[union-attr, assignment]
    return apply_kernel(tail, z.flatten(1, 2), weight.flatten(1)[:, :, None, None])


@register(
    layer=True,
    paper=PAPER,
    cost="time O(N C k^2 (k^2 + C_out)), memory O(k^2 N C) for N output positions",
    placement=PLACE,
    width_options=("out_channels",),
)
class RFAConv(_FieldLayer):
    """Convolve fields whose taps are weighed by a softmax: ``y = act(BN(W (f * softmax_t a)))``.

    ``f = relu(BN(dw_k x))``, k^2 features t a channel; ``a_ct = g_ct P_c`` with P the means over
    the k x k fields of x, zeros outside included, and one learned scalar g for each channel and
    tap. The softmax runs over the k^2 taps, per channel and position. ``unfold`` (slower and less
    accurate, by the authors): f are the pixels of the field themselves and
    ``a = BN(g_c f_c)``, g_c a k^2 x k^2 matrix a channel. Biases in front of a BN are left out.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        kernel_size: k, odd, at least 3.
        stride: 1 with ``unfold``.
        act: ``silu`` (YOLO forks), ``relu`` (the authors), ``relu6``, ``gelu``, ``mish``,
            ``hardswish`` or ``none``; None is the model's own.
        form: ``group`` (the paper's) or ``unfold``.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        act: str | None = "relu",
        form: str = "group",
    ):
        super().__init__("RFAConv", channels, out_channels, kernel_size, stride)
        self.form = check_choice("RFAConv", "form", form, FORMS)
        c, k = channels, kernel_size
        self.conv = self._tail("RFAConv", k, act)
        if form == "group":
            self.pool = nn.AvgPool2d(k, stride, k // 2)
            self.gain = nn.Parameter(torch.empty(c * k * k, 1, 1, 1))
            self.features = self._features(k, stride)
            self.reset_parameters()
        elif stride == 1:
            self.weigh = host_conv()(c * k * k, c * k * k, 1, 1, g=c, act=False)
        else:
            raise YoloAttnError(
                f"RFAConv: stride={stride} is not accepted with form='unfold' (accepted: 1)"
            )

    def reset_parameters(self) -> None:
        """PyTorch's default for a 1 x 1 convolution of one channel."""
        nn.init.uniform_(self.gain, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H/stride, W/stride)``."""
        if self.form == "group":
            features = self._by_tap(self.features(x))
            gain = self.gain.view(self.channels, self.k**2, 1, 1)
            logits = gain * self.pool(x)[:, :, None]
        else:
            taps = F.unfold(x, self.k, padding=self.k // 2)
            taps = taps.unflatten(2, (x.shape[2], x.shape[3]))
            features, logits = self._by_tap(taps), self._by_tap(self.weigh(taps))
        share = at_least_float32(logits).softmax(2).to(features.dtype)
        return _convolve(self.conv, features * share)


@register(
    layer=True,
    paper=PAPER,
    cost="time O(N C k^2 (k^2 + C_out)), memory O(k^2 N C) for N output positions",
    placement=PLACE,
    width_options=("out_channels",),
)
class RFCBAMConv(_FieldLayer):
    """Convolve fields gated by channel and by tap: ``y = act(BN(W (f * s_c * m_t)))``.

    ``f = relu(BN(dw_k x))``, k^2 features t a channel; ``s = sigma(W2 relu(W1 mean x))`` of the
    input; ``m = sigma(conv_3x3 [max_c f, mean_c f])`` of the features laid out as k x k pixels a
    position, before s. The bias in front of the BN is left out.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        kernel_size: k, odd, at least 3.
        stride: Of the features.
        act: ``silu`` (YOLO forks), ``relu`` (the authors), ``relu6``, ``gelu``, ``mish``,
            ``hardswish`` or ``none``; None is the model's own.
        rd_channels: Hidden width of the channel gate; the authors' `ratio` is this width, too.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        act: str | None = "relu",
        rd_channels: int = 16,
    ):
        super().__init__("RFCBAMConv", channels, out_channels, kernel_size, stride)
        check_hidden("RFCBAMConv", "rd_channels", rd_channels, channels, least=16)
        self.features = self._features(kernel_size, stride)
        self.fc1 = nn.Linear(channels, rd_channels, bias=False)
        self.fc2 = nn.Linear(rd_channels, channels, bias=False)
        self.spatial = nn.Conv2d(2, 1, 3, padding=1, bias=False)
        self.conv = self._tail("RFCBAMConv", kernel_size, act)

    def channel_weights(self, x: Tensor) -> Tensor:
        """The channel gate ``(B, C)``."""
        return self.fc2(F.relu(self.fc1(x.mean((2, 3))))).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H/stride, W/stride)``."""
        f = self._by_tap(self.features(x))
        spread = torch.cat([_maximum(f, (1,)), f.mean(1)], 1)
        spread = F.pixel_shuffle(spread, self.k)
        m = self.spatial(spread).sigmoid().unflatten(3, (-1, self.k)).unflatten(2, (-1, self.k))
        # (B, 1, h, i, w, j) to (B, 1, k^2, h, w); PixelUnshuffle's export keeps the traced size.
        m = m.permute(0, 1, 3, 5, 2, 4).flatten(2, 3)
        s = self.channel_weights(x)[:, :, None, None, None]
        return _convolve(self.conv, f * (s.to(f.dtype) * m.to(f.dtype)))


@register(
    layer=True,
    paper=PAPER,
    cost="time O(N C k^2 (k^2 + C_out)), memory O(k^2 N C) for N output positions",
    placement=PLACE,
    width_options=("out_channels",),
)
class RFCAConv(_FieldLayer):
    """Convolve fields gated by rows and columns: ``y = W (f * a_h * a_w) + b``.

    ``f = relu(BN(dw_k x))``, k^2 features a channel, laid out as k x k pixels a position; of that
    map coordinate attention: means of its rows and of its columns, ``q = h_swish(BN(W1 .))``,
    ``a_h = sigma(W_h q_h)``, ``a_w = sigma(W_w q_w)``. No norm and no activation at the end, as
    published. The bias in front of the BN is left out.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        kernel_size: k, odd, at least 3.
        stride: Of the features.
        reduction: Hidden width C / reduction, at least 8.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        reduction: float = 32,
    ):
        super().__init__("RFCAConv", channels, out_channels, kernel_size, stride)
        check_number("RFCAConv", "reduction", reduction, 1.0, 256.0)
        hidden = max(8, int(channels // reduction))
        self.features = self._features(kernel_size, stride)
        self.squeeze = nn.Conv2d(channels, hidden, 1, bias=False)
        self.norm = batch_norm(hidden)
        self.rows = nn.Conv2d(hidden, channels, 1)
        self.columns = nn.Conv2d(hidden, channels, 1)
        self.conv = nn.Conv2d(channels, self.out_channels, kernel_size, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H/stride, W/stride)``."""
        features = self.features(x)
        height = features.shape[2] * self.k  # behind a reshape an export takes it for a constant
        # Gates of whole rows and columns are fast on the pixels laid out, and on nothing else.
        g = F.pixel_shuffle(features, self.k)
        del features  # k^2 times the map
        means = torch.cat([g.mean(3), g.mean(2)], 2)[..., None]
        q = F.hardswish(self.norm(self.squeeze(means)))
        a_h = self.rows(q[:, :, :height]).sigmoid()
        a_w = self.columns(q[:, :, height:]).sigmoid().transpose(2, 3)
        return self.conv(g * a_h * a_w)
