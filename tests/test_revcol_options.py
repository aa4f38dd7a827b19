"""RevCol without layer scale, and with the rest of odd maps dropped, against plain formulations."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.test_revcol import assert_same, gradients, network
from yolo_attn import create
from yolo_attn.blocks._revcol_parts import Column, ConvNeXtBlock
from yolo_attn.errors import YoloAttnError
from yolo_attn.ops.reversible import step

OPTIONS = [{"layer_scale_init": 0}, {"border": "drop"}, {"layer_scale_init": 0, "border": "drop"}]
each_option = pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items())
)


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Over the channels of each position, written out."""
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def plain_block(block: ConvNeXtBlock, x: Tensor) -> Tensor:
    """``x + W2 gelu(W1 LN(dw x))``, times gamma where there is one."""
    u = F.conv2d(x, block.dwconv.weight, block.dwconv.bias, padding=1, groups=x.shape[1])
    u = layer_norm(u, block.norm)
    for linear, activation in ((block.pwconv1, F.gelu), (block.pwconv2, nn.Identity())):
        u = activation(F.conv2d(u, linear.weight[..., None, None], linear.bias))
    gamma = dict(block.named_parameters()).get("gamma", torch.ones(x.shape[1], dtype=x.dtype))
    return x + gamma[:, None, None] * u


def plain_column(column: Column, x: Tensor, before: list[Tensor]) -> list[Tensor]:
    """One column, level by level; a strided convolution drops what it cannot fill."""
    maps: list[Tensor] = []
    for i, level in enumerate(column.levels):
        y = x
        if i:
            conv, norm = level.fusion.down
            y = layer_norm(F.conv2d(maps[-1], conv.weight, conv.bias, stride=2), norm)
        if before and i < 3:
            linear, norm = level.fusion.up.channel_reschedule
            up = F.conv2d(before[i + 1], linear.weight[..., None, None], linear.bias)
            up = layer_norm(up, norm)
            # Row r of the finer map reads row r // 2; the last of an odd one the last there is.
            rows, columns = (
                (torch.arange(side) // 2).clamp(max=short - 1)
                for side, short in zip(y.shape[2:], up.shape[2:])
            )
            y = y + up[:, :, rows][:, :, :, columns]
        for block in level.blocks:
            y = plain_block(block, y)
        if before:
            y = y + column.alphas[i][:, None, None] * before[i]
        maps.append(y)
    return maps


def lively(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return module.double()


@pytest.mark.parametrize("scale", [0, 1e-6])
def test_a_block_without_layer_scale_has_no_gamma(scale: float) -> None:
    torch.manual_seed(0)
    block = lively(ConvNeXtBlock(8, 32, layer_scale=scale))
    assert ("gamma" in block.state_dict()) == bool(scale)
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64, requires_grad=True)
    factor = torch.tensor([0.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(block(x), plain_block(block, x), rtol=1e-12, atol=1e-12)
    skipped = x + factor[:, None, None, None] * (plain_block(block, x) - x)
    torch.testing.assert_close(block(x, factor), skipped, rtol=1e-12, atol=1e-12)


@each_option
@pytest.mark.parametrize("first", [True, False])
def test_a_column_is_the_plain_one_on_odd_maps(options: dict, first: bool) -> None:
    torch.manual_seed(1)
    named = {"layer_scale": options.get("layer_scale_init", 1e-6), "border": "drop"}
    column = lively(Column([4, 6, 8, 10], [1, 2, 1, 1], first_column=first, **named))
    x = torch.randn(2, 4, 27, 13, dtype=torch.float64)
    sides = [(27, 13), (13, 6), (6, 3), (3, 1)]
    before = [torch.randn(2, c, *s, dtype=torch.float64) for c, s in zip((4, 6, 8, 10), sides)]
    before = [] if first else before
    ours, plain = step(column, x, before, 1e-9, None), plain_column(column, x, before)
    assert [tuple(y.shape[2:]) for y in ours] == sides
    for a, b in zip(ours, plain):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    loss = [sum((y * y).sum() for y in ys) for ys in (ours, plain)]
    parameters = [p for p in column.parameters() if p.shape]
    for a, b in zip(*(torch.autograd.grad(value, parameters) for value in loss)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@each_option
@pytest.mark.parametrize("columns", [1, 4])
def test_rebuilt_columns_give_the_gradients_of_autograd(options: dict, columns: int) -> None:
    net = network(columns, drop_path=0.5, **options).train()
    x = torch.randn(2, 3, 70, 90, dtype=torch.float64)
    assert_same(gradients(net, False, x), gradients(net, True, x), 1e-9)


@each_option
def test_state_and_copies(options: dict) -> None:
    net = network(2, **options)
    keys = [key for key in net.state_dict() if key.endswith("gamma")]
    assert bool(keys) == (options.get("layer_scale_init") != 0)
    x = torch.randn(1, 3, 50, 45, dtype=torch.float64)
    other = network(2, **options)
    other.load_state_dict(net.state_dict(), strict=True)
    for twin in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(torch.equal(a, b) for a, b in zip(twin(x), net(x)))
    dropped = options.get("border") == "drop"
    assert [tuple(y.shape[2:]) for y in net(x)][-1] == ((1, 1) if dropped else (2, 2))


def test_maps_without_a_rest_are_the_same_under_both_borders() -> None:
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    pad, drop = network(3), network(3, border="drop")
    assert all(torch.equal(a, b) for a, b in zip(pad(x), drop(x)))


def test_a_network_pickled_before_the_options_existed_still_pads() -> None:
    net = network(2)
    x = torch.randn(1, 3, 50, 45, dtype=torch.float64)
    expected = net(x)
    for module in net.modules():
        module.__dict__.pop("border", None)
    assert all(torch.equal(a, b) for a, b in zip(pickle.loads(pickle.dumps(net))(x), expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"border": "crop"}, "border='crop'"),
        ({"layer_scale_init": -1}, "layer_scale_init=-1"),
        ({"border": "drop", "supervision": "objectness"}, "accepted: 'pad'"),
    ],
)
def test_values_that_are_refused(options: dict, message: str) -> None:
    with pytest.raises(YoloAttnError, match=message):
        create("RevColumns", 3, **options)
