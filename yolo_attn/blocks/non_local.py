"""Non-local block.

Xiaolong Wang, Ross Girshick, Abhinav Gupta, Kaiming He.
Non-local Neural Networks. CVPR 2018. https://arxiv.org/abs/1711.07971
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from yolo_attn.blocks._common import (
    at_least_float32,
    bias_of,
    check_channels,
    check_choice,
    check_int,
    check_number,
    query_index,
    reduced_channels,
    run_float32,
    tokens,
    untokens,
)
from yolo_attn.blocks._norm import batch_norm
from yolo_attn.errors import YoloAttnError
from yolo_attn.ops.attention import attend, attention_rows
from yolo_attn.ops.joint_projection import project_jointly
from yolo_attn.ops.relu_affinity import relu_affinity
from yolo_attn.registry import register

MODES = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, Callable[[int], _BatchNorm]] = {
    1: nn.BatchNorm1d,
    2: batch_norm,
    3: nn.BatchNorm3d,
}
POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@register(
    paper="Wang, Girshick, Gupta, He: Non-local Neural Networks, CVPR 2018, arXiv 1711.07971",
    aliases=("NL",),
    cost="time O(N^2 d), dot_product O(N d^2), concatenation O(N log N + N d); memory O(N d); "
    "d = C/2",
    identity_at_start=True,
    placement="late backbone stages (the paper: before the last block of res4); here P4 or P5",
    width_options=("rd_channels",),
    dead_parameters={
        "g.bias": "softmax rows sum to 1, so it shifts whole channels, and the norm takes that away"
    },
)
class NonLocal(nn.Module):
    """Every position reads every other: ``z_i = x_i + W_z (1/C(x)) sum_j f(x_i, x_j) g(x_j)``.

    ``g = W_g x`` has ``d`` channels (C/2). The affinity f and its normaliser C(x), over M key
    positions:

    - ``gaussian``: ``exp(x_i . x_j)``, softmax over j
    - ``embedded_gaussian``: ``exp(theta_i . phi_j)``, softmax over j
    - ``dot_product``: ``theta_i . phi_j / M``
    - ``concatenation``: ``relu(w_f . [theta_i, phi_j]) / M``

    No N x M matrix is formed: the softmax forms use fused attention, the dot product is associated
    as ``theta (phi^T g)``, and concatenation is summed by sorting
    (:mod:`yolo_attn.ops.relu_affinity`). The identity at the start: ``W_z`` (or the BN behind it)
    begins at zero.

    The bias of phi is left out where a softmax cancels it. Two defaults differ from popular ports:
    the paper has no ``1/sqrt(d)`` (``scale: sqrt_d`` adds mmcv's), and sub-sampling is off
    (``sub_sample: after`` pools phi and g as mmcv and AlexHex7 do, ``before`` pools their input as
    the authors' Caffe2 code does).

    The paper draws all weights from N(0, 0.01), which at its 1,024 channels gives logits of about
    unit variance and a branch that its BN can normalise. At the widths of a small YOLO the same
    0.01 gives a uniform attention and a branch below the BN's eps, so the default scales with the
    width: maps keep their variance, and logits of a softmax start with variance 1
    (docs/far-sign.md shows what that changes).

    Args:
        channels: C of the input ``(B, C, H, W)``; 1-D and 3-D maps with ``dimension``.
        mode: The affinity, see above.
        rd_ratio: d as a share of C, at least 8.
        rd_channels: d itself; overrides `rd_ratio`.
        scale: ``none``, ``sqrt_d`` (divide the logits of a softmax mode by the square root of their
            width) or a number to multiply them with.
        sub_sample: ``none``, ``after`` or ``before``: max-pool keys and values by 2 in space.
        norm: ``bn`` (behind ``W_z``, as in the paper) or ``none``.
        dimension: 1, 2 or 3 (``B, C, T, H, W``).
        group_size: With ``dimension: 3``, frames attend only within groups of this many; 0 for all
            frames.
        init_std: Standard deviation of all initial weights (the paper: 0.01); null scales it with
            the width, see above.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        mode: str = "embedded_gaussian",
        rd_ratio: float = 0.5,
        rd_channels: int | None = None,
        scale: str | float = "none",
        sub_sample: str = "none",
        norm: str = "bn",
        dimension: int = 2,
        group_size: int = 0,
        init_std: float | None = None,
    ):
        super().__init__()
        check_channels("NonLocal", channels)
        self.mode = check_choice("NonLocal", "mode", mode, MODES)
        self.sub_sample = check_choice(
            "NonLocal", "sub_sample", sub_sample, ("none", "after", "before")
        )
        check_choice("NonLocal", "norm", norm, ("bn", "none"))
        self.dimension = check_choice("NonLocal", "dimension", dimension, (1, 2, 3))
        self.group_size = check_int("NonLocal", "group_size", group_size, minimum=0, maximum=1024)
        if group_size and dimension != 3:
            raise YoloAttnError(
                f"NonLocal: group_size={group_size} needs dimension=3, got dimension={dimension}"
            )

        d = reduced_channels("NonLocal", channels, rd_ratio, rd_channels)
        conv = CONVS[dimension]
        softmax = mode in ("gaussian", "embedded_gaussian")
        self.scale = _scale(scale, channels if mode == "gaussian" else d, softmax, mode)
        self.out_channels = channels
        self.g = conv(channels, d, 1)
        if mode != "gaussian":
            self.theta = conv(channels, d, 1)
            self.phi = conv(channels, d, 1, bias=not softmax)
        if mode == "concatenation":
            self.w_f = nn.Parameter(self.g.weight.new_empty(2 * d))
        self.out = conv(d, channels, 1, bias=norm == "none")
        self.norm = NORMS[dimension](channels) if norm == "bn" else None
        self.init_std = None
        if init_std is not None:
            self.init_std = check_number("NonLocal", "init_std", init_std, 0.0, 10.0)
        self.reset_parameters()

    @property
    def map_dimension(self) -> int:
        """Spatial dimensions of the maps that the block reads; a model has maps of 2 only."""
        return self.dimension

    def reset_parameters(self) -> None:
        """Normal convolutions, zero biases, zero last layer: starts as the identity."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif (layer := name.split(".")[0]) != "norm":
                nn.init.normal_(parameter, std=self._start(layer, parameter))
        nn.init.zeros_(self.out.weight if self.norm is None else self.norm.weight)

    def _start(self, layer: str, weight: Tensor) -> float:
        """Standard deviation of the initial weights of `layer`."""
        if self.init_std is not None:
            return self.init_std
        variance = 1 / weight[0].numel() if weight.dim() > 1 else 1 / weight.numel()
        if layer in ("theta", "phi") and self.mode == "embedded_gaussian" and self.scale:
            # d products of two maps of variance v sum to d v^2: v for scaled logits of variance 1.
            variance /= abs(self.scale) * weight.shape[0] ** 0.5
        return variance**0.5

    def zero_started(self) -> Tensor:
        """Scales of the norm, or weights of W_z without one."""
        return self.out.weight if self.norm is None else self.norm.weight

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *spatial) -> (B, C, *spatial)``."""
        if not self.group_size:
            return x + self._branch(x)
        # (B, C, T, H, W) -> (B * T/s, C, s, H, W) and back.
        b, c, t, *hw = x.shape
        groups = x.unflatten(2, (-1, self.group_size)).transpose(1, 2).flatten(0, 1)
        branch = self._branch(groups)
        return x + branch.unflatten(0, (b, -1)).transpose(1, 2).reshape(b, c, t, *hw)

    def _branch(self, x: Tensor) -> Tensor:
        """``W_z y``."""
        if self.mode in ("gaussian", "embedded_gaussian"):
            return self._project(untokens(self._softmax_sum(x), like=x))
        # These sums grow with the cube of x and have no normaliser: float16 does not hold them.
        y = run_float32(_Bound(self, "_unnormalised_sum"), x.float() if x.dtype.itemsize < 4 else x)
        return run_float32(_Bound(self, "_project"), untokens(y, like=x)).to(x.dtype)

    def _project(self, y: Tensor) -> Tensor:
        out = self.out(y)
        return out if self.norm is None else self.norm(out)

    def _keys_input(self, x: Tensor) -> Tensor:
        return self._pool(x) if self.sub_sample == "before" else x

    def _after(self, x: Tensor) -> Tensor:
        return self._pool(x) if self.sub_sample == "after" else x

    def _pool(self, x: Tensor) -> Tensor:
        """Max-pool by 2 in space; a side of length 1 stays."""
        spatial = x.shape[2:] if self.dimension < 3 else x.shape[3:]
        kernel = [min(2, side) for side in spatial]
        return POOLS[self.dimension](x, [1, *kernel] if self.dimension == 3 else kernel)

    def _queries_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``theta (B, N, d)`` and ``phi (B, M, d)`` as tokens; x itself in Gaussian mode."""
        source = self._keys_input(x)
        if self.mode == "gaussian":
            # x . x reaches 1e6 for ordinary activations: float32 logits.
            return at_least_float32(tokens(x)), at_least_float32(tokens(self._after(source)))
        return tokens(self.theta(x)), tokens(self._after(self.phi(source)))

    def _softmax_sum(self, x: Tensor) -> Tensor:
        if self.mode == "embedded_gaussian" and self.sub_sample != "before":
            theta, phi, values = project_jointly(x, self.theta, self.phi, self.g)
            q, k, g = (tokens(y) for y in (theta, self._after(phi), self._after(values)))
        else:
            q, k = self._queries_keys(x)
            g = tokens(self._after(self.g(self._keys_input(x))))
        return attend(q, k, g.to(q.dtype), self.scale).to(g.dtype)

    def _unnormalised_sum(self, x: Tensor) -> Tensor:
        source = self._keys_input(x)
        g = tokens(self._after(self.g(source)))
        m = g.shape[1]
        if self.mode == "dot_product":
            q, k = self._queries_keys(x)
            # theta (phi^T g / M) instead of (theta phi^T / M) g.
            return q @ ((k / m).transpose(1, 2) @ g)
        a, b = self._concatenation_terms(x, source)
        return relu_affinity(a, b, g / m)

    def _concatenation_terms(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """``a_i = u . theta_i (B, N)`` and ``b_j = v . phi_j (B, M)`` where ``w_f = [u, v]``."""
        u, v = self.w_f.chunk(2)
        if self.sub_sample == "after":
            # Vector first: ONNX Runtime (1.31) multiplies transposed maps by a vector wrongly.
            b = v @ self._pool(self.phi(source)).flatten(2)
        else:
            b = _projected(self.phi, v, source)
        return _projected(self.theta, u, x), b

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """Where given positions look.

        Args:
            x: The block's input ``(B, C, H, W)``.
            queries: ``(Q, 2)`` positions as (row, column).

        Returns:
            Affinity rows ``(B, Q, H', W')`` over the key positions; sum to 1 in the softmax modes.

        Raises:
            YoloAttnError: The block is not two-dimensional.
        """
        if self.dimension != 2:
            raise YoloAttnError(
                f"NonLocal: attention maps need dimension=2, this block has {self.dimension}"
            )
        index = query_index(queries, x.shape[3])
        source = self._keys_input(x)
        shape = self._after(source).shape
        if self.mode == "concatenation":
            a, b = self._concatenation_terms(x, source)
            rows = (a[:, index, None] + b[:, None]).relu() / b.shape[1]
        else:
            q, k = self._queries_keys(x)
            if self.mode == "dot_product":
                rows = q[:, index] @ k.transpose(1, 2) / k.shape[1]
            else:
                rows = attention_rows(q[:, index], k, self.scale)
        return rows.unflatten(2, shape[2:])


class _Bound(nn.Module):
    """A method of a module as a module of its own, so that it can be run with other parameters."""

    def __init__(self, module: nn.Module, method: str):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.module, self.method)(x)


def _projected(conv: _ConvNd, weights: Tensor, x: Tensor) -> Tensor:
    """``weights . conv(x)`` at each position ``(B, N)``, the two linear maps contracted first."""
    w = weights @ conv.weight.flatten(1)
    return (w @ x.flatten(2)) + weights @ bias_of(conv)


def _scale(scale: str | float, width: int, softmax: bool, mode: str) -> float:
    if isinstance(scale, (int, float)) and not isinstance(scale, bool):
        factor = check_number("NonLocal", "scale", scale, -100.0, 100.0)
    else:
        check_choice("NonLocal", "scale", scale, ("none", "sqrt_d"))
        factor = 1.0 if scale == "none" else width**-0.5
    if not softmax and scale != "none":
        raise YoloAttnError(
            f"NonLocal: scale={scale!r} is not accepted with mode={mode!r}, which has no softmax "
            "(accepted: 'none')"
        )
    return factor
