"""Simplified non-local block.

Yue Cao, Jiarui Xu, Stephen Lin, Fangyun Wei, Han Hu.
GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond. ICCV-W 2019.
https://arxiv.org/abs/1904.11492
"""

from __future__ import annotations

from torch import Tensor, nn

from yolo_attn.blocks._common import bias_of, check_channels
from yolo_attn.ops.pooling import attention_pool, softmax_map
from yolo_attn.registry import register


@register(
    paper="Cao, Xu, Lin, Wei, Hu: GCNet: Non-local Networks Meet Squeeze-Excitation Networks and "
    "Beyond, ICCV-W 2019, arXiv 1904.11492",
    aliases=("SNL",),
    cost="time O(N C + C^2), memory O(N)",
    identity_at_start=True,
    placement="as a non-local block: late in the backbone (c4, c5); here after P4 or P5",
)
class SimplifiedNonLocal(nn.Module):
    """A non-local block with one attention map for all positions: ``z_n = x_n + W_v c``.

    ``c = sum_n a_n x_n``, ``a = softmax_n(w_k . x_n)``; W_v: C -> C, no bottleneck.

    The paper moves W_v out of the sum, ``W_v sum_n a_n x_n = sum_n a_n W_v x_n``, because the
    weights sum to 1; it costs C^2 instead of N C^2. The bias of ``w_k`` is left out: the softmax
    cancels it. The identity at the start (W_v is zero).

    Args:
        channels: C of the input ``(B, C, H, W)``.

    Raises:
        YoloAttnError: `channels` is not a positive whole number.
    """

    def __init__(self, channels: int):
        super().__init__()
        check_channels("SimplifiedNonLocal", channels)
        self.out_channels = channels
        self.key = nn.Conv2d(channels, 1, 1, bias=False)
        self.value = nn.Conv2d(channels, channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming-normal (fan-in) map as in GCNet, zero W_v."""
        nn.init.kaiming_normal_(self.key.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(bias_of(self.value))

    def zero_started(self) -> Tensor:
        """Weights of W_v."""
        return self.value.weight

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return x + self.value(attention_pool(x, self.key(x)))

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """The one map of all positions.

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column); the map does not depend on them.

        Returns:
            ``(B, Q, H, W)``; each map sums to 1.
        """
        return softmax_map(self.key(x)).expand(-1, len(queries), -1, -1)
