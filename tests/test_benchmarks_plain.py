"""The benchmark compares like with like, and its meter counts what it says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import blocks
from memory_meter import peak_bytes
from plain import PLAIN, VARIANTS
from plain.pair import Pair, disagreement, input_shapes, make_pair

from yolo_attn import list_blocks
from yolo_attn.registry import list_layers

CASES = [(name, options) for name in PLAIN for options in ({}, *VARIANTS.get(name, ()))]
MIB = 1 << 20


def test_every_block_has_a_plain_counterpart() -> None:
    assert set(list_blocks()) - set(PLAIN) == set(), "blocks without a file in benchmarks/plain"
    assert set(VARIANTS) <= set(PLAIN)


@pytest.mark.parametrize(
    ("name", "options"),
    CASES,
    ids=[f"{n}:{','.join(f'{k}={v}' for k, v in o.items())}" if o else n for n, o in CASES],
)
# 14 x 14 is cut into BiFormer's regions without a rest, 12 x 12 is not.
@pytest.mark.parametrize(("side", "batch"), [(12, 2), (14, 1)], ids=lambda v: str(v))
def test_plain_and_ours_are_the_same_function(
    name: str, options: dict, side: int, batch: int
) -> None:
    if name not in {*list_blocks(), *list_layers()}:
        pytest.skip(f"{name} is not registered")
    shapes = input_shapes(name, 0, lambda k: int(64 * 2.0**k), lambda k: int(side * 2.0**-k))
    pair = make_pair(name, PLAIN[name], shapes, options, batch).to(torch.float64)
    assert disagreement(pair) < 1e-9


def test_the_meter_counts_a_temporary() -> None:
    x = torch.randn(1024, 1024)
    # The product (4 MiB) and its row sums; the product is gone at the end.
    peak = peak_bytes(lambda: (x @ x.t()).sum(1))
    assert 4 * MIB <= peak < 4.1 * MIB


def test_the_meter_counts_what_lives_at_the_same_time() -> None:
    def one_after_the_other() -> None:
        for _ in range(3):
            torch.empty(MIB)

    def together() -> None:
        [torch.empty(MIB) for _ in range(3)]

    assert peak_bytes(one_after_the_other) == 4 * MIB
    assert peak_bytes(together) == 12 * MIB


def test_the_meter_counts_what_autograd_keeps() -> None:
    x = torch.randn(512, 512, requires_grad=True)

    def step() -> None:
        torch.softmax(torch.softmax(x, 1), 1).sum().backward()

    with torch.no_grad():
        without = peak_bytes(lambda: torch.softmax(torch.softmax(x, 1), 1))
    # Both results are kept; on the way back, two gradients beside them.
    assert 2 * MIB <= without < 2.1 * MIB
    x.grad = None
    assert 3.5 * MIB <= peak_bytes(step) < 5.1 * MIB


def test_the_meter_counts_temporaries_inside_a_kernel() -> None:
    q = torch.randn(1, 1, 2048, 64)
    fused = peak_bytes(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    matrix = peak_bytes(lambda: (q @ q.transpose(2, 3)).softmax(3) @ q)
    assert 0.5 * MIB < fused < 4 * MIB
    assert 32 * MIB <= matrix < 34 * MIB


def test_the_meter_does_not_count_what_was_there_before() -> None:
    held = [torch.empty(MIB)]

    def release() -> None:
        held.clear()
        torch.empty(MIB // 2)

    assert peak_bytes(release) == 2 * MIB


def small_pair() -> Pair:
    shapes = input_shapes("NonLocal", 0, lambda k: 16, lambda k: 8)
    return make_pair("NonLocal", PLAIN["NonLocal"], shapes, {}, 1)


def test_a_pair_that_differs_is_noticed() -> None:
    pair = small_pair()
    assert disagreement(pair) < blocks.TOLERANCE
    with torch.no_grad():
        pair.plain.W[0].weight[0].mul_(1.1)
    assert disagreement(pair) > blocks.TOLERANCE
    with torch.no_grad():
        pair.plain.W[0].weight.fill_(float("nan"))
    assert not disagreement(pair) < blocks.TOLERANCE


def test_a_pair_that_differs_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    args = SimpleNamespace(
        batch=1, device="cpu", dtype="float32", threads=1, repeats=1, seconds=0.0, blocks="ECA",
        levels=[5], defaults_only=True,
    )  # fmt: skip
    lines: list[str] = []
    assert blocks.table(args, lines.append)
    assert any(line.startswith("| ECA | P5 |") for line in lines)
    monkeypatch.setitem(PLAIN, "ECA", PLAIN["SE"])
    monkeypatch.setattr(PLAIN["SE"], "pairs", lambda self, ours: [])
    lines.clear()
    assert not blocks.table(args, lines.append)
    assert not any(line.startswith("| ECA") for line in lines)
    assert "ECA P5 differs from its plain counterpart" in lines[-1]


def test_training_leaves_no_gradients_behind() -> None:
    pair = small_pair()
    args = SimpleNamespace(device="cpu", dtype="bfloat16")
    blocks.runner(pair.ours.train(), pair, True, args)()
    assert all(p.grad is None for p in pair.ours.parameters())


def test_widths_and_sides_are_those_of_yolov8s_at_640() -> None:
    assert [(blocks.width(k), blocks.side(k)) for k in (2, 3, 4, 5)] == [
        (64, 160), (128, 80), (256, 40), (512, 20)
    ]  # fmt: skip
    shapes = input_shapes("AFNB", 5, blocks.width, blocks.side)
    assert shapes == [(512, 20, 20), (256, 40, 40)]
