"""Elementwise operations that are fused where that is possible."""

from __future__ import annotations

import torch
from torch import Tensor


def add_product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``x + a b`` without a tensor for the product."""
    # pnnx, the converter to NCNN, knows the two operations only.
    return x + a * b if torch.jit.is_tracing() else torch.addcmul(x, a, b)
