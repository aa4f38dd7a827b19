"""SimAM.

Lingxiao Yang, Ru-Yuan Zhang, Lida Li, Xiaohua Xie.
SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks. ICML 2021.
https://proceedings.mlr.press/v139/yang21o.html
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from yolo_attn.blocks._common import check_channels, check_choice, check_number
from yolo_attn.registry import register


@register(
    paper="Yang, Zhang, Li, Xie: SimAM: A Simple, Parameter-Free Attention Module for "
    "Convolutional Neural Networks, ICML 2021, PMLR 139",
    cost="time O(N C), memory O(N C), no parameters",
    placement="behind the second convolution of every residual block; here after a stage",
)
class SimAM(nn.Module):
    """Gate each value by how far it stands out of its channel: ``z = x * sigma(e)``.

    ``e = (x - mu)^2 / (4 (v + lambda)) + 1/2`` with the mean mu and the variance v of the channel
    over the positions; e is the inverse of the paper's minimal energy. Not the identity at the
    start: the gate is never below ``sigma(1/2) = 0.62``.

    The paper's closed form divides the variance by N, its listing by N - 1 (``correction: 1``).

    Args:
        channels: C of the input ``(B, C, H, W)``.
        e_lambda: lambda, above 0.
        correction: 0 or 1: v is a sum over N positions divided by ``N - correction``.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(self, channels: int, e_lambda: float = 1e-4, correction: int = 0):
        super().__init__()
        check_channels("SimAM", channels)
        # A constant channel divides by lambda alone.
        self.e_lambda = check_number("SimAM", "e_lambda", e_lambda, 1e-12, 1.0)
        self.correction = check_choice("SimAM", "correction", correction, (0, 1))
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return x * self.gate_map(x).to(x.dtype)
        return _Gated.apply(x, self.e_lambda, self.correction)

    def gate_map(self, x: Tensor) -> Tensor:
        """The gates ``(B, C, H, W)`` for the input `x`, in float32 (float64 for float64)."""
        return _gate(x, self.e_lambda, self.correction)


def _gate(x: Tensor, e_lambda: float, correction: int) -> Tensor:
    """``sigma(e)`` in float32 (float64), one map for all steps."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    e = (x - x.mean((2, 3), keepdim=True)).square_()
    n = max(x.shape[2] * x.shape[3] - correction, 1)
    v = e.sum((2, 3), keepdim=True) / n
    return e.mul_(0.25 / (v + e_lambda)).add_(0.5).sigmoid_()


def _standardised(x: Tensor, e_lambda: float, correction: int) -> tuple[Tensor, Tensor, int]:
    """``u = r (x - mu)``, ``r = 1 / (2 sqrt(v + lambda))`` and the divisor of v; ``e = u^2 + 1/2``.

    In float32 (float64): squares of ordinary activations pass the limit of float16.
    """
    d = x.to(torch.promote_types(x.dtype, torch.float32))
    d = d - d.mean((2, 3), keepdim=True)
    # One position has variance 0, not 0/0.
    n = max(x.shape[2] * x.shape[3] - correction, 1)
    v = d.square().sum((2, 3), keepdim=True) / n
    r = 0.5 * (v + e_lambda).rsqrt()
    return d * r, r, n


class _Gated(torch.autograd.Function):
    """``x * sigma(u^2 + 1/2)``; keeps x alone and computes u again in the backward pass.

    Autograd on the formula keeps three maps of the size of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, e_lambda: float, correction: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.options = e_lambda, correction
        return _gate(x, e_lambda, correction).mul_(x).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        u, r, n = _standardised(x, *ctx.options)
        dy = grad.to(u.dtype)
        gate = u.square().add_(0.5).sigmoid_()
        # t = dL/du; then through mu and v, as in the backward pass of an instance norm.
        t = (dy * x).mul_(gate).mul_(1 - gate).mul_(u).mul_(2)
        along = (t * u).sum((2, 3), keepdim=True) * (4 / n)
        t.sub_(t.mean((2, 3), keepdim=True)).addcmul_(along, u, value=-1).mul_(r)
        return t.addcmul_(dy, gate).to(x.dtype), None, None
