"""Pyramid pooling against torch's adaptive average pooling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from yolo_attn.ops.adaptive_mean import averaging_matrix, pyramid_pool, pyramid_spread

SIZES = (1, 3, 6, 8)


@pytest.mark.parametrize("shape", [(24, 24), (13, 17), (5, 9), (1, 1)], ids=str)
def test_pool_is_adaptive_average_pooling_to_every_size(shape: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    expected = torch.cat([F.adaptive_avg_pool2d(x, s).flatten(2) for s in SIZES], dim=2)
    torch.testing.assert_close(pyramid_pool(x, SIZES), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(13, 17), (5, 9)], ids=str)
def test_spread_is_the_transpose_of_the_pool(shape: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    weights = torch.rand(2, 4, sum(s * s for s in SIZES), dtype=torch.float64)
    by_bins = pyramid_pool(x, SIZES) @ weights.transpose(1, 2)
    by_positions = x.flatten(2) @ pyramid_spread(weights, x, SIZES).flatten(2).transpose(1, 2)
    torch.testing.assert_close(by_bins, by_positions, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_the_matrix_sum_to_one(dtype: torch.dtype) -> None:
    matrix = averaging_matrix(13, 5, torch.empty(0, dtype=dtype))
    assert matrix.dtype == dtype
    torch.testing.assert_close(
        matrix.double().sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-2
    )
