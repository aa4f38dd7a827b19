"""The convolution by phases against torch's dilated one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn import create
from yolo_attn.ops import phase_convolution
from yolo_attn.ops.phase_convolution import convolve_by_phases


def depthwise(
    kernel: int = 7, dilation: int = 3, channels: int = 4, bias: bool = True
) -> nn.Conv2d:
    torch.manual_seed(0)
    padding = dilation * (kernel // 2)
    return nn.Conv2d(
        channels, channels, kernel, padding=padding, dilation=dilation, groups=channels, bias=bias
    )


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what was convolved without dilation."""
    seen: list[tuple[int, ...]] = []
    original = F.conv2d

    def conv2d(x: Tensor, *args, **kwargs) -> Tensor:
        seen.append(tuple(x.shape))
        return original(x, *args, **kwargs)

    monkeypatch.setattr(phase_convolution.F, "conv2d", conv2d)
    return seen


@pytest.mark.parametrize("size", [(12, 9), (13, 11), (1, 1), (2, 20), (5, 4)], ids=str)
@pytest.mark.parametrize(("kernel", "dilation"), [(7, 3), (5, 2), (5, 4)])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_values_and_gradients_are_those_of_the_dilated_convolution(
    size: tuple[int, int], kernel: int, dilation: int, bias: bool
) -> None:
    conv = depthwise(kernel, dilation, bias=bias).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    ours, plain = convolve_by_phases(conv, x), conv(x)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-13)
    assert ours.is_contiguous()
    inputs = [x, *conv.parameters()]
    g = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, inputs, g) for y in (ours, plain))):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_the_map_is_sorted_into_phases_only_where_that_is_faster(phases: list) -> None:
    x = torch.randn(1, 4, 8, 9)
    convolve_by_phases(depthwise(3, 2), x)
    convolve_by_phases(depthwise(7, 1), x)
    with torch.device("meta"):
        assert convolve_by_phases(depthwise(), torch.empty(1, 4, 8, 9)).shape == x.shape
    assert not any(shape[0] > 1 for shape in phases)
    convolve_by_phases(depthwise(), x)
    assert phases[-1] == (9, 4, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_channels_last(dtype: torch.dtype) -> None:
    conv = depthwise().to(dtype)
    x = torch.randn(2, 4, 10, 8).to(dtype)
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for layout in (torch.contiguous_format, torch.channels_last):
        y = convolve_by_phases(conv, x.contiguous(memory_format=layout))
        assert y.dtype == dtype and y.is_contiguous(memory_format=layout)
        torch.testing.assert_close(y, conv(x), rtol=tolerance, atol=tolerance)


def test_autocast_gives_what_it_gives_the_plain_convolution() -> None:
    conv, x = depthwise(), torch.randn(1, 4, 7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = convolve_by_phases(conv, x), conv(x)
    assert ours.dtype == plain.dtype
    torch.testing.assert_close(ours, plain, rtol=2e-2, atol=2e-2)


def test_traces_keep_the_plain_convolution() -> None:
    block = create("LSK", 8).eval()
    x = torch.randn(1, 8, 9, 9)
    with torch.no_grad():
        traced = torch.jit.trace(block, x)
    text = str(traced.inlined_graph)
    assert "aten::permute" not in text and "aten::constant_pad_nd" not in text
    torch.testing.assert_close(traced(x), block(x))


def test_lsk_goes_this_way(phases: list) -> None:
    create("LSK", 8)(torch.randn(1, 8, 10, 10))
    assert (9, 8, 4, 4) in phases
