"""Mixture of softmaxes against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yolo_attn.ops import mixture_attention as ops
from yolo_attn.ops.mixture_attention import mixture_attention, mixture_rows, squared_distance

SCALE = 0.4


def inputs(mixed: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((2, mixed, 70, 4), (2, mixed, 50, 4), (2, 50, 9))
    qkv = [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]
    return [*qkv, torch.rand(2, mixed, dtype=dtype).softmax(1).requires_grad_()]


def formula(q: Tensor, k: Tensor, v: Tensor, p: Tensor) -> Tensor:
    weights = (SCALE * q @ k.transpose(2, 3)).softmax(3)
    return (weights * p[..., None, None]).sum(1) @ v


@pytest.mark.parametrize("fused_width", [0, 128], ids=["chunks", "fused"])
@pytest.mark.parametrize("chunk", [1 << 20, 1], ids=["one chunk", "three chunks"])
@pytest.mark.parametrize("mixed", [2, 3])
def test_values_and_gradients_are_those_of_the_formula(
    fused_width: int, chunk: int, mixed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "FUSED_WIDTH_CPU", fused_width)
    monkeypatch.setattr(ops, "CHUNK", chunk)
    tensors = inputs(mixed)
    ours, plain = mixture_attention(*tensors, SCALE), formula(*tensors)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad(ours, tensors, weight), torch.autograd.grad(plain, tensors, weight)
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_rows_give_the_output() -> None:
    q, k, v, p = inputs()
    rows = mixture_rows(q, k, p, SCALE)
    torch.testing.assert_close(rows @ v, formula(q, k, v, p), rtol=1e-12, atol=1e-12)


def test_no_matrix_of_all_pairs_is_kept_for_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops, "FUSED_WIDTH_CPU", 0)
    kept, tensors = [], inputs()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        mixture_attention(*tensors, SCALE)
    assert sum(kept) == sum(t.numel() for t in tensors)


def test_distances_are_those_of_the_formula_but_for_a_constant_a_query() -> None:
    q, k = (t.detach() + 5 for t in inputs()[:2])
    distance = -((q[:, :, :, None] - k[:, :, None]) ** 2).sum(4)
    ours_q, ours_k = squared_distance(q, k)
    assert ours_q.shape[3] == ours_k.shape[3] == 8
    ours = ours_q @ ours_k.transpose(2, 3)
    torch.testing.assert_close(ours.softmax(3), distance.softmax(3), rtol=1e-10, atol=1e-12)
