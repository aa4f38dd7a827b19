"""Resampling by matrices against torch's interpolation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from yolo_attn.ops.linear_resample import linear_matrix, resample

SIZES = ((7, 9), (20, 12), (3, 30), (1, 1), (13, 4))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_and_gradients_are_those_of_antialiased_bilinear_interpolation(size) -> None:
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    y = resample(x, *size)
    expected = F.interpolate(x, size=size, mode="bilinear", antialias=True)
    w = torch.randn_like(y)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad((t * w).sum(), x)[0] for t in (y, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_same_size_is_left_alone() -> None:
    x = torch.randn(1, 2, 5, 6)
    assert resample(x, 5, 6) is x
    assert torch.equal(linear_matrix(6, 6, x), torch.eye(6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_the_matrix_sum_to_one(dtype: torch.dtype) -> None:
    matrix = linear_matrix(13, 5, torch.empty(0, dtype=dtype))
    assert matrix.dtype == dtype
    torch.testing.assert_close(
        matrix.double().sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-2
    )
