"""Container: its forms against the plain formula, its maps, other map sizes, refused options."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from yolo_attn import create
from yolo_attn.errors import YoloAttnError

C, SIZE = 12, (5, 7)


def build(**options):
    torch.manual_seed(0)
    block = create("Container", C, **options).double().eval()
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    return block


def every_position(x: Tensor) -> Tensor:
    return torch.cartesian_prod(torch.arange(x.shape[2]), torch.arange(x.shape[3]))


def mixed(block, x: Tensor, static: Tensor | None) -> Tensor:
    """``x + W2 concat_m (a A_m + b S_m) v_m`` with N x N matrices, S ``(M, N, N)``."""
    m = block.mixer
    if m.heads:
        q, v = m.query_value(x).flatten(2).chunk(2, 1)
        k = m.key(x).flatten(2)
        q, k = (t.unflatten(1, (m.heads, -1)) for t in (q, k))
        affinity = m.alpha * (q.transpose(2, 3) @ k * (C // m.heads) ** -0.5).softmax(3)
    else:
        v, affinity = m.value(x).flatten(2), 0.0
    if static is not None:
        affinity = affinity + m.beta * static
    v = v.unflatten(1, (affinity.shape[-3], -1))
    y = (v @ affinity.transpose(-1, -2)).reshape(x.shape)
    return x + m.out(y)


def toeplitz(kernel: Tensor, height: int, width: int) -> Tensor:
    """``S_c[i, j] = kernel_c[j - i]`` ``(C, N, N)``, 0 outside the window."""
    r = kernel.shape[-1] // 2
    p = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    offset = p[None] - p[:, None] + r
    inside = ((offset >= 0) & (offset <= 2 * r)).all(2)
    rows, columns = offset.clamp(0, 2 * r).unbind(2)
    return kernel[:, 0][:, rows, columns] * inside


@pytest.mark.parametrize("form", ["general", "transformer", "depthwise", "mlp_mixer"])
@pytest.mark.parametrize("heads", [None, 3])
def test_special_cases_are_the_equation(form: str, heads: int | None) -> None:
    options = {} if form == "depthwise" else {"num_heads": heads}
    if form == "general":
        options |= {"static": "dense"}
    if form in ("general", "mlp_mixer"):
        options |= {"size": list(SIZE)}
    block = build(form=form, **options)
    x = torch.randn(2, C, *SIZE, dtype=torch.float64, requires_grad=True)
    static = None
    if form == "depthwise":
        static = toeplitz(block.mixer.static.weight, *SIZE)
    elif form != "transformer":
        n = SIZE[0] * SIZE[1]
        static = block.mixer.static.weight.view(-1, n, n)
    y, expected = block(x), mixed(block, x, static)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    w = torch.randn_like(y)
    parameters = [x, *block.parameters()]
    for a, b in zip(*(torch.autograd.grad((t * w).sum(), parameters) for t in (y, expected))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [SIZE, (4, 3), (11, 6), (1, 1)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"form": "cblock"},
        {"form": "pam", "size": list(SIZE)},
        {"form": "general", "kernel_size": 3},
        {"form": "transformer"},
        {"form": "mlp_mixer", "size": list(SIZE)},
    ],
    ids=str,
)
def test_maps_give_the_mean_of_the_channels(options: dict, size: tuple[int, int]) -> None:
    """Values that are alike in all channels: the mean of the sums is the sum with the mean row."""
    block = build(**options)
    mixer = block.mixer
    x = torch.randn(2, C, *size, dtype=torch.float64)
    maps = block.attention(x, every_position(x))
    v = torch.randn(2, 1, *size, dtype=torch.float64)
    values = v.expand(-1, C, -1, -1)
    z = block.norm1(x + block.pos_embed(x)) if block.frame == "block" else x
    alpha, beta = mixer._factors()
    total = 0.0
    if mixer.static is not None:
        if getattr(mixer.static, "bias", None) is not None:
            torch.nn.init.zeros_(mixer.static.bias)
        total = mixer.static(values, beta).mean(1)
    if mixer.heads:
        q, k = mixer.query_value(z).chunk(2, 1)[0], mixer.key(z)
        heads = (mixer._per_head(t) for t in (q, k, values))
        y = F.scaled_dot_product_attention(*heads, scale=mixer.scale).mean((1, 3))
        total = total + (1 if alpha is None else alpha) * y.view(2, *size)
    expected = (maps.flatten(2) @ v.flatten(2).transpose(1, 2)).view(2, *size)
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-9)


def test_dense_affinity_of_ones_is_a_sum_on_any_map() -> None:
    """Row sums stay when the affinity is resampled."""
    block = build(form="mlp_mixer", size=[5, 7])
    torch.nn.init.constant_(block.mixer.static.weight, 1 / 35)
    for size in ((5, 7), (3, 4), (20, 11), (1, 1)):
        x = torch.ones(1, C, *size, dtype=torch.float64)
        torch.testing.assert_close(block.mixer.static(x), x)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"form": "mixer"}, "form"),
        ({"num_heads": 5}, "num_heads"),
        ({"kernel_size": 4}, "kernel_size"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"mlp_ratio": 0}, "mlp_ratio"),
        ({"qk_scale": "none"}, "qk_scale"),
        ({"size": 5}, "size"),
        ({"static": "dense"}, "static"),
        ({"qkv_bias": True}, "qkv_bias"),
        ({"form": "pam"}, "size"),
        ({"form": "pam", "size": [5]}, "size"),
        ({"form": "pam", "size": [5, 0]}, "size"),
        ({"form": "pam", "size": 5, "kernel_size": 3}, "kernel_size"),
        ({"form": "pam", "size": 5, "qkv_bias": 1}, "qkv_bias"),
        ({"form": "general", "static": "toeplitz"}, "static"),
        ({"form": "general", "mlp_ratio": 2}, "mlp_ratio"),
        ({"form": "cblock", "num_heads": 4}, "num_heads"),
        ({"form": "cblock", "qk_scale": 1.0}, "qk_scale"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict, named: str) -> None:
    with pytest.raises(YoloAttnError, match=f"Container: {named}="):
        create("Container", 16, **options)
