"""Atrous spatial pyramid pooling.

Liang-Chieh Chen, George Papandreou, Florian Schroff, Hartwig Adam. Rethinking Atrous Convolution
for Semantic Image Segmentation. 2017. https://arxiv.org/abs/1706.05587
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    PooledNorm,
    check_channels,
    check_choice,
    check_int,
    check_number,
    module_list,
)
from yolo_attn.errors import YoloAttnError
from yolo_attn.layers._common import MOST_DILATION, host_conv, out_width
from yolo_attn.registry import register

# Form -> its rates.
RATES = {"deeplab": (6, 12, 18), "tph": (2, 4, 6)}


@register(
    layer=True,
    paper="Chen, Papandreou, Schroff, Adam: Rethinking Atrous Convolution for Semantic Image "
    "Segmentation, 2017, arXiv 1706.05587; form tph: Zhu, Lyu, Wang, Zhao: TPH-YOLOv5, 2021, arXiv "
    "2108.11539",
    cost="time O(N C_out (C (1 + 9 R) + (R + 2) C_out)) for R rates; tph: "
    "O(N C (C / 2 + 9 R C / 4 + (R + 2) C_out / 2))",
    placement="behind the backbone, in place of SPPF",
    width_options=("out_channels",),
)
class ASPP(nn.Module):
    """Look at several distances: ``y = f(W [f(x W_0), f(conv_3x3 rate r x) ..., f(W_g mean x)])``.

    ``deeplab``: f = ReLU(BN), every branch as wide as the output, one for each rate r, one for the
    mean of the image. On a map of 20 x 20 rates of 12 and 18 see mostly padding. In a batch of one
    image the mean's norm takes its running statistics.

    ``tph`` (TPH-YOLOv5): ``h = f(x W_0)`` with C / 2 channels and the model's activation;
    ``y = f(W [h, max_3x3 h, conv_3x3 rate r h ...])``, those without norm and activation.

    Args:
        channels: C of the input ``(B, C, H, W)``; at least 2 with ``tph``.
        out_channels: Width of the output; default C.
        rates: The rates r; default 6, 12, 18 (``tph``: 2, 4, 6).
        form: ``deeplab`` or ``tph``, see above.
        dropout: Share of elements to drop behind W in training (torchvision's head: 0.5);
            ``deeplab`` only.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        rates: Sequence[int] | None = None,
        form: str = "deeplab",
        dropout: float = 0.0,
    ):
        super().__init__()
        c1 = check_channels("ASPP", channels)
        c2 = self.out_channels = out_width("ASPP", out_channels, c1)
        self.form = check_choice("ASPP", "form", form, RATES)
        rates = RATES[form] if rates is None else rates
        if not isinstance(rates, (list, tuple)) or not rates:
            raise YoloAttnError(f"ASPP: rates={rates!r} is not accepted (accepted: a list)")
        for rate in rates:
            check_int("ASPP", "rates", rate, maximum=MOST_DILATION)
        self.dropout = check_number("ASPP", "dropout", dropout, 0.0, 1.0)
        conv = host_conv()
        if form == "tph":
            half = check_int("ASPP", "channels", c1 // 2)
            self.first = conv(c1, half, 1, 1)
            self.branches = module_list(
                nn.Conv2d(half, half, 3, padding=r, dilation=r, bias=False) for r in rates
            )
            self.mix = conv(half * (2 + len(rates)), c2, 1, 1)
        else:
            self.first = conv(c1, c2, 1, 1, act=nn.ReLU())
            self.branches = module_list(
                conv(c1, c2, 3, 1, None, 1, r, act=nn.ReLU()) for r in rates
            )
            self.mean = nn.Conv2d(c1, c2, 1, bias=False)
            self.mean_norm = PooledNorm(c2)
            self.mix = conv(c2 * (2 + len(rates)), c2, 1, 1, act=nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H, W)``."""
        h = self.first(x)
        if self.form == "tph":
            pooled = F.max_pool2d(h, 3, 1, 1)
            return self.mix(torch.cat([h, pooled, *(branch(h) for branch in self.branches)], 1))
        mean = F.relu(self.mean_norm(self.mean(x.mean((2, 3), keepdim=True))))
        maps = [h, *(branch(x) for branch in self.branches), mean.expand_as(h).to(h.dtype)]
        y = self.mix(torch.cat(maps, 1))
        return F.dropout(y, self.dropout, self.training) if self.dropout else y
