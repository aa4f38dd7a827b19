"""Grounding and rendering transformer: their formulas, their maps, and refused options."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_attn import create
from yolo_attn.errors import YoloAttnError

# Sizes of the refined map and the other one: a level apart, odd, two levels, one size, swapped.
SIZES = [((6, 8), (3, 4)), ((7, 9), (4, 5)), ((8, 8), (2, 2)), ((5, 5), (5, 5)), ((3, 4), (7, 8))]
GROUND = [
    {},
    {"n_mix": 1, "norm": "none"},
    {"n_mix": 3, "prior": "query", "rd_ratio": 1.5, "residual": False},
    {"mode": "embedded"},
    {"mode": "embedded", "rd_channels": 16, "norm": "none"},
    {"mode": "gaussian"},
    {"mode": "dot"},
    {"mode": "dot", "norm": "none"},
    {"mode": "concatenate"},
    {"mode": "concatenate", "norm": "none", "residual": False},
]
each_size = pytest.mark.parametrize("sizes", SIZES, ids=str)


def build(name: str, channels: list[int], **options):
    torch.manual_seed(0)
    block = create(name, channels, **options).double().eval()
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
        for key, b in block.named_buffers():
            if key.endswith("running_mean"):
                b.normal_()
    return block


def maps(channels: list[int], sizes) -> list[Tensor]:
    return [
        torch.randn(2, c, *s, dtype=torch.float64, requires_grad=True)
        for c, s in zip(channels, sizes)
    ]


def every_position(x: Tensor) -> Tensor:
    return torch.cartesian_prod(torch.arange(x.shape[2]), torch.arange(x.shape[3]))


def affinity(block, low: Tensor, high: Tensor) -> Tensor:
    """``(B, N, M)`` straight from the formula."""
    if block.mode == "gaussian":
        return torch.einsum("bcn,bcm->bnm", low.flatten(2), high.flatten(2)).softmax(2)
    q = block.theta(low).flatten(2).transpose(1, 2)[:, :, None]
    k = block.phi(high).flatten(2).transpose(1, 2)[:, None]
    d, m = q.shape[3], k.shape[2]
    if block.mode == "embedded":
        return (q * k).sum(3).softmax(2)
    if block.mode == "dot":
        return (q * k).sum(3) / m
    if block.mode == "concatenate":
        u, v = block.w_f.split(d)
        return ((q @ u) + (k @ v) + block.b_f).relu() / m
    n = block.mixture.n_mix
    logits = -((q - k) ** 2).unflatten(3, (n, -1)).sum(4) / d**0.5
    if n == 1:
        return logits[..., 0].softmax(2)
    mean = k.mean((1, 2)) if block.mixture.prior == "key" else q.mean((1, 2))
    shares = (mean @ block.mixture.weight.t()).softmax(1)
    return (logits.softmax(2) * shares[:, None, None]).sum(3)


def ground(block, low: Tensor, high: Tensor) -> Tensor:
    y = affinity(block, low, high) @ block.g(high).flatten(2).transpose(1, 2)
    y = block.out(y.transpose(1, 2).unflatten(2, low.shape[2:]))
    y = y if block.norm is None else block.norm(y)
    return low + y if block.residual else y


def assert_equal_with_gradients(ours: Tensor, plain: Tensor, wanted: list[Tensor]) -> None:
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad(ours, wanted, weight), torch.autograd.grad(plain, wanted, weight)
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", GROUND, ids=str)
@each_size
def test_grounding_is_its_formula(sizes, options: dict, train: bool) -> None:
    channels = [12, 12] if options.get("mode") == "gaussian" else [12, 10]
    block, (low, high) = build("FPTGround", channels, **options).train(train), maps(channels, sizes)
    assert_equal_with_gradients(
        block([low, high]), ground(block, low, high), [low, high, *block.parameters()]
    )


@pytest.mark.parametrize("options", GROUND, ids=str)
@each_size
def test_grounding_maps_are_the_affinities(sizes, options: dict) -> None:
    channels = [12, 12] if options.get("mode") == "gaussian" else [12, 10]
    block, (low, high) = build("FPTGround", channels, **options), maps(channels, sizes)
    rows = block.attention([low, high], every_position(low))
    assert rows.shape == (2, low.shape[2] * low.shape[3], *high.shape[2:])
    torch.testing.assert_close(rows.flatten(2), affinity(block, low, high), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("value_mix", [0, 2])
def test_local_grounding_is_its_formula(value_mix: int) -> None:
    low, high = maps([6, 5], [(6, 8), (3, 4)])
    block = build("FPTGround", [6, 5], mode="local", value_mix=value_mix)
    local = block.local
    y = torch.zeros_like(low)
    for row in range(6):
        for column in range(8):
            logits, values = [], []
            for u in range(3):
                for v in range(3):
                    i, j = row // 2 + u - 1, column // 2 + v - 1
                    inside = 0 <= i < 3 and 0 <= j < 4
                    pixel = high[:, :, i, j] if inside else torch.zeros_like(high[:, :, 0, 0])
                    key = pixel @ local.key.weight.flatten(1).t()
                    value = pixel @ local.value.weight.flatten(1).t()
                    if value_mix:
                        place = local.emb_a[:, u] + local.emb_b[:, v]
                        share = (local.emb_mix @ place).softmax(0)
                        value = (value.unflatten(1, (value_mix, -1)) * share[:, None]).sum(1)
                    else:
                        key = key + torch.cat([local.rel_h[:, u], local.rel_w[:, v]])
                    logits.append(local.query(low)[:, :, row, column] * key)
                    values.append(value)
            weights = torch.stack(logits).softmax(0)
            y[:, :, row, column] = (weights * torch.stack(values)).sum(0)
    assert_equal_with_gradients(
        block([low, high]), low + block.norm(y), [low, high, *block.parameters()]
    )


@each_size
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_local_maps_lie_in_the_window_of_the_query(sizes, kernel_size: int) -> None:
    low, high = maps([6, 5], sizes)
    block = build("FPTGround", [6, 5], mode="local", kernel_size=kernel_size)
    queries = every_position(low)
    rows = block.attention([low, high], queries)
    steps = [max(round(f / c), 1) for f, c in zip(low.shape[2:], high.shape[2:])]
    grid = [-(-f // s) for f, s in zip(low.shape[2:], steps)]
    assert list(rows.shape[2:]) == grid
    border = kernel_size // 2
    for number, (row, column) in enumerate(queries.tolist()):
        i, j = row // steps[0], column // steps[1]
        window = torch.zeros(*grid, dtype=torch.bool)
        window[max(i - border, 0) : i + border + 1, max(j - border, 0) : j + border + 1] = True
        assert (rows[:, number][:, window] > 0).all()
        assert (rows[:, number][:, ~window] == 0).all()
        whole = border <= i < grid[0] - border and border <= j < grid[1] - border
        total = rows[:, number].sum((1, 2))
        assert torch.allclose(total, torch.ones_like(total)) if whole else (total <= 1 + 1e-9).all()


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("order", ["gate_first", "conv_first"])
@pytest.mark.parametrize("sizes", SIZES[:4], ids=str)
def test_rendering_is_its_formula(sizes, order: str, train: bool) -> None:
    small, large = sorted(sizes)
    block = build("FPTRender", [6, 5], order=order).train(train)
    high, low = maps([6, 5], (small, large))
    pooled = low.mean((2, 3), keepdim=True)
    g = block.gate_norm(block.gate(pooled)).relu()
    torch.testing.assert_close(block.channel_weights([high, low]), g[:, :, 0, 0])
    if order == "gate_first":
        a = block.refine_norm(block.refine(g * high))
    else:
        a = g * block.refine_norm(block.refine(high))
    stride = [round(f / c) for f, c in zip(large, small)]
    details = F.conv2d(low, block.render.weight, stride=stride, padding=1)
    plain = (block.render_norm(details) + a).relu()
    assert plain.shape == high.shape
    assert_equal_with_gradients(block([high, low]), plain, [high, low, *block.parameters()])


@pytest.mark.parametrize("sizes", [*SIZES, ((4, 4), (6, 6)), ((5, 3), (23, 1))], ids=str)
def test_rendering_takes_maps_of_any_two_sizes(sizes) -> None:
    high, low = maps([6, 5], sizes)
    y = build("FPTRender", [6, 5])([high, low])
    assert y.shape == high.shape
    y.sum().backward()
    assert high.grad.abs().sum() > 0 and low.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FPTGround", {"mode": "euclid"}),
        ("FPTGround", {"rd_ratio": 0}),
        ("FPTGround", {"rd_channels": 7, "n_mix": 2}),
        ("FPTGround", {"n_mix": 0}),
        ("FPTGround", {"prior": "value"}),
        ("FPTGround", {"kernel_size": 4, "mode": "local"}),
        ("FPTGround", {"value_mix": -1, "mode": "local"}),
        ("FPTGround", {"norm": "ln"}),
        ("FPTGround", {"residual": 1}),
        ("FPTRender", {"order": "paper"}),
        ("FPTSelf", {"prior": "value"}),
        ("FPTSelf", {"rd_channels": 7}),
        ("FPTSelf", {"kq_transform": "mlp"}),
        ("FPTSelf", {"pooling": 2}),
    ],
    ids=str,
)
def test_wrong_options_are_refused(name: str, options: dict) -> None:
    with pytest.raises(YoloAttnError, match=f"{name}: {next(iter(options))}="):
        create(name, 16 if name == "FPTSelf" else [16, 12], **options)


def test_gaussian_grounding_wants_equal_widths() -> None:
    with pytest.raises(YoloAttnError, match=r"FPTGround: channels=\[16, 12\] .*two equal widths"):
        create("FPTGround", [16, 12], mode="gaussian")
