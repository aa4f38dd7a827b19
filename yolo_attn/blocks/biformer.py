"""BiFormer block.

Lei Zhu, Xinjiang Wang, Zhanghan Ke, Wayne Zhang, Rynson Lau.
BiFormer: Vision Transformer with Bi-Level Routing Attention. CVPR 2023.
https://arxiv.org/abs/2303.08810
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._bi_level_routing import BiLevelRoutingAttention, check_side
from yolo_attn.blocks._common import (
    MOST_MLP_RATIO,
    check_channels,
    check_flag,
    check_number,
)
from yolo_attn.registry import register


class DepthwiseMLP(nn.Module):
    """``W2 gelu([dw3x3] W1 x)`` on ``(B, H, W, C)``."""

    def __init__(self, channels: int, hidden: int, dwconv: bool):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if dwconv else None
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        h = self.fc1(x)
        if self.dwconv is not None:
            h = self.dwconv(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(h))


@register(
    paper="Zhu, Wang, Ke, Zhang, Lau: BiFormer: Vision Transformer with Bi-Level Routing "
    "Attention, CVPR 2023, arXiv 2303.08810",
    aliases=("BRA",),
    cost="time O(N C^2 + N C k N/S^2), memory O(k N C)",
    placement="the block of every stage of the backbone; here after P3, P4 or P5",
    width_options=("qk_dim",),
)
class BiFormer(nn.Module):
    """A transformer block whose positions read the k regions that are nearest to their own region.

    ``x <- x + dw3x3(x)``, ``x <- x + BRA(LN(x))``, ``x <- x + W2 gelu(W1 LN(x))``. BRA
    (``attention_only`` gives it alone, without a residual): the map is cut into S x S regions;
    ``Z = mean(q) mean(k)^T`` between regions chooses the k best for each, no gradient passes here;
    then ``softmax(q K^T / sqrt(C)) V`` over the positions of those k regions, plus a depthwise
    convolution of v. The scale is that of the whole width, not of a head's. Not the identity at the
    start.

    Any map works. Regions have ``ceil(H/S) x ceil(W/S)`` positions and there are as many as the map
    needs, at most S along a side (one position each on a map smaller than S x S), and at most all
    of them are chosen. Where they do not fill the map, the paper says nothing and the authors' two
    codes differ: ``border: mask`` leaves positions outside of the map out of all sums; ``bias``
    pads the input with zeros, so that positions outside have the biases as keys and values (first
    code); ``zero`` takes regions of ``floor(H/S)``, as many as needed, and lets positions outside
    take part with zero keys and values (second code).

    ONNX with dynamic axes takes images of any size, if the traced map and the others have more than
    `topk` regions; with pooled keys, only sizes whose regions have the same sides; in `zero` mode,
    none whose map is smaller than S x S. It stops with an error at others.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        num_heads: Heads; by default as many as the head width 32 gives, or the next smaller number
            that divides C.
        n_win: S.
        topk: k.
        mlp_ratio: Width of the hidden layer of the MLP as a multiple of C.
        side_dwconv: Side of the depthwise convolution of v; 0 for none.
        before_attn_dwconv: Side of the depthwise convolution at the beginning; 0 for none.
        qk_dim: Channels of queries and keys; C by default.
        qk_scale: Factor of the logits; ``1/sqrt(qk_dim)`` by default.
        border: ``mask``, ``bias`` or ``zero``, see above.
        routing: ``hard``; ``soft`` multiplies keys and values with the softmax over the k chosen
            regions; ``differentiable`` lets gradients into those weights.
        param_routing: Whether the means pass a linear map first.
        kv_downsample_mode: How keys and values are pooled in each region: ``identity``,
            ``ada_avgpool``, ``ada_maxpool``, ``avgpool`` or ``maxpool``.
        kv_per_win: Side of the pooled region in the ``ada_`` modes.
        kv_downsample_ratio: Kernel and stride in the two other modes.
        param_attention: ``qkvo``, or ``qkv`` without the last linear map.
        mlp_dwconv: Whether the MLP has a depthwise 3 x 3 convolution in front of its GELU.
        layer_scale: Start of a learned factor per channel on each branch; 0 for no such factor.
        pre_norm: Norms in front of the branches; false: behind the sums.
        attention_only: BRA alone.
        init_std: Standard deviation of the initial linear maps, truncated normal. The authors' 0.02
            was made for wide networks; null is ``1/sqrt(fan_in)``, which keeps the variance of the
            maps at any width.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int | None = None,
        n_win: int = 7,
        topk: int = 4,
        mlp_ratio: float = 3.0,
        side_dwconv: int = 5,
        before_attn_dwconv: int = 3,
        qk_dim: int | None = None,
        qk_scale: float | None = None,
        border: str = "mask",
        routing: str = "hard",
        param_routing: bool = False,
        kv_downsample_mode: str = "identity",
        kv_per_win: int = 4,
        kv_downsample_ratio: int = 4,
        param_attention: str = "qkvo",
        mlp_dwconv: bool = False,
        layer_scale: float = 0.0,
        pre_norm: bool = True,
        attention_only: bool = False,
        init_std: float | None = None,
    ):
        super().__init__()
        check_channels("BiFormer", channels)
        check_number("BiFormer", "mlp_ratio", mlp_ratio, 1 / channels, MOST_MLP_RATIO)
        check_flag("BiFormer", "mlp_dwconv", mlp_dwconv)
        check_number("BiFormer", "layer_scale", layer_scale, high=10.0)
        self.pre_norm = check_flag("BiFormer", "pre_norm", pre_norm)
        self.attention_only = check_flag("BiFormer", "attention_only", attention_only)
        side = check_side("BiFormer", "before_attn_dwconv", before_attn_dwconv)
        self.out_channels = channels
        self.attn = BiLevelRoutingAttention(
            "BiFormer",
            channels,
            num_heads,
            n_win,
            topk,
            side_dwconv,
            qk_dim,
            qk_scale,
            border,
            routing,
            param_routing,
            kv_downsample_mode,
            kv_per_win,
            kv_downsample_ratio,
            param_attention,
        )
        if not attention_only:
            self.pos_embed = (
                nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels)
                if side
                else None
            )
            self.norm1 = nn.LayerNorm(channels, eps=1e-6)
            self.norm2 = nn.LayerNorm(channels, eps=1e-6)
            self.mlp = DepthwiseMLP(channels, int(channels * mlp_ratio), mlp_dwconv)
            self.gamma1, self.gamma2 = (
                nn.Parameter(torch.full((channels,), float(layer_scale))) if layer_scale else None
                for _ in range(2)
            )
        self.init_std = None
        if init_std is not None:
            self.init_std = check_number("BiFormer", "init_std", init_std, 0.0, 10.0)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal linear maps with zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = module.in_features**-0.5 if self.init_std is None else self.init_std
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        y = self._stem(x)
        if self.attention_only:
            y = self.attn(y)
        elif self.pre_norm:
            y = y + _scaled(self.attn(self.norm1(y)), self.gamma1)
            y = y + _scaled(self.mlp(self.norm2(y)), self.gamma2)
        else:
            y = self.norm1(y + _scaled(self.attn(y), self.gamma1))
            y = self.norm2(y + _scaled(self.mlp(y), self.gamma2))
        y = y.permute(0, 3, 1, 2)
        # The layers behind this one keep the memory format of the layers before it.
        return y if x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()

    def _stem(self, x: Tensor) -> Tensor:
        """The input of the attention branch as ``(B, H, W, C)``."""
        if not self.attention_only and self.pos_embed is not None:
            x = x + self.pos_embed(x)
        return x.permute(0, 2, 3, 1)

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """Where given positions look, mean of the heads.

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column).

        Returns:
            ``(B, Q, H, W)``, zero outside the chosen regions; each map sums to 1 (less where
            positions outside of the map take part).

        Raises:
            YoloAttnError: Keys are pooled.
        """
        y = self._stem(x)
        if not self.attention_only and self.pre_norm:
            y = self.norm1(y)
        return self.attn.attention(y, queries)


def _scaled(branch: Tensor, gamma: Tensor | None) -> Tensor:
    return branch if gamma is None else gamma * branch
