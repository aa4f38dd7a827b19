"""Squeeze-and-excitation with an aggregated dense layer.

Mahendran Narayanan.
SENetV2: Aggregated dense layer for channelwise and global representations. 2023.
https://arxiv.org/abs/2311.10807
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from yolo_attn.blocks._common import check_channels, check_flag, reduced_channels
from yolo_attn.registry import register

# Number of parallel dense layers; the paper and every copy of it have four.
CARDINALITY = 4


@register(
    paper="Narayanan: SENetV2: Aggregated dense layer for channelwise and global representations, "
    "2023, arXiv 2311.10807",
    aliases=("SENetV2",),
    cost="time O(N C + 8 C^2/r), memory O(C)",
    placement="at the end of a residual branch, as SE; here after a stage",
    width_options=("rd_channels",),
)
class SEv2(nn.Module):
    """Gate channels by four dense layers side by side: ``z = x + x * s`` with a gate in (0, 1).

    ``s = sigma(W2 [relu(W1a m), relu(W1b m), relu(W1c m), relu(W1d m)])``, ``m = mean_n x`` (B, C);
    each W1: C -> h, W2: 4h -> C, ``h = C * rd_ratio``. The four layers are held as one, C -> 4h.

    Not the identity at the start (about 1.5 x). The copies in YOLO forks (SELayerV2, SaE) have
    no shortcut (``residual: false``, about x/2 at the start) and no biases.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: h as a share of C, at least 8.
        rd_channels: h itself; overrides `rd_ratio`.
        residual: Whether x is added to the gated map, as the author does.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        residual: bool = True,
    ):
        super().__init__()
        check_channels("SEv2", channels)
        self.residual = check_flag("SEv2", "residual", residual)
        h = reduced_channels("SEv2", channels, rd_ratio, rd_channels)
        self.out_channels = channels
        self.fc1 = nn.Linear(channels, CARDINALITY * h)
        self.fc2 = nn.Linear(CARDINALITY * h, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights (each of the four layers by its own fans), zero biases."""
        h = self.fc1.out_features // CARDINALITY
        bound = math.sqrt(6 / (self.fc1.in_features + h))
        nn.init.uniform_(self.fc1.weight, -bound, bound)
        nn.init.xavier_uniform_(self.fc2.weight)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        s = self.channel_weights(x)[:, :, None, None]
        # x + x * s in one pass over the map.
        return x * (1 + s) if self.residual else x * s

    def channel_weights(self, x: Tensor) -> Tensor:
        """Gates s ``(B, C)`` for the input `x`."""
        return self.fc2(self.fc1(x.mean((2, 3))).relu()).sigmoid()
