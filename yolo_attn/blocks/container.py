"""Container block.

Peng Gao, Jiasen Lu, Hongsheng Li, Roozbeh Mottaghi, Aniruddha Kembhavi.
Container: Context Aggregation Network. NeurIPS 2021. https://arxiv.org/abs/2106.01401
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    MOST_MLP_RATIO,
    check_channels,
    check_choice,
    check_flag,
    check_int,
    check_kernel,
    check_number,
)
from yolo_attn.blocks._container_mixer import DenseAffinity, DepthwiseAffinity, Mixer
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.errors import YoloAttnError
from yolo_attn.registry import register

HEAD_WIDTH = 32


class Form(NamedTuple):
    """What a form consists of.

    Attributes:
        dynamic: Whether it has A.
        static: Its S: ``depthwise``, ``dense``, ``any`` of both, or ``none``.
        weights: How alpha and beta are learned, see Mixer.
        frame: ``block`` (all three steps), ``residual`` (``x + mix(x)``) or ``mix``.
        bias: Whether the linear maps have biases.
    """

    dynamic: bool
    static: str
    weights: str
    frame: str
    bias: bool


FORMS = {
    "mixblock": Form(True, "depthwise", "gate", "block", True),
    "cblock": Form(False, "depthwise", "ones", "block", True),
    "mixer_core": Form(True, "depthwise", "gate", "mix", True),
    "pam": Form(True, "dense", "ones", "mix", True),
    "general": Form(True, "any", "scalars", "residual", False),
    "transformer": Form(True, "none", "scalars", "residual", False),
    "depthwise": Form(False, "depthwise", "scalars", "residual", False),
    "mlp_mixer": Form(False, "dense", "scalars", "residual", False),
}


class ConvMLP(nn.Module):
    """``W2 gelu(W1 x)`` on ``(B, C, H, W)``."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return self.fc2(F.gelu(self.fc1(x)))


@register(
    paper="Gao, Lu, Li, Mottaghi, Kembhavi: Container: Context Aggregation Network, NeurIPS 2021, "
    "arXiv 2106.01401",
    cost="time O(N^2 C + N C^2) (depthwise: N C^2, dense: N0^2 C more), memory O(N C) (dense: "
    "M N0^2 parameters)",
    placement="mixblock in the last stage of the backbone, cblock in the stages before; here P5",
)
class Container(nn.Module):
    """Mix positions by a dynamic and a static affinity: ``y = W2 concat_m (a A_m + b S_m) v_m``.

    ``A_m = softmax_j(q_i . k_j / sqrt(C/M))`` (N x N) comes from the input, ``S_m`` is learned:
    either ``depthwise``, a Toeplitz matrix for each channel (a depthwise convolution of v), or
    ``dense``, any N x N matrix for each of the M heads. q, k and v are linear maps of the input.
    ``A_m v_m`` is fused attention and ``S_m v_m`` is computed apart from it: no N x N matrix but
    a dense S itself is kept.

    `form` says what stands around it, and which of a, b and S there is:

    - ``mixblock`` (released Container-Light): ``x <- x + dw3x3(x)``, ``x <- x + y(BN(x))``,
      ``x <- x + W4 gelu(W3 BN(x))``; S depthwise, ``a = sigma(g)``, ``b = 1 - a``
    - ``cblock`` (the early stages of Container-Light): the same with ``a = 0``, ``b = 1``
    - ``mixer_core``: y of the mixblock alone, neither norm nor residual
    - ``pam`` (the paper's listing): y alone; S dense, ``a = b = 1``
    - ``general`` (the paper's equation): ``x + y`` without any bias, a and b learned scalars;
      ``transformer`` (b = 0), ``depthwise`` and ``mlp_mixer`` (a = 0; S dense, by default of one
      head) are its special cases

    The paper's equation leaves a and b free, the released code ties them to a convex combination:
    ``mixblock`` is the code, ``general`` the equation.

    A dense S belongs to one map: `size` must declare it. There it is exact. On another map it is
    ``U S D``, where D resamples the values to `size` and U the sums back, bilinear and antialiased;
    row sums stay. An exported model with a dense S keeps the map size of its export. The bias of k
    is left out, the softmax cancels it. No form is the identity at the start.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        form: ``mixblock``, ``cblock``, ``mixer_core``, ``pam``, ``general``, ``transformer``,
            ``depthwise`` or ``mlp_mixer``.
        num_heads: M; by default as many as the head width 32 gives, or the next smaller number
            that divides C; 1 in ``mlp_mixer``.
        mlp_ratio: Hidden width of the MLP as a multiple of C, in ``mixblock`` and ``cblock``; 4 by
            default.
        kernel_size: Odd side of the depthwise S; 5 by default.
        qk_scale: Factor of the logits of A; ``1/sqrt(C/M)`` by default.
        static: S of ``general``: ``depthwise`` (default) or ``dense``.
        size: Map that a dense S belongs to: [height, width], or one number for both. At stride 32
            a 640-pixel image has 20.
        qkv_bias: Whether q and v of ``pam`` have a bias; true by default.

    Raises:
        YoloAttnError: An option's value is not accepted, or an option does not belong to the form.
    """

    def __init__(
        self,
        channels: int,
        form: str = "mixblock",
        num_heads: int | None = None,
        mlp_ratio: float | None = None,
        kernel_size: int | None = None,
        qk_scale: float | None = None,
        static: str | None = None,
        size: int | list[int] | None = None,
        qkv_bias: bool | None = None,
    ):
        super().__init__()
        check_channels("Container", channels)
        facts = FORMS[check_choice("Container", "form", form, FORMS)]
        kind = facts.static
        if kind == "any":
            kind = "depthwise" if static is None else static
            check_choice("Container", "static", kind, ("depthwise", "dense"))
        else:
            _unused("static", static, form)
        dense = kind == "dense"
        if not facts.dynamic:
            _unused("qk_scale", qk_scale, form)
        if not (facts.dynamic or dense):
            _unused("num_heads", num_heads, form)
        if not dense:
            _unused("size", size, f"{form} without a dense static affinity")
        if kind != "depthwise":
            _unused("kernel_size", kernel_size, f"{form} without a depthwise static affinity")
        if facts.frame != "block":
            _unused("mlp_ratio", mlp_ratio, form)
        if form != "pam":
            _unused("qkv_bias", qkv_bias, form)
        bias = facts.bias if qkv_bias is None else check_flag("Container", "qkv_bias", qkv_bias)

        if num_heads is None and not facts.dynamic:
            heads = 1
        else:
            heads = _heads(channels, num_heads)
        scale = (channels // heads) ** -0.5
        if qk_scale is not None:
            scale = check_number("Container", "qk_scale", qk_scale, high=100.0)
        side = 5 if kernel_size is None else kernel_size
        check_kernel("Container", "kernel_size", side)
        affinity: DenseAffinity | DepthwiseAffinity | None = None
        if dense:
            affinity = DenseAffinity(heads, _size(size))
        elif kind == "depthwise":
            affinity = DepthwiseAffinity(channels, side, bias=facts.bias)

        self.form, self.frame = form, facts.frame
        self.out_channels = channels
        self.mixer = Mixer(
            channels,
            heads if facts.dynamic else 0,
            scale,
            affinity,
            facts.weights,
            bias,
            out_bias=facts.bias,
        )
        if facts.frame == "block":
            ratio = 4.0 if mlp_ratio is None else mlp_ratio
            ratio = check_number("Container", "mlp_ratio", ratio, 1 / channels, MOST_MLP_RATIO)
            self.pos_embed = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            self.norm1 = batch_norm(channels)
            self.norm2 = batch_norm(channels)
            self.mlp = ConvMLP(channels, max(int(channels * ratio), 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions as PyTorch has them; the linear maps of ``pam`` and ``general`` 0.02.

        Truncated normal, zero biases. A dense S is truncated normal (1) in ``pam``, as the
        listing has it, else normal with the variance ``1/N0`` of a linear layer.
        """
        static = self.mixer.static
        if isinstance(static, DenseAffinity):
            if self.form == "pam":
                nn.init.trunc_normal_(static.weight)
            else:
                nn.init.normal_(static.weight, std=static.weight.shape[1] ** -0.5)
        if self.form in ("mixblock", "cblock", "mixer_core"):
            return
        for module in self.mixer.children():
            if type(module) is nn.Conv2d:
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        if self.frame == "mix":
            return self.mixer(x)
        if self.frame == "residual":
            return x + self.mixer(x)
        x = x + self.pos_embed(x)
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """Where given positions look: rows of ``a A + b S``, mean of the heads (or channels).

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column).

        Returns:
            ``(B, Q, H, W)``; S may be negative, and rows sum to 1 only in ``transformer`` with
            ``a = 1``.
        """
        if self.frame == "block":
            x = self.norm1(x + self.pos_embed(x))
        return self.mixer.rows(x, queries)


def _unused(option: str, value: Any, where: str) -> None:
    if value is not None:
        raise YoloAttnError(
            f"Container: {option}={value!r} is not accepted, form {where} does not use it "
            "(accepted: None)"
        )


def _heads(channels: int, num_heads: int | None) -> int:
    if num_heads is None:
        target = max(channels // HEAD_WIDTH, 1)
        return next(m for m in range(target, 0, -1) if channels % m == 0)
    check_int("Container", "num_heads", num_heads, maximum=channels)
    if channels % num_heads:
        raise YoloAttnError(
            f"Container: num_heads={num_heads} is not accepted (accepted: a divisor of "
            f"channels={channels})"
        )
    return num_heads


def _size(size: Any) -> tuple[int, int]:
    """Height and width of the map that a dense affinity belongs to."""
    sides = list(size) if isinstance(size, (list, tuple)) else [size, size]
    whole = all(isinstance(s, int) and not isinstance(s, bool) and 0 < s <= 1024 for s in sides)
    if len(sides) != 2 or not whole:
        raise YoloAttnError(
            f"Container: size={size!r} is not accepted (accepted: the height and width of the map "
            "that the dense static affinity is learned on, from 1 to 1024, e.g. [20, 20])"
        )
    return sides[0], sides[1]
