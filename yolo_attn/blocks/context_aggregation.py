"""Context aggregation block of CATNet.

Ye Liu, Huifang Li, Chao Hu, Shuang Luo, Yan Luo, Chang Wen Chen.
Learning to Aggregate Multi-Scale Context for Instance Segmentation in Remote Sensing Images. TNNLS
2024. https://arxiv.org/abs/2111.11057
"""

from __future__ import annotations

from torch import Tensor, nn

from yolo_attn.blocks._common import bias_of, check_channels, reduced_channels
from yolo_attn.ops.pooling import attention_pool, softmax_map
from yolo_attn.registry import register


@register(
    paper="Liu, Li, Hu, Luo, Luo, Chen: Learning to Aggregate Multi-Scale Context for Instance "
    "Segmentation in Remote Sensing Images, TNNLS 2024, arXiv 2111.11057",
    cost="time O(3 N C + 2 C d), memory O(N)",
    identity_at_start=True,
    placement="one block per pyramid level, before the head; here after N3, N4, N5",
    width_options=("rd_channels",),
)
class ContextAggregation(nn.Module):
    """A global context vector, added to each position through its own gate.

    ``a = sigma(w_a . x_n)``, ``k = softmax_n(w_k . x_n)``, ``y = W_m sum_n k_n (W_v x_n)``, ``z_n =
    x_n + a_n y`` with W_v: C -> d, W_m: d -> C.

    The weights k sum to 1, so W_v is applied once, to the weighted sum, instead of at all N
    positions: the same result. The bias of ``w_k`` is left out, the softmax cancels it. The
        identity at the start (W_m is zero).

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: d as a share of C, at least 8.
        rd_channels: d itself; overrides `rd_ratio`.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(self, channels: int, rd_ratio: float = 1.0, rd_channels: int | None = None):
        super().__init__()
        check_channels("ContextAggregation", channels)
        d = reduced_channels("ContextAggregation", channels, rd_ratio, rd_channels)
        self.out_channels = channels
        self.a = nn.Conv2d(channels, 1, 1)
        self.k = nn.Conv2d(channels, 1, 1, bias=False)
        self.v = nn.Conv2d(channels, d, 1)
        self.m = nn.Conv2d(d, channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform(-b, b) with ``b = sqrt(3 / fan_in)`` ("Caffe2 Xavier"), zero biases, zero W_m."""
        for conv in (self.a, self.k, self.v):
            bound = (3 / conv.in_channels) ** 0.5
            nn.init.uniform_(conv.weight, -bound, bound)
        for conv in (self.a, self.v, self.m):
            nn.init.zeros_(bias_of(conv))
        nn.init.zeros_(self.m.weight)

    def zero_started(self) -> Tensor:
        """Weights of W_m."""
        return self.m.weight

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        y = self.m(self.v(attention_pool(x, self.k(x))))
        return x + y * self.a(x).sigmoid()

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """The map k of all positions.

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column); the map does not depend on them.

        Returns:
            ``(B, Q, H, W)``; each map sums to 1.
        """
        return softmax_map(self.k(x)).expand(-1, len(queries), -1, -1)
