"""Concatenation with a learned weight for each map.

Mingxing Tan, Ruoming Pang, Quoc V. Le. EfficientDet: Scalable and Efficient Object Detection.
CVPR 2020. https://arxiv.org/abs/1911.09070 (the weights; YOLO forks concatenate what they weigh)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import check_channel_list, check_choice, check_flag
from yolo_attn.registry import register

EPS = 1e-4


@register(
    layer=True,
    inputs=(2, 8),
    paper="Tan, Pang, Le: EfficientDet, CVPR 2020, arXiv 1911.09070; concatenated by YOLO forks "
    "(BiFPN_Concat)",
    cost="one product over each map; n parameters",
    placement="in the place of a fusion Concat of the neck",
)
class WeightedConcat(nn.Module):
    """Each map times its weight: ``y = [s_1 x_1, ..., s_n x_n]``, ``s_i = w_i / mean(w)``.

    ``w = relu(v)``, and v is 1 at the start: every s is 1, it is the plain Concat, to the bit, and
    pretrained weights behind it keep their meaning.

    Args:
        channels: Channels of the inputs, which are of one size.
        scale: ``mean`` as above; ``sum`` is the published form ``w_i / (sum w + 1e-4)``, which
            divides each map by n at the start.
        relu: Whether weights are cut off at zero. Without it, as in the common copy, the sum may
            cross zero.

    Raises:
        YoloAttnError: Fewer than two inputs, or an option's value is not accepted.
    """

    def __init__(self, channels: list[int], scale: str = "mean", relu: bool = True):
        super().__init__()
        channels = check_channel_list("WeightedConcat", channels, 2, 8)
        self.scale = check_choice("WeightedConcat", "scale", scale, ("mean", "sum"))
        self.relu = check_flag("WeightedConcat", "relu", relu)
        self.out_channels = sum(channels)
        # One dimension: MuSGD would take two or four for a matrix or a filter.
        self.weight = nn.Parameter(torch.ones(len(channels)))

    def forward(self, x: list[Tensor]) -> Tensor:
        """Maps ``(B, C_i, H, W)`` -> ``(B, sum of C_i, H, W)``."""
        s = self.factors().to(x[0].dtype)
        return torch.cat([s[i] * y for i, y in enumerate(x)], dim=1)

    def factors(self) -> Tensor:
        """What each map is multiplied with ``(n,)``, in float32 (float64)."""
        w = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        w = w.relu() if self.relu else w
        if self.scale == "sum":
            return w / (w.sum() + EPS)
        # The epsilon stands where equal weights do not meet it: 1 / mean(1) is 1 exactly.
        return w / w.mean().clamp_min(EPS) if self.relu else w / w.mean()
