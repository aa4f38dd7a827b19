"""Where a level of the Feature Pyramid Transformer meets what was made of it.

Dong Zhang, Hanwang Zhang, Jinhui Tang, Meng Wang, Xiansheng Hua, Qianru Sun.
Feature Pyramid Transformer. ECCV 2020. https://arxiv.org/abs/2007.09451
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    bias_of,
    check_channel_list,
    check_kernel,
)
from yolo_attn.blocks.fpt_self import PAPER
from yolo_attn.registry import register


@register(
    paper=PAPER,
    inputs=(2, 6),
    cost="time O(k^2 N C sum C_l), memory O(N sum C_l)",
    placement="behind the branches FPTSelf, FPTGround and FPTRender of a level, which it reads "
    "with the level itself",
    layer=True,
)
class FPTFuse(nn.Module):
    """The end of a level: ``y = W [x, z_1, z_2, ...]``, a 3 x 3 convolution back to C channels.

    Inputs: ``[x, z_1, ...]``: the level and the maps that self-, grounding and rendering
    transformers made of it, all of one size. Not the identity at the start.

    Args:
        channels: ``[C of x, C of z_1, ...]``, two to six.
        kernel_size: k, odd.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(self, channels: list[int], kernel_size: int = 3):
        super().__init__()
        widths = check_channel_list("FPTFuse", channels, 2, 6)
        check_kernel("FPTFuse", "kernel_size", kernel_size)
        self.out_channels = widths[0]
        self.conv = nn.Conv2d(sum(widths), widths[0], kernel_size, padding=kernel_size // 2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming-uniform (a = 1) and bias 0, as released."""
        nn.init.kaiming_uniform_(self.conv.weight, a=1)
        nn.init.zeros_(bias_of(self.conv))

    def forward(self, xs: list[Tensor]) -> Tensor:
        """``[(B, C, H, W), (B, C_1, H, W), ...] -> (B, C, H, W)``."""
        return self.conv(torch.cat(xs, dim=1))
