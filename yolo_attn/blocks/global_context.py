"""Global context block.

Yue Cao, Jiarui Xu, Stephen Lin, Fangyun Wei, Han Hu.
GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond. ICCV-W 2019.
https://arxiv.org/abs/1904.11492
"""

from __future__ import annotations

from torch import Tensor, nn

from yolo_attn.blocks._common import (
    NARROWEST,
    check_channels,
    check_choice,
    check_int,
    reduced_channels,
)
from yolo_attn.errors import YoloAttnError
from yolo_attn.ops.pooling import attention_pool, softmax_map
from yolo_attn.registry import register

FUSIONS = {"add": ("add",), "mul": ("mul",), "both": ("mul", "add")}


@register(
    paper="Cao, Xu, Lin, Wei, Hu: GCNet: Non-local Networks Meet Squeeze-Excitation Networks and "
    "Beyond, ICCV-W 2019, arXiv 1904.11492",
    aliases=("GC", "GCBlock"),
    cost="time O(N C + 2 C^2/r), memory O(N)",
    identity_at_start=True,
    placement="the paper: inside every bottleneck of c3, c4 and c5, before its shortcut is added; "
    "here after P3, P4 or P5, once a stage",
    width_options=("rd_channels",),
)
class GlobalContext(nn.Module):
    """One attention map for all positions, one context vector for all of them.

    ``a = softmax_n(w_k . x_n)``, ``c = sum_n a_n x_n``, ``t(c) = W2 relu(LN(W1 c))`` with W1: C ->
    P, W2: P -> C; ``add``: ``z = x + t(c)``; ``mul``: ``z = x * sigma(t(c))``; ``both``: ``z = x *
    sigma(t_mul(c)) + t_add(c)``.

    The paper puts it *inside* every bottleneck of c3, c4 and c5 (all 13 of a ResNet-50), behind the
    last convolution of the residual branch and before the shortcut is added. A row of a YAML stands
    behind a whole stage instead, once.

    With ``fusion: add`` the identity at the start; ``mul`` starts as x/2. The bias of ``w_k`` is
    left out: the softmax cancels it. P from `rd_ratio` is at least 8: a LayerNorm over one element
    lets nothing through, over two only a sign, where the paper's ``int(C/16)`` meets narrow layers.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: P as a share of C, at least 8.
        rd_channels: P itself; overrides `rd_ratio`.
        pooling: ``att`` (the map above) or ``avg`` (plain mean).
        fusion: ``add``, ``mul`` or ``both``.
        rd_min: Smallest P that `rd_ratio` gives, 1 to 8 (1: what forks have).

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        pooling: str = "att",
        fusion: str = "add",
        rd_min: int = NARROWEST,
    ):
        super().__init__()
        check_channels("GlobalContext", channels)
        check_choice("GlobalContext", "pooling", pooling, ("att", "avg"))
        check_choice("GlobalContext", "fusion", fusion, FUSIONS)
        check_int("GlobalContext", "rd_min", rd_min, maximum=NARROWEST)
        planes = reduced_channels("GlobalContext", channels, rd_ratio, rd_channels, rd_min)
        self.out_channels = channels
        self.starts_as_identity = fusion == "add"
        self.mask = nn.Conv2d(channels, 1, 1, bias=False) if pooling == "att" else None
        self.steps = FUSIONS[fusion]
        self.add: ContextTransform
        self.mul: ContextTransform
        for name in self.steps:
            self.add_module(name, ContextTransform(channels, planes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming-normal (fan-in) map, default W1, zero W2."""
        if self.mask is not None:
            nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")

    def zero_started(self) -> Tensor | None:
        """Weights of W2; None where a gate makes another start of their zero."""
        return self.add.w2.weight if self.starts_as_identity else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        if self.mask is None:
            c = x.mean((2, 3), keepdim=True)
        else:
            c = attention_pool(x, self.mask(x))
        z = x
        if "mul" in self.steps:
            z = z * self.mul(c).sigmoid()
        if "add" in self.steps:
            z = z + self.add(c)
        return z

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """The one map of all positions.

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column); the map does not depend on them.

        Returns:
            ``(B, Q, H, W)``; each map sums to 1.

        Raises:
            YoloAttnError: The block was built with ``pooling: avg`` and has no map.
        """
        if self.mask is None:
            raise YoloAttnError(
                "GlobalContext: pooling='avg' has no attention map (pooling='att' has)"
            )
        return softmax_map(self.mask(x)).expand(-1, len(queries), -1, -1)


class ContextTransform(nn.Module):
    """``W2 relu(LN(W1 c))`` on ``(B, C, 1, 1)``; W2 starts at zero."""

    def __init__(self, channels: int, planes: int):
        super().__init__()
        self.w1 = nn.Linear(channels, planes)
        self.norm = nn.LayerNorm(planes)
        self.w2 = nn.Linear(planes, channels)
        nn.init.zeros_(self.w2.weight)
        nn.init.zeros_(self.w2.bias)

    def forward(self, c: Tensor) -> Tensor:
        """``(B, C, 1, 1) -> (B, C, 1, 1)``."""
        hidden = self.norm(self.w1(c.flatten(1))).relu()
        return self.w2(hidden)[..., None, None]
