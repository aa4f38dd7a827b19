"""Attention to a small window against its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_attn.ops.local_attention import local_attention, local_rows

# Queries' map, keys' map without border: one grid, blocks of 2 x 3, blocks over the border.
SIZES = [((5, 6), (5, 6)), ((6, 9), (3, 3)), ((5, 7), (3, 4)), ((1, 1), (1, 1))]


def inputs(fine: tuple[int, int], coarse: tuple[int, int], size: int, maps: int) -> list[Tensor]:
    torch.manual_seed(0)
    h, w = (side + size - 1 for side in coarse)
    shapes = ((2, 4, *fine), (2, 4, h, w), (2, maps, 4, h, w), (4, size**2), (maps, size**2))
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def formula(q: Tensor, k: Tensor, v: Tensor, rel: Tensor, mix: Tensor, size: int) -> Tensor:
    height, width = q.shape[2:]
    coarse = k.shape[2] - size + 1, k.shape[3] - size + 1
    s, t = -(-height // coarse[0]), -(-width // coarse[1])

    def unfold(x: Tensor) -> Tensor:
        windows = F.unfold(x, size).view(len(x), x.shape[1], size**2, *coarse)
        fine = windows.repeat_interleave(s, 3).repeat_interleave(t, 4)
        return fine[..., :height, :width]

    keys = unfold(k) + rel[:, :, None, None]
    values = unfold(v.flatten(1, 2)).unflatten(1, v.shape[1:3])
    values = (values * mix[:, None, :, None, None]).sum(1)
    return ((q[:, :, None] * keys).softmax(2) * values).sum(2)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("maps", [1, 3])
@pytest.mark.parametrize(("fine", "coarse"), SIZES, ids=str)
def test_values_and_gradients_are_those_of_the_formula(fine, coarse, size: int, maps: int) -> None:
    tensors = inputs(fine, coarse, size, maps)
    if maps == 1:
        tensors[4] = torch.ones_like(tensors[4])
    plain = formula(*tensors, size)
    q, k, v, rel, mix = tensors
    ours = local_attention(q, k, v, size, rel, mix if maps > 1 else None)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(plain)
    wanted = tensors if maps > 1 else tensors[:4]
    for a, b in zip(
        torch.autograd.grad(ours, wanted, weight), torch.autograd.grad(plain, wanted, weight)
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_the_traced_form_is_the_same() -> None:
    q, k, v, rel, mix = (t.detach() for t in inputs((5, 7), (3, 4), 3, 2))

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return local_attention(q, k, v, 3, rel, mix)

    traced = torch.jit.trace(run, (q, k, v))
    torch.testing.assert_close(traced(q, k, v), run(q, k, v), rtol=1e-12, atol=1e-12)


def test_rows_give_the_mean_output_of_equal_values() -> None:
    q, k, v, rel, _ = (t.detach() for t in inputs((5, 6), (5, 6), 3, 1))
    v = v[:, :, :1].expand_as(v)
    grid = torch.cartesian_prod(torch.arange(5), torch.arange(6))
    rows = local_rows(q.flatten(2), k, 3, (grid[:, 0], grid[:, 1]), rel)
    torch.testing.assert_close(rows.sum((2, 3)), torch.ones_like(rows[:, :, 0, 0]))
    mean = (rows * v[:, 0, :1]).sum((2, 3))
    expected = local_attention(q, k, v, 3, rel).mean(1).flatten(1)
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)


def test_no_copy_an_offset_is_kept_for_the_backward_pass() -> None:
    kept = []
    q, k, v, rel, mix = inputs((6, 9), (3, 3), 3, 2)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        local_attention(q, k, v, 3, rel, mix)
    assert sum(kept) == sum(t.numel() for t in (q, q, q, k, v, rel, mix))
