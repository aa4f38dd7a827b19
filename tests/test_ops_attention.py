"""Attention against its formula, whichever way it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yolo_attn.ops import attention
from yolo_attn.ops.attention import attend

# (N, M, d, e), how a CPU computes it where 400 weights are many, and whether it keeps them.
CASES = {
    ("_fused", False): [(30, 35, 9, 9), (9, 300, 60, 60)],
    ("attend_chunked", True): [(9, 16, 8, 8), (40, 9, 3, 9), (9, 40, 4, 8), (90, 20, 10, 10)],
    ("attend_chunked", False): [(30, 35, 8, 8), (9, 200, 8, 160), (9, 200, 160, 8)],
}


def formula(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return (scale * q @ k.transpose(-1, -2)).softmax(-1) @ v


@pytest.mark.parametrize("heads", [(), (3,)], ids=["one head", "heads"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize(("way", "sizes"), [(w, s) for w, many in CASES.items() for s in many])
def test_values_and_gradients_of_the_formula(
    way: tuple[str, bool], sizes: tuple[int, ...], scale: float, heads: tuple[int, ...], monkeypatch
) -> None:
    used = []
    for name in ("_fused", "attend_chunked"):
        original = getattr(attention, name)
        monkeypatch.setattr(
            attention,
            name,
            lambda *a, name=name, f=original: used.append((name, a[-1] is True)) or f(*a),
        )
    monkeypatch.setattr(attention, "KEPT_CPU", 400)
    torch.manual_seed(0)
    n, m, d, e = sizes
    shapes = ((2, *heads, n, d), (2, *heads, m, d), (2, *heads, m, e))
    qkv = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    ours, plain = attend(*qkv, scale), formula(*qkv, scale)
    assert used == [way]
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-11)
    g = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, qkv, g) for y in (ours, plain))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    q, k, v = (t.detach() for t in qkv)
    traced = torch.jit.trace(lambda q, k, v: attend(q, k, v, scale), (q, k, v))
    torch.testing.assert_close(traced(q, k, v), plain.detach(), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kept", [0, 1 << 18], ids=["weights computed again", "kept"])
@pytest.mark.parametrize("widths", [(12, 12), (4, 6)], ids=str)
def test_the_result_lies_in_memory_as_the_values_do(widths, kept: int, monkeypatch) -> None:
    monkeypatch.setattr(attention, "KEPT_CPU", kept)
    d, e = widths
    maps = [torch.randn(2, c, 90) for c in (d, d, e)]
    y = attend(*(t.transpose(1, 2) for t in maps))
    torch.testing.assert_close(y, formula(*(t.transpose(1, 2) for t in maps), 1.0))
    assert y.transpose(1, 2).is_contiguous()
    y = attend(*(t.transpose(1, 2).contiguous() for t in maps))
    assert y.is_contiguous()


def test_weights_are_kept_only_while_all_of_them_are_few(monkeypatch) -> None:
    def kept(batch: int) -> int:
        q, k, v = (torch.randn(batch, 40, 12, requires_grad=True) for _ in range(3))
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            attend(q, k, v)
        return max(sizes)

    monkeypatch.setattr(attention, "ALL_KEPT_CPU", 2 * 40 * 40)
    assert kept(2) == 2 * 40 * 40
    assert kept(3) <= 3 * 40 * 12


@pytest.mark.parametrize("sizes", [(9, 40, 8, 8), (900, 800, 16, 16), (9, 200, 8, 160)])
def test_logits_beyond_float16_stay_finite(sizes: tuple[int, ...]) -> None:
    n, m, d, e = sizes
    q, k, v = (torch.full((1, *s), 200.0).half() for s in ((n, d), (m, d), (m, e)))
    y = attend(q, k, v)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y, torch.full_like(y, 200.0))
