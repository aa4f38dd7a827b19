"""Attention against its formula, whichever way it is computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yolo_attn.ops import attention
from yolo_attn.ops.attention import attend

# (N, M, d, e) and how a CPU computes it.
CASES = {
    "_fused": [(9, 17, 8, 8), (9, 40, 4, 8), (9, 40, 8, 4), (9, 300, 60, 100)],
    "_dense": [(9, 16, 8, 8), (40, 9, 3, 9)],
    "attend_chunked": [(9, 200, 8, 160), (9, 200, 160, 8)],
}


def formula(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return (scale * q @ k.transpose(-1, -2)).softmax(-1) @ v


@pytest.mark.parametrize("heads", [(), (3,)], ids=["one head", "heads"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize(("way", "sizes"), [(w, s) for w, many in CASES.items() for s in many])
def test_values_and_gradients_of_the_formula(
    way: str, sizes: tuple[int, ...], scale: float, heads: tuple[int, ...], monkeypatch
) -> None:
    used = []
    for name in CASES:
        original = getattr(attention, name)
        monkeypatch.setattr(
            attention, name, lambda *a, name=name, f=original: used.append(name) or f(*a)
        )
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


def test_channel_first_maps_stay_channel_first() -> None:
    q, k, v = (torch.randn(1, c, 9) for c in (4, 4, 6))
    y = attend(*(t.transpose(1, 2) for t in (q, k, v)))
    torch.testing.assert_close(y, formula(*(t.transpose(1, 2) for t in (q, k, v)), 1.0))
    assert y.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("sizes", [(9, 40, 8, 8), (9, 8, 8, 8), (9, 200, 8, 160)])
def test_logits_beyond_float16_stay_finite(sizes: tuple[int, ...]) -> None:
    n, m, d, e = sizes
    q, k, v = (torch.full((1, *s), 200.0).half() for s in ((n, d), (m, d), (m, e)))
    y = attend(q, k, v)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y, torch.full_like(y, 200.0))
