"""Omni-dimensional dynamic convolution.

Chao Li, Aojun Zhou, Anbang Yao. Omni-Dimensional Dynamic Convolution. ICLR 2022.
https://arxiv.org/abs/2209.07947
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    PooledNorm,
    at_least_float32,
    bias_of,
    check_channels,
    check_flag,
    check_int,
    check_number,
)
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.errors import YoloAttnError
from yolo_attn.layers._common import (
    MOST_DILATION,
    checked_stride,
    kernel_side,
    out_width,
    plain_activation,
)
from yolo_attn.registry import register


@register(
    layer=True,
    paper="Li, Zhou, Yao: Omni-Dimensional Dynamic Convolution, ICLR 2022, arXiv 2209.07947",
    cost="time O(k^2 N C C_out / groups + n k^2 C C_out), n k^2 C C_out / groups parameters",
    placement="in place of the backbone's convolutions",
    width_options=("out_channels",),
)
class ODConv(nn.Module):
    """A convolution whose kernel each image makes for itself: ``y = s_f * conv(s_c * x; W)``.

    ``W = sum_n s_n s_s * W_n``; the gates of channels s_c, of filters s_f, of the k x k taps s_s
    (sigmoid) and the shares s_n of n kernels (softmax) come from ``z = relu(BN(W_0 mean x))``; all
    logits are divided by a temperature T. A gate of one element is left out, s_f of depthwise
    convolutions, too. The authors lower T from 30 to 1 in the first ten epochs (the attribute
    `temperature`). In a batch of one image the BN takes its running statistics. As published, no
    norm and no activation behind it.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        kernel_size: k, odd.
        stride: Of the output.
        padding: Zeros around the map; default keeps its size.
        dilation: Distance of the taps.
        groups: Groups of the convolution; they divide both widths.
        reduction: Width of z as a share of C, at least 16.
        kernel_num: n (the YOLO forks: 1).
        temperature: T.
        norm: Whether batch norm and the model's activation follow.

    Raises:
        YoloAttnError: An option's value is not accepted; groups that do not divide a width.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        reduction: float = 1 / 16,
        kernel_num: int = 4,
        temperature: float = 1.0,
        norm: bool = False,
    ):
        super().__init__()
        c1 = check_channels("ODConv", channels)
        c2 = self.out_channels = out_width("ODConv", out_channels, c1)
        k = self.k = kernel_side("ODConv", kernel_size)
        self.stride = checked_stride("ODConv", stride)
        self.dilation = check_int("ODConv", "dilation", dilation, maximum=MOST_DILATION)
        same = self.dilation * (k - 1) // 2
        self.padding = (
            same if padding is None else check_int("ODConv", "padding", padding, 0, maximum=4096)
        )
        g = self.groups = check_int("ODConv", "groups", groups, maximum=c1)
        check_number("ODConv", "reduction", reduction, 0.0, 2.0)
        n = self.kernel_num = check_int("ODConv", "kernel_num", kernel_num, maximum=64)
        self.temperature = check_number("ODConv", "temperature", temperature, 0.0, 1000.0)
        if not self.temperature:
            raise YoloAttnError("ODConv: temperature=0 is not accepted (accepted: above 0)")
        if c1 % g or c2 % g:
            raise YoloAttnError(
                f"ODConv: groups={g} is not accepted with {c1} and {c2} channels (accepted: a "
                "divisor of both)"
            )
        hidden = max(int(c1 * reduction), 16)
        # n kernels below each other: optimisers know four dimensions.
        self.weight = nn.Parameter(torch.empty(n * c2, c1 // g, k, k))
        self.fc = nn.Conv2d(c1, hidden, 1, bias=False)
        self.fc_norm = PooledNorm(hidden)
        self.channel = nn.Conv2d(hidden, c1, 1)
        self.filter = nn.Conv2d(hidden, c2, 1) if not g == c1 == c2 else None
        self.tap = nn.Conv2d(hidden, k * k, 1) if k > 1 else None
        self.kernel = nn.Conv2d(hidden, n, 1) if n > 1 else None
        check_flag("ODConv", "norm", norm)
        self.norm = batch_norm(c2) if norm else nn.Identity()
        self.act = plain_activation("ODConv", "act", None) if norm else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights with variance ``2 / fan_out``, no biases."""
        for one in self.weight.view(self.kernel_num, -1, *self.weight.shape[1:]):
            nn.init.kaiming_normal_(one, mode="fan_out", nonlinearity="relu")
        for conv in (self.fc, self.channel, self.filter, self.tap, self.kernel):
            if conv is not None:
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                if conv.bias is not None:
                    nn.init.zeros_(bias_of(conv))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H/stride, W/stride)``."""
        z = F.relu(self.fc_norm(self.fc(x.mean((2, 3), keepdim=True))))
        x = x * self._gate(self.channel, z)
        kernels = self._kernels(z)
        y = self._by_columns(x, kernels) if torch.jit.is_tracing() else self._grouped(x, kernels)
        if self.filter is not None:
            y = y * self._gate(self.filter, z)
        return self.act(self.norm(y))

    def _gate(self, conv: nn.Conv2d, z: Tensor) -> Tensor:
        return (conv(z) / self.temperature).sigmoid()

    def _kernels(self, z: Tensor) -> Tensor:
        """A kernel for each image ``(B, C_out, C / groups, k, k)``."""
        n, weight = self.kernel_num, self.weight.to(z.dtype)
        if self.kernel is None:
            mixed = weight[None]
        else:
            logits = at_least_float32(self.kernel(z).flatten(1)) / self.temperature
            share = logits.softmax(1).to(z.dtype)
            mixed = (share @ weight.reshape(n, -1)).unflatten(1, (-1, *self.weight.shape[1:]))
        if self.tap is None:
            return mixed.expand(z.shape[0], -1, -1, -1, -1)
        taps = self._gate(self.tap, z).reshape(-1, 1, 1, self.k, self.k)
        return mixed * taps

    def _grouped(self, x: Tensor, kernels: Tensor) -> Tensor:
        """All images in one convolution, each a group of its own."""
        y = F.conv2d(
            x.reshape(1, -1, *x.shape[2:]),
            kernels.flatten(0, 1).to(x.dtype),
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.groups * x.shape[0],
        )
        return y.reshape(x.shape[0], -1, *y.shape[2:])

    def _by_columns(self, x: Tensor, kernels: Tensor) -> Tensor:
        """The same as products with the unfolded map: for exports, whose batch may change."""
        k, g = self.k, self.groups
        columns = F.unfold(x, k, self.dilation, self.padding, self.stride)
        columns = columns.unflatten(1, (g, -1))
        y = kernels.flatten(2).unflatten(1, (g, -1)) @ columns
        height, width = (
            (side + 2 * self.padding - self.dilation * (k - 1) - 1) // self.stride + 1
            for side in x.shape[2:]
        )
        return y.flatten(1, 2).unflatten(2, (height, width))
