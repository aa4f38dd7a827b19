"""The attention module that Ultralytics ships under CBAM's name.

Its channel gate is that of RTMDet: Chengqi Lyu, Wenwei Zhang, Haian Huang, Yue Zhou, Yudong Wang,
Yanyi Liu, Shilong Zhang, Kai Chen. RTMDet: An Empirical Study of Designing Real-Time Object
Detectors. 2022. https://arxiv.org/abs/2212.07784
The position gate is CBAM's: Woo, Park, Lee, Kweon. ECCV 2018. https://arxiv.org/abs/1807.06521
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import check_channels, check_kernel
from yolo_attn.blocks.cbam import largest_channel
from yolo_attn.registry import register


@register(
    paper="no paper of its own: channel gate of Lyu, Zhang, Huang, Zhou, Wang, Liu, Zhang, Chen: "
    "RTMDet, 2022, arXiv 2212.07784; position gate of Woo, Park, Lee, Kweon: CBAM, ECCV 2018, "
    "arXiv 1807.06521",
    cost="time O(N C + C^2 + 2 k^2 N), memory O(N C); C^2 parameters",
    placement="after stages of the neck in forks of YOLOv8 and YOLO11",
)
class UltralyticsCBAM(nn.Module):
    """The class CBAM of Ultralytics: ``x1 = x * sigma(W mean_n x + b)``, ``z = x1 * s_s(x1)``.

    W is C x C; ``s_s = sigma(conv_kxk [mean_c x1, max_c x1])`` (B, 1, H, W), without bias. No
    maximum and no bottleneck in the channel gate: not the paper's CBAM, but what most forks of
    YOLOv8 mean by that name. Not the identity at the start (about x/4).

    Args:
        channels: C of the input ``(B, C, H, W)``.
        kernel_size: k, odd (Ultralytics: 3 or 7).

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(self, channels: int, kernel_size: int = 7):
        super().__init__()
        self.out_channels = check_channels("UltralyticsCBAM", channels)
        k = check_kernel("UltralyticsCBAM", "kernel_size", kernel_size)
        self.fc = nn.Conv2d(channels, channels, 1)
        self.conv = nn.Conv2d(2, 1, k, padding=k // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        x = x * self._channel_gate(x)
        return x * self._position_gate(x)

    def channel_weights(self, x: Tensor) -> Tensor:
        """Channel gates ``(B, C)`` for the input `x`."""
        return self._channel_gate(x).flatten(1)

    def gate_map(self, x: Tensor) -> Tensor:
        """Product of both gates ``(B, C, H, W)`` for the input `x`."""
        s_c = self._channel_gate(x)
        return s_c * self._position_gate(x * s_c)

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """The position gate.

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column); the gate does not depend on them.

        Returns:
            ``(B, Q, H, W)``, each value in (0, 1).
        """
        s_s = self._position_gate(x * self._channel_gate(x))
        return s_s.expand(-1, len(queries), -1, -1)

    def _channel_gate(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3), keepdim=True)).sigmoid()

    def _position_gate(self, x: Tensor) -> Tensor:
        """s_s ``(B, 1, H, W)``."""
        return self.conv(torch.stack([x.mean(1), largest_channel(x)], dim=1)).sigmoid()
