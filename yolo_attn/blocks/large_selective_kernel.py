"""Large selective kernel block.

Yuxuan Li, Qibin Hou, Zhaohui Zheng, Ming-Ming Cheng, Jian Yang, Xiang Li.
Large Selective Kernel Network for Remote Sensing Object Detection. ICCV 2023.
https://arxiv.org/abs/2303.09030
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    MOST_MLP_RATIO,
    at_least_float32,
    bias_of,
    check_channels,
    check_choice,
    check_number,
    run_float32,
)
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.errors import YoloAttnError
from yolo_attn.ops.phase_convolution import convolve_by_phases
from yolo_attn.registry import register


@register(
    paper="Li, Hou, Zheng, Cheng, Yang, Li: Large Selective Kernel Network for Remote Sensing "
    "Object Detection, ICCV 2023, arXiv 2303.09030",
    cost="time O(74 N C + 1.5 N C^2), memory O(N C); encoder: time O(74 N C + 11.5 N C^2) with "
    "mlp_ratio 4",
    placement="in every block of the backbone (the encoder form is that block); here after a stage",
)
class LSK(nn.Module):
    """Each position chooses between a small and a large receptive field: ``z = x * W a``.

    ``unit``:

    - ``a1 = dw_5x5(x)``, ``a2 = dw_7x7 dilation 3 (a1)``: fields of 5 and 23 positions
    - ``b1 = W_1 a1``, ``b2 = W_2 a2``, C -> C/2
    - ``s1, s2 = sigma(conv_7x7([mean_c, max_c of b1 and b2]))``, one map each
    - ``z = x * W (b1 s1 + b2 s2)``, W: C/2 -> C; the factor has no sigmoid and there is no shortcut

    ``encoder``: the paper's whole block around it, with batch norms and learned scales l1, l2 (0.01
    at the start)

    - ``t = BN(x)``, ``y = x + l1 * (t + W_b unit(GELU(W_a t)))``
    - ``z = y + l2 * W_d GELU(dw_3x3(W_c BN(y)))``, W_c: C -> `mlp_ratio` C

    The shortcut inside the attention adds t, not x, as in the authors' code. Not the identity at
    the start, though the encoder is near it.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        form: ``unit`` or ``encoder``, see above.
        mlp_ratio: Hidden width of the encoder's MLP as a multiple of C (LSKNet: 8, 8, 4, 4).
        dropout: Share of elements to drop behind GELU and W_d in training; encoder only (LSKNet:
            0.1).
        drop_path: Share of images whose branches are dropped in training; encoder only (LSKNet:
            0.1).

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        form: str = "unit",
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        check_channels("LSK", channels)
        self.form = check_choice("LSK", "form", form, ("unit", "encoder"))
        mlp_ratio = check_number("LSK", "mlp_ratio", mlp_ratio, high=MOST_MLP_RATIO)
        self.dropout = check_number("LSK", "dropout", dropout, 0.0, 1.0)
        self.drop_path = check_number("LSK", "drop_path", drop_path, 0.0, 1.0)
        self.out_channels = channels
        self.unit = SelectiveUnit(channels)
        if form == "encoder":
            hidden = int(channels * mlp_ratio)
            if hidden < 1:
                raise YoloAttnError(
                    f"LSK: mlp_ratio={mlp_ratio!r} is not accepted with channels={channels} "
                    "(accepted: one that gives a hidden width of at least 1)"
                )
            self.norm1 = batch_norm(channels)
            self.proj_in = nn.Conv2d(channels, channels, 1)
            self.proj_out = nn.Conv2d(channels, channels, 1)
            self.norm2 = batch_norm(channels)
            self.fc1 = nn.Conv2d(channels, hidden, 1)
            self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
            self.fc2 = nn.Conv2d(hidden, channels, 1)
            self.scale1 = nn.Parameter(torch.full((channels,), 1e-2))
            self.scale2 = nn.Parameter(torch.full((channels,), 1e-2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal convolutions with variance ``2 / fan_out``, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                kernel = module.kernel_size[0] * module.kernel_size[1]
                fan_out = kernel * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                nn.init.zeros_(bias_of(module))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        if self.form == "unit":
            return _saturated(self.unit(x), self.unit.out.weight.dtype)
        t = self.norm1(x)
        y = self._branch(t + run_float32(self.proj_out, self.unit(self._inner(t))), self.scale1)
        x = x + y.to(x.dtype)
        hidden = self._drop(F.gelu(self.mix(self.fc1(self.norm2(x)))))
        return x + self._branch(self._drop(self.fc2(hidden)), self.scale2)

    def selection(self, x: Tensor) -> Tensor:
        """How much each position takes of the small and of the large field ``(B, 2, H, W)``."""
        return self.unit.select(x if self.form == "unit" else self._inner(self.norm1(x)))[2]

    def _inner(self, t: Tensor) -> Tensor:
        """The unit's input inside the encoder."""
        return F.gelu(self.proj_in(t))

    def _branch(self, y: Tensor, scale: Tensor) -> Tensor:
        y = y * scale.to(y.dtype)[:, None, None]
        if not self.drop_path or not self.training:
            return y
        # One draw per image, rescaled so that the mean stays.
        return y * F.dropout(y.new_ones(len(y), 1, 1, 1), self.drop_path)

    def _drop(self, y: Tensor) -> Tensor:
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


class SelectiveUnit(nn.Module):
    """``z = x * W (b1 s1 + b2 s2)``, see :class:`LSK`."""

    def __init__(self, channels: int):
        super().__init__()
        half = max(channels // 2, 1)
        self.small = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.large = nn.Conv2d(channels, channels, 7, padding=9, groups=channels, dilation=3)
        self.conv1 = nn.Conv2d(channels, half, 1)
        self.conv2 = nn.Conv2d(channels, half, 1)
        self.squeeze = nn.Conv2d(2, 2, 7, padding=3)
        self.out = nn.Conv2d(half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)`` in float32 (float64): the product is quadratic in x."""
        b1, b2, s = self.select(x)
        factor = self.out(b1 * s[:, :1] + b2 * s[:, 1:])
        return at_least_float32(x) * factor

    def select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """b1 and b2 ``(B, C/2, H, W)`` and the maps s ``(B, 2, H, W)``."""
        a1 = self.small(x)
        b1, b2 = self.conv1(a1), self.conv2(convolve_by_phases(self.large, a1))
        # Both halves have the same width: no need to join them for their mean and maximum.
        mean = 0.5 * (b1.mean(1, keepdim=True) + b2.mean(1, keepdim=True))
        largest = torch.maximum(b1.amax(1, keepdim=True), b2.amax(1, keepdim=True))
        s = self.squeeze(torch.cat([mean, largest], dim=1)).sigmoid()
        return b1, b2, s.to(b1.dtype)


def _saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast; what is beyond the range of float16 becomes its largest number, not infinity."""
    if dtype == torch.float16 and x.dtype != dtype:
        x = x.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return x.to(dtype)
