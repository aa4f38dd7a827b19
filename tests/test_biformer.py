"""Bi-level routing attention against a plain transcription of its steps, with every option."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_attn import create
from yolo_attn.errors import YoloAttnError

POOLS = {
    "identity": lambda x: x,
    "ada_avgpool": lambda x: F.adaptive_avg_pool2d(x, 2),
    "ada_maxpool": lambda x: F.adaptive_max_pool2d(x, 2),
    "avgpool": lambda x: F.avg_pool2d(x, 2),
    "maxpool": lambda x: F.max_pool2d(x, 2),
}
OPTIONS = {"num_heads": 2, "n_win": 3, "topk": 2, "side_dwconv": 3, "attention_only": True}


def build(channels: int = 8, **options):
    torch.manual_seed(0)
    block = create("BiFormer", channels, **{**OPTIONS, **options}).double()
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
    return block


def plain(block, x: Tensor, pool: str = "identity") -> Tensor:
    """Window by window; slices end at the map, so that they hold what lies on it."""
    attn = block.attn
    b, _, height, width = x.shape
    s = attn.n_win
    if attn.border == "bias":
        x = F.pad(x, (0, -width % s, 0, -height % s))
    sides = [n // min(s, n) if attn.border == "zero" else -(-n // s) for n in x.shape[2:]]
    (h, w), counts = sides, [-(-n // side) for n, side in zip(x.shape[2:], sides)]
    d = attn.qk_dim
    qkv = attn.qkv(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    q, k, v = qkv.split([d, d, x.shape[1]], dim=1)
    boxes = [
        (slice(i * h, i * h + h), slice(j * w, j * w + w))
        for i, j in itertools.product(*(range(n) for n in counts))
    ]
    true_q, true_k, true_v = q, k, v
    if attn.border == "zero":
        extra = (0, counts[1] * w - width, 0, counts[0] * h - height)
        q, k, v = (F.pad(t, extra) for t in (q, k, v))
    out = torch.zeros_like(v)
    for n in range(b):
        means = [
            torch.stack([t[n][:, r, c].mean((1, 2)) for r, c in boxes]) for t in (true_q, true_k)
        ]
        if attn.routing != "differentiable":
            means = [m.detach() for m in means]
        if attn.emb is not None:
            means = [attn.emb(m) for m in means]
        best, index = (attn.scale * means[0] @ means[1].T).topk(min(attn.topk, len(boxes)), dim=1)
        share = best.softmax(1)
        for i, (r, c) in enumerate(boxes):
            keys, values = [], []
            for t in range(index.shape[1]):
                box = boxes[index[i, t]]
                factor = 1.0 if attn.routing == "hard" else share[i, t]
                keys.append(factor * POOLS[pool](k[n : n + 1, :, box[0], box[1]])[0].flatten(1))
                values.append(factor * POOLS[pool](v[n : n + 1, :, box[0], box[1]])[0].flatten(1))
            query = q[n][:, r, c].flatten(1)
            heads = zip(
                *(t.chunk(attn.heads) for t in (query, torch.cat(keys, 1), torch.cat(values, 1)))
            )
            parts = [vs @ (attn.scale * qs.T @ ks).softmax(1).T for qs, ks, vs in heads]
            out[n, :, r, c] = torch.cat(parts).view(-1, *q[n][:, r, c].shape[1:])
    out = out[:, :, : x.shape[2], : x.shape[3]] + attn.lepe(true_v)
    return attn.wo(out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)[:, :, :height, :width]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"routing": "soft"},
        {"routing": "differentiable", "param_routing": True},
        {"routing": "soft", "topk": 9},
        {"topk": 9},
        {"qk_dim": 4, "border": "bias"},
        {"qk_dim": 16, "border": "zero", "qk_scale": 0.7},
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_the_steps(options: dict, pool: str) -> None:
    block = build(kv_downsample_mode=pool, kv_per_win=2, kv_downsample_ratio=2, **options)
    x = torch.randn(2, 8, 12, 15, dtype=torch.float64, requires_grad=True)
    ours, expected = block(x), plain(block, x, pool)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(expected)
    wanted = [x, *block.parameters()]
    for a, b in zip(
        torch.autograd.grad(ours, wanted, weight, allow_unused=True),
        torch.autograd.grad(expected, wanted, weight, allow_unused=True),
    ):
        if a is None or b is None:
            assert a is b
        else:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"routing": "differentiable"}, {"topk": 1}], ids=str)
@pytest.mark.parametrize("size", [(13, 17), (7, 11), (5, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("border", ["mask", "bias", "zero"])
def test_maps_that_the_regions_do_not_fill(
    border: str, size: tuple[int, int], options: dict
) -> None:
    block = build(border=border, **options)
    x = torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True)
    ours, expected = block(x), plain(block, x)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(expected)
    (a,), (b,) = (torch.autograd.grad(y, x, weight) for y in (ours, expected))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pool", POOLS)
def test_positions_outside_of_the_map_are_never_seen(pool: str) -> None:
    """One region that the map does not fill equals the same region cut to the map."""
    options = {"n_win": 2, "topk": 1, "side_dwconv": 0, "param_attention": "qkv"}
    block = build(kv_downsample_mode=pool, kv_per_win=1, kv_downsample_ratio=3, **options)
    torch.nn.init.constant_(block.attn.qkv.bias, 3.0)
    x = torch.randn(1, 8, 5, 5, dtype=torch.float64)
    v = block.attn.qkv(x.permute(0, 2, 3, 1))[0, ..., 16:]
    seen = {
        "ada_avgpool": torch.Tensor.mean,
        "avgpool": torch.Tensor.mean,
        "ada_maxpool": torch.Tensor.amax,
        "maxpool": torch.Tensor.amax,
    }
    y = block(x)[0].permute(1, 2, 0)
    boxes = [(slice(a, a + 3), slice(b, b + 3)) for a, b in itertools.product((0, 3), repeat=2)]
    for box in boxes:
        if pool == "identity":
            # A convex combination of true values, so within their range.
            lowest = torch.stack([v[r].flatten(0, 1).amin(0) for r in boxes]).amin(0)
            highest = torch.stack([v[r].flatten(0, 1).amax(0) for r in boxes]).amax(0)
            assert ((y[box] >= lowest - 1e-9) & (y[box] <= highest + 1e-9)).all()
        else:
            # One key a region: the answer is the pooled value of one region.
            answers = torch.stack([seen[pool](v[r].flatten(0, 1), 0) for r in boxes])
            distance = (y[box].flatten(0, 1)[:, None] - answers).abs().amax(2).amin(1)
            assert distance.max() < 1e-9


@pytest.mark.parametrize("border", ["mask", "bias", "zero"])
@pytest.mark.parametrize("size", [(12, 15), (13, 17), (2, 5), (1, 1), (7, 3)], ids=str)
def test_attention_maps_give_the_output(border: str, size: tuple[int, int]) -> None:
    block = build(border=border, side_dwconv=0, param_attention="qkv", num_heads=1)
    if border != "mask":
        # Positions outside of the map have the biases as values: none of these is shown in a map.
        torch.nn.init.zeros_(block.attn.qkv.bias)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    queries = torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1]))
    maps = block.attention(x, queries)
    assert maps.shape == (2, len(queries), *size)
    v = block.attn.qkv(x.permute(0, 2, 3, 1))[..., 16:].flatten(1, 2)
    torch.testing.assert_close(maps.flatten(2) @ v, block(x).flatten(2).transpose(1, 2))
    total = maps.sum((2, 3))
    if border == "mask":
        torch.testing.assert_close(total, torch.ones_like(total))
    assert (total <= 1 + 1e-9).all()


def test_as_many_regions_as_the_map_needs() -> None:
    grid = build(n_win=7).attn._grid
    assert [grid(n) for n in (1, 5, 7, 8, 13, 20, 21)] == [
        (1, 1),
        (5, 1),
        (7, 1),
        (4, 2),
        (7, 2),
        (7, 3),
        (7, 3),
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"num_heads": 3},
        {"topk": 0},
        {"n_win": 0},
        {"border": "pad"},
        {"routing": "medium"},
        {"side_dwconv": 4},
        {"before_attn_dwconv": 2},
        {"mlp_ratio": 0},
        {"qk_dim": 5, "num_heads": 2},
        {"kv_downsample_mode": "mean"},
        {"layer_scale": -1.0},
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(
        YoloAttnError,
        match=f"BiFormer: {next(iter(options)) if 'qk_dim' not in options else 'num_heads'}",
    ):
        create("BiFormer", 8, **options)
