"""Several 1 x 1 convolutions as one: the same maps and gradients, and nothing skipped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from yolo_attn.ops.joint_projection import project_jointly

KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def convs(kind: type, biases: tuple[bool, ...]) -> list[nn.Module]:
    torch.manual_seed(0)
    return [kind(6, 3 + i, 1, bias=bias).double() for i, bias in enumerate(biases)]


@pytest.mark.parametrize("dimension", [1, 2, 3])
@pytest.mark.parametrize(
    "biases", [(True, False, True), (False, False), (True,)], ids=["some", "none", "one"]
)
def test_maps_and_gradients_are_those_of_each_convolution(
    dimension: int, biases: tuple[bool, ...]
) -> None:
    layers = convs(KINDS[dimension], biases)
    x = torch.randn(2, 6, *[5, 4, 3][:dimension], dtype=torch.float64, requires_grad=True)
    parameters = [x, *(p for layer in layers for p in layer.parameters())]
    joint, single = project_jointly(x, *layers), [layer(x) for layer in layers]
    weights = [torch.randn_like(y) for y in single]
    for a, b in zip(joint, single):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(joint, parameters, weights),
        torch.autograd.grad(single, parameters, weights),
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_a_hook_and_a_subclass_are_called() -> None:
    class Twice(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    hooked, other = convs(nn.Conv2d, (True, True))
    x = torch.randn(1, 6, 3, 3, dtype=torch.float64)
    seen = []
    hooked.register_forward_hook(lambda *args: seen.append(1))
    project_jointly(x, hooked, other)
    assert seen == [1]
    double = Twice(6, 2, 1).double()
    _, y = project_jointly(x, other, double)
    torch.testing.assert_close(y, double(x), rtol=1e-12, atol=1e-12)
    assert y.abs().sum() > 0


def test_a_trace_calls_the_convolutions() -> None:
    class Joint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = convs(nn.Conv2d, (True, False))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat(project_jointly(x, self.a, self.b), dim=1)

    module = Joint()
    x = torch.randn(1, 6, 3, 3, dtype=torch.float64)
    traced = torch.jit.trace(module, x)
    assert str(traced.graph).count("CallMethod") == 2
    torch.testing.assert_close(traced(x), module(x), rtol=1e-12, atol=1e-12)
