"""SimSPPF, YOLOv6's pooling pyramid.

Chuyi Li, Lulu Li, Hongliang Jiang, Kaiheng Weng, Yifei Geng, Liang Li, Zaidan Ke, Qingyuan Li, Meng
Cheng, Weiqiang Nie, Yiduo Li, Bo Zhang, Yufei Liang, Linyuan Zhou, Xiaoming Xu, Xiangxiang Chu,
Xiaoming Wei, Xiaolin Wei. YOLOv6: A Single-Stage Object Detection Framework for Industrial
Applications. 2022. https://arxiv.org/abs/2209.02976
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import check_channels, check_int
from yolo_attn.layers._common import activation, host_conv, kernel_side, out_width
from yolo_attn.registry import register


@register(
    layer=True,
    paper="Li et al.: YOLOv6: A Single-Stage Object Detection Framework for Industrial "
    "Applications, 2022, arXiv 2209.02976",
    cost="time O(2.5 N C^2) at equal widths, 2.5 C^2 parameters",
    placement="behind the backbone, in place of SPPF",
    width_options=("out_channels",),
)
class SimSPPF(nn.Module):
    """SPPF with ReLU: ``y = f(W2 [h, p(h), p(p(h)), p(p(p(h)))])``, ``h = f(W1 x)``.

    ``f = relu(BN)``, p the maximum over k x k neighbours, h with C / 2 channels.

    Args:
        channels: C of the input ``(B, C, H, W)``, at least 2.
        out_channels: Width of the output; default C.
        kernel_size: k, odd.
        act: ``relu`` (the paper), ``silu``, ``relu6``, ``gelu``, ``mish``, ``hardswish`` or
            ``none``; None is the model's own.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 5,
        act: str | None = "relu",
    ):
        super().__init__()
        c1 = check_int("SimSPPF", "channels", check_channels("SimSPPF", channels), minimum=2)
        c2 = self.out_channels = out_width("SimSPPF", out_channels, c1)
        self.k = kernel_side("SimSPPF", kernel_size)
        conv, f = host_conv(), activation("SimSPPF", "act", act)
        self.cv1 = conv(c1, c1 // 2, 1, 1, act=f)
        self.cv2 = conv(4 * (c1 // 2), c2, 1, 1, act=f)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H, W)``."""
        return self.cv2(serial_pyramid(self.cv1(x), self.k))


def serial_pyramid(h: Tensor, k: int) -> Tensor:
    """``[h, p(h), p(p(h)), p(p(p(h)))]`` with p the maximum over k x k neighbours."""
    maps = [h]
    for _ in range(3):
        maps.append(F.max_pool2d(maps[-1], k, 1, k // 2))
    return torch.cat(maps, 1)
