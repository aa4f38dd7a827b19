"""Effective receptive fields: known stacks, blocks that start as the identity, open ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.explain_model import looking_model
from yolo_attn.explain import claim
from yolo_attn.explain.receptive_field import (
    block_fields,
    centre_gradient,
    centre_pixel,
    level_fields,
    radii,
    square_inputs,
)


@pytest.fixture(scope="module")
def model():
    return looking_model()


def conv_stack(depth, kernel=3, stride=1, dilation=1):
    layers = []
    for _ in range(depth):
        conv = nn.Conv2d(1, 1, kernel, stride, dilation * (kernel // 2), dilation, bias=False)
        nn.init.ones_(conv.weight)
        layers.append(conv)
    return nn.Sequential(*layers)


def field_of(stack, side):
    x = torch.ones(1, 1, side, side, requires_grad=True)
    return centre_gradient(stack(x), x)


def radii_of(gradient, grid, shares=(0.5, 0.9, 0.99)):
    return radii(gradient, centre_pixel(gradient.shape, grid), shares)


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_field_of_a_stack_of_box_filters_is_their_convolution(depth):
    gradient, grid = field_of(conv_stack(depth), 31)
    line = np.array([1.0])
    for _ in range(depth):
        line = np.convolve(line, np.ones(3))
    expected = np.zeros((31, 31))
    low, high = 15 - depth, 15 + depth + 1
    expected[low:high, low:high] = np.outer(line, line)
    assert np.allclose(gradient, expected)
    # The theoretical field is (2 depth + 1)^2; its corner is the farthest pixel.
    assert (gradient > 0).sum() == (2 * depth + 1) ** 2
    assert radii_of(gradient, grid, [1.0])[1.0] == pytest.approx(depth * 2**0.5)


def test_radii_of_one_box_filter_are_its_rings():
    # 1 pixel at distance 0, 4 at 1, 4 at sqrt(2).
    shares = radii_of(*field_of(conv_stack(1), 9), [1 / 9, 0.5, 5 / 9, 0.9])
    assert [round(r, 3) for r in shares.values()] == [0, 1, 1, 1.414]


@pytest.mark.parametrize("depth,side", [(1, 33), (3, 65)])
def test_strides_do_not_move_the_middle(depth, side):
    # A stride-2 stack's central unit sees (2^(d+1) - 1) pixels around pixel 2^d * (h // 2).
    gradient, grid = field_of(conv_stack(depth, stride=2), side)
    seen = np.nonzero(gradient.sum(0))[0]
    assert len(seen) == 2 ** (depth + 1) - 1
    assert radii_of(gradient, grid, [1.0])[1.0] == pytest.approx((2**depth - 1) * 2**0.5)


def test_dilation_reaches_further():
    near, far = (radii_of(*field_of(conv_stack(2, dilation=d), 41)) for d in (1, 4))
    assert far[0.99] == pytest.approx(4 * near[0.99])


def test_levels_and_blocks_of_a_model(model):
    inputs = square_inputs([], 64, noise=2)
    levels = level_fields(model, inputs)
    assert [f.name for f in levels] == ["stride 4", "stride 8"]
    assert all(f.gradient.sum() == pytest.approx(1) for f in levels)
    fields = {name: (before, after) for name, before, after in block_fields(model, inputs)}
    assert list(fields) == [layer.name for layer in model.layers]
    before, after = fields["2 NonLocal"]
    # It starts as the identity: the same field, of the 7 x 7 pixels of two 3 x 3 convolutions.
    assert np.allclose(before.gradient, after.gradient)
    assert (before.gradient > 0).sum() == 49
    before, after = fields["5 SE"]
    assert after.reached == 1 > before.reached or before.reached == 1


def test_an_open_non_local_block_reaches_the_whole_image(model):
    inputs = square_inputs([], 64, noise=2)
    claim._open_branches(model.model)
    try:
        before, after = block_fields(model, inputs)[0][1:]
    finally:
        nn.init.zeros_(model.model.model[2].norm.weight)
    assert before.reached < 0.02 and after.reached == 1


def test_noise_images_are_the_same_each_time():
    assert torch.equal(square_inputs([], 32)[3], square_inputs([], 32)[3])
