"""Maxima of a pyramid's bins against torch's adaptive max pooling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from yolo_attn.ops.adaptive_max import maxima_of_bins, pyramid_max

SIZES = (1, 3, 6, 8)
SHAPES = [(24, 24), (13, 17), (5, 9), (80, 7), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_maxima_are_those_of_adaptive_max_pooling_to_every_size(shape: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *shape, requires_grad=True)
    expected = torch.cat([F.adaptive_max_pool2d(x, s).flatten(2) for s in SIZES], dim=2)
    found = pyramid_max(x, SIZES)
    assert torch.equal(found, expected)
    weights = torch.randn_like(expected)
    mine, theirs = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("bins", [1, 2, 7, 12])
def test_one_axis_of_any_length(bins: int) -> None:
    for length in range(1, 30):
        x = torch.randn(2, length, 3)
        expected = F.adaptive_max_pool1d(x.transpose(1, 2), bins).transpose(1, 2)
        assert torch.equal(maxima_of_bins(x, bins, -2), expected)


def test_a_traced_graph_holds_for_other_sizes() -> None:
    traced = torch.jit.trace(lambda x: pyramid_max(x, SIZES), torch.randn(1, 2, 20, 20))
    x = torch.randn(2, 2, 13, 31)
    assert torch.equal(traced(x), pyramid_max(x, SIZES))
