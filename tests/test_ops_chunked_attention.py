"""Chunked attention against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yolo_attn.ops import chunked_attention
from yolo_attn.ops.chunked_attention import attend_chunked


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((2, 3, 70), (2, 3, 50), (2, 160, 50))
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return v @ (q.transpose(1, 2) @ k).softmax(2).transpose(1, 2)


@pytest.mark.parametrize("chunk", [1 << 20, 3500, 1], ids=["one chunk", "two chunks", "smallest"])
def test_values_and_gradients_are_those_of_the_formula(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_attention, "CHUNK_CPU", chunk)
    qkv = inputs()
    ours, plain = attend_chunked(*qkv), formula(*qkv)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad(ours, qkv, weight), torch.autograd.grad(plain, qkv, weight)
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_logits_beyond_float16_stay_finite() -> None:
    q, k, v = (t.detach().half() * 300 for t in inputs(torch.float32))
    out = attend_chunked(q, k, v)
    assert out.dtype == torch.float16
    assert torch.isfinite(out).all()


def test_no_matrix_of_all_pairs_is_kept_for_the_backward_pass() -> None:
    kept = []
    qkv = inputs()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        out = attend_chunked(*qkv)
    assert sum(kept) == sum(t.numel() for t in (*qkv, out))
