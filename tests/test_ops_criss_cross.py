"""Criss-cross attention against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yolo_attn.ops.criss_cross import criss_cross, criss_cross_weights

SIZES = ((5, 7), (1, 6), (6, 1), (1, 1))


def inputs(height: int, width: int, channels: int = 4) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(2, c, height, width, dtype=torch.float64, requires_grad=True)
        for c in (3, 3, channels)
    ]


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to all positions, those outside of the cross masked."""
    height, width = q.shape[2:]
    row = torch.arange(height).repeat_interleave(width)
    column = torch.arange(width).repeat(height)
    cross = (row[:, None] == row) | (column[:, None] == column)
    logits = q.flatten(2).transpose(1, 2) @ k.flatten(2)
    weights = logits.masked_fill(~cross, -torch.inf).softmax(2)
    return (v.flatten(2) @ weights.transpose(1, 2)).view_as(v)


@pytest.mark.parametrize("size", SIZES, ids=str)
# The weights are kept beside 14 channels and computed again beside 4.
@pytest.mark.parametrize("channels", [4, 14])
def test_values_and_gradients_are_those_of_the_formula(
    size: tuple[int, int], channels: int
) -> None:
    qkv = inputs(*size, channels)
    ours, plain = criss_cross(*qkv), formula(*qkv)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad(ours, qkv, weight), torch.autograd.grad(plain, qkv, weight)
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_weights_sum_to_one_and_skip_the_own_position_in_the_column(size: tuple[int, int]) -> None:
    q, k, _ = inputs(*size)
    columns, rows = criss_cross_weights(q, k)
    total = columns.sum(3).transpose(1, 2) + rows.sum(3)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert not columns.diagonal(dim1=2, dim2=3).any()


def test_the_traced_form_is_the_same() -> None:
    qkv = [t.detach() for t in inputs(5, 7)]
    traced = torch.jit.trace(criss_cross, tuple(qkv))
    torch.testing.assert_close(traced(*qkv), criss_cross(*qkv), rtol=1e-12, atol=1e-12)


def test_logits_beyond_float16_stay_finite() -> None:
    q, k, v = (t.detach().half() * 300 for t in inputs(5, 7))
    out = criss_cross(q, k, v)
    assert out.dtype == torch.float16
    assert torch.isfinite(out).all()


def test_nothing_of_the_size_of_the_weights_is_kept_for_the_backward_pass() -> None:
    kept = []
    qkv = inputs(24, 24)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        criss_cross(*qkv)
    assert sum(kept) <= 2 * 24 * 24 * (3 + 3 + 4 + 4 + 1)
