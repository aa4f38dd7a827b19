"""Channel attention through the Gram matrix against its formula."""

from __future__ import annotations

import pytest
import torch

from yolo_attn.ops.gram_attention import add_gram_attention


@pytest.mark.parametrize("minus", [False, True])
@pytest.mark.parametrize(("channels", "positions"), [(6, 9), (1, 4), (5, 1)])
def test_values_and_gradients_of_the_formula(minus: bool, channels: int, positions: int) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, channels, positions, dtype=torch.float64) * 0.5).requires_grad_()
    gamma = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    energy = x @ x.transpose(1, 2)
    plain = x + gamma * ((-energy if minus else energy).softmax(2) @ x)
    ours = add_gram_attention(x, gamma, minus)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, (x, gamma), g) for y in (ours, plain))):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_float16_sums_in_float32() -> None:
    x = torch.full((1, 2, 6400), 4.0, dtype=torch.float16)
    y = add_gram_attention(x, torch.ones(1, dtype=torch.float16))
    assert y.dtype == torch.float16
    torch.testing.assert_close(y, 2 * x)
