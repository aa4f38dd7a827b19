"""Exported files take other image sizes and batches than the traced one, or stop; all options.

An exporter takes some sizes for constants. A wrong one of them need not stop the file: it may give
the numbers of another image.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from yolo_attn import block_info, create

from .test_blocks import channels_of, each_case, inputs_of

# Sides that the levels divide: of the traced map, then of others.
TRACED, OTHERS = (16, 16), ((16, 16), (12, 24), (28, 20))
# Pooled regions have a kernel of their size, which is a constant.
STOPS = [("BiFormer", "kv_downsample_mode")]


class OfTensors(nn.Module):
    """A block whose inputs come one by one."""

    def __init__(self, block: nn.Module, takes_list: bool):
        super().__init__()
        self.block, self.takes_list = block, takes_list

    def forward(self, *xs: Tensor) -> Any:
        return self.block(list(xs) if self.takes_list else xs[0])


def block_of(name: str, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    block = create(name, channels_of(name, 16), **options)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return OfTensors(block, block_info(name).takes_list).eval()


def maps(name: str, size: tuple[int, int], batch: int) -> list[Tensor]:
    torch.manual_seed(size[0] + batch)
    xs = inputs_of(name, channels_of(name, 16), size, batch)
    return xs if isinstance(xs, list) else [xs]


def assert_equal(got: Any, want: Any) -> None:
    want = want if isinstance(want, (list, tuple)) else [want]
    got = got if isinstance(got, (list, tuple)) else [got]
    assert len(got) == len(want)
    for g, w in zip(got, want):
        np.testing.assert_allclose(np.asarray(g), w.numpy(), rtol=1e-4, atol=1e-4)


@each_case
@torch.no_grad()
def test_onnx_with_dynamic_axes(name: str, options: dict[str, Any]) -> None:
    model, xs = block_of(name, options), maps(name, TRACED, 1)
    names = [f"x{i}" for i in range(len(xs))]
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(xs),
            file,
            dynamo=False,
            opset_version=20,
            input_names=names,
            dynamic_axes={n: {0: "batch", 2: f"height{n}", 3: f"width{n}"} for n in names},
        )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for size in OTHERS:
        xs = maps(name, size, 2)
        feed = {n: x.numpy() for n, x in zip(names, xs)}
        if size != TRACED and any(name == n and o in options for n, o in STOPS):
            with pytest.raises(Exception, match="reshape"):
                session.run(None, feed)
        else:
            assert_equal(session.run(None, feed), model(*xs))


@each_case
@torch.no_grad()
def test_torchscript_of_another_size_is_right_or_stops(name: str, options: dict[str, Any]) -> None:
    model = block_of(name, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, tuple(maps(name, TRACED, 1)), check_trace=False)
    for size in OTHERS:
        xs = maps(name, size, 2)
        try:
            got = traced(*xs)
        except RuntimeError:
            assert size != TRACED, "another batch alone must work"
            continue
        assert_equal(got, model(*xs))


@torch.no_grad()
def test_a_biformer_that_chose_all_regions_of_the_traced_map_stops_at_larger_ones() -> None:
    block = block_of("BiFormer", {"n_win": 7, "topk": 4})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(block, torch.rand(1, 16, 2, 2), check_trace=False)
    small, large = torch.rand(2, 16, 2, 2), torch.rand(1, 16, 16, 16)
    assert_equal(traced(small), block(small))
    with pytest.raises(RuntimeError):
        traced(large)
