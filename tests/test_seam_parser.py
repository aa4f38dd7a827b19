"""The branch in parse_model: ours build, stock is stock, a strange host is refused."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from ultralytics.nn import tasks

import yolo_attn
from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay import modules
from yolo_attn.seam import parser
from yolo_attn.seam.redirect import original_of

STOCK = original_of("ultralytics.nn.tasks.parse_model")
PLAIN = {
    "nc": 3,
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "Conv", [64, 3, 2]],
    ],
    "head": [[[0, 1, 2], 1, "Detect", ["nc"]]],
}


def model_with(*rows: list, **keys) -> dict:
    d = copy.deepcopy(PLAIN)
    d["backbone"] += copy.deepcopy(list(rows))
    return {**d, **keys}


def test_a_model_without_our_blocks_runs_the_original_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        parser, "_extended_code", lambda *_: pytest.fail("stock model went through our copy")
    )
    model, save = tasks.parse_model(copy.deepcopy(PLAIN), 3, False)
    assert len(model) == 4 and save == [0, 1, 2]


def test_signature_and_source_of_redirected_functions_are_the_originals() -> None:
    from ultralytics.utils import checks, torch_utils

    for module, name in (
        (tasks, "parse_model"),
        (tasks, "yaml_model_load"),
        (tasks, "torch_safe_load"),
        (torch_utils, "get_flops"),
        (checks, "check_file"),
    ):
        function = getattr(module, name)
        assert inspect.getsource(function).startswith(f"def {name}(")
        assert function.__doc__ and "yolo_attn" not in function.__doc__
        assert "yolo_attn.seam.redirect" in function.__code__.co_names


def test_stock_rows_in_a_model_of_ours_are_built_as_stock_builds_them() -> None:
    torch.manual_seed(0)
    stock, _ = STOCK(copy.deepcopy(PLAIN), 3, False)
    torch.manual_seed(0)
    ours, _ = tasks.parse_model(model_with([-1, 1, "SE", []]), 3, False)
    for i in range(3):
        for a, b in zip(stock[i].state_dict().values(), ours[i].state_dict().values()):
            assert torch.equal(a, b)
    assert [layer.type for layer in ours][:3] == [layer.type for layer in stock][:3]
    assert (ours[3].i, ours[3].f, ours[3].type) == (3, -1, "yolo_attn.blocks.squeeze_excitation.SE")
    assert ours[3].np == sum(p.numel() for p in ours[3].parameters())


def test_a_block_that_changes_channels_feeds_the_next_row() -> None:
    @yolo_attn.register(name="TestWiden", width_options=("out_channels",))
    class Widen(nn.Module):
        """Widen."""

        def __init__(self, channels: int, out_channels: int):
            super().__init__()
            self.out_channels = out_channels
            self.conv = nn.Conv2d(channels, out_channels, 1)

        def forward(self, x):
            return self.conv(x)

    d = model_with(
        [-1, 1, "TestWiden", [256]], [-1, 1, "Conv", [8, 1]], scales={"n": [1, 0.5, 100]}
    )
    model, _ = tasks.parse_model({**d, "scale": "n"}, 3, False)
    assert model[3].out_channels == 56  # min(256, 100) * 0.5, to a multiple of 8
    assert model[4].conv.in_channels == 56


def test_a_users_block_with_two_inputs_and_two_outputs() -> None:
    @yolo_attn.register(name="TestPair", inputs=(2, 3))
    class Pair(nn.Module):
        """Pair."""

        def __init__(self, channels: list, flip: bool = False):
            super().__init__()
            self.out_channels = [channels[0], channels[0]]
            self.project = nn.Conv2d(channels[1], channels[0], 1)

        def forward(self, xs):
            up = torch.nn.functional.interpolate(self.project(xs[1]), xs[0].shape[2:])
            return [xs[0] + up, xs[0] - up]

    d = model_with(
        [[1, 2], 1, "TestPair", [{"flip": True}]], [-1, 1, "Index", [32, 1]], [-1, 1, "SE", []]
    )
    model, save = tasks.parse_model(d, 3, False)
    assert model[3].project.in_channels == 64 and model[5].out_channels == 32
    d = model_with([[1, 2], 1, "TestPair", []], [-1, 1, "SE", []])
    with pytest.raises(YoloAttnError, match="row 4: SE reads layer -1, which has several outputs"):
        tasks.parse_model(d, 3, False)
    with pytest.raises(YoloAttnError, match="cannot be repeated"):
        tasks.parse_model(model_with([[1, 2], 2, "TestPair", []]), 3, False)


def test_the_random_state_is_consumed_by_the_real_model_only() -> None:
    torch.manual_seed(0)
    tasks.parse_model(model_with([-1, 1, "SE", []]), 3, False)
    once = torch.rand(1)
    torch.manual_seed(0)
    STOCK(copy.deepcopy(PLAIN), 3, False)  # the same rows before and after ...
    yolo_attn.create("SE", 64)
    model, _ = STOCK(copy.deepcopy(PLAIN), 3, False)
    torch.manual_seed(0)
    tasks.parse_model(model_with([-1, 1, "SE", []]), 3, False)
    assert torch.equal(once, torch.rand(1))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[-1, 1, "NonLocl", []]], "row 3: unknown block 'NonLocl', did you mean 'NonLocal'"),
        ([[9, 1, "SE", []]], r"row 3: SE reads from=9, out of range \(accepted: -3 to 2\)"),
        ([["P5", 1, "SE", []]], "row 3: SE has from='P5'"),
        ([[[0, 1], 1, "SE", []]], "row 3: SE takes 1 input, the row's from=.0, 1. gives 2"),
        ([[-1, 1, "SE", [{"rd": 3}]]], "row 3: SE has no option 'rd'"),
        ([[-1, 1, "SE", [*range(1, 21)]]], "row 3: SE takes at most 9 options"),
        ([[-1, 1, "SE", [0.0]]], "row 3: SE: rd_ratio=0.0 is not accepted"),
        ([[-1, 0, "SE", []]], "row 3: SE has repeats=0"),
        ([[-1, 1, "SE", []], [-1, 1, "Conv", ["x", 3, 2]]], "row 4: Conv could not be built"),
    ],
)
def test_a_fault_in_a_row_is_one_line_with_file_and_row(rows: list, message: str) -> None:
    with pytest.raises(YoloAttnError, match=message) as caught:
        tasks.parse_model(model_with(*rows, yaml_file="my.yaml"), 3, False)
    assert str(caught.value).startswith("my.yaml row ")


def test_a_strange_name_in_a_stock_model_is_left_to_ultralytics() -> None:
    with pytest.raises(KeyError):
        tasks.parse_model(model_with([-1, 1, "Zzyzx", []]), 3, False)


def test_none_of_our_names_means_something_to_ultralytics() -> None:
    taken = [n for n in yolo_attn.registry.known_names() if modules.stock_module(n, vars(tasks))]
    assert not taken


def broken_hosts():
    source = inspect.getsource(STOCK)
    yield "no loop", source.replace("for i, (f, n, m, args) in", "for j, (f, n, m, args) in")
    yield (
        "no lookup",
        source.replace("m = (\n", "mm = (\n").replace("m = (getattr", "mm = (getattr", 1),
    )
    yield (
        "no chain",
        source.replace("if m in base_modules:", "if base_modules(m):").replace(
            "if m in {\n", "if (lambda s: m in s)({\n"
        ),
    )
    yield "no evaluation", source.replace("enumerate(args)", "zip(range(9), args)")


@pytest.mark.parametrize(
    ("what", "source"), list(broken_hosts()), ids=lambda v: v if len(v) < 20 else ""
)
def test_an_unexpected_parse_model_is_refused_in_one_sentence(what: str, source: str) -> None:
    if source == inspect.getsource(STOCK):
        pytest.skip("this version spells it differently")
    try:
        tree = ast.parse(source)
    except SyntaxError:
        pytest.skip("this version spells it differently")
    with pytest.raises(
        YoloAttnError, match="parse_model has not the shape that yolo_attn knows"
    ) as caught:
        parser.extend(tree)
    assert "stock models are not affected" in str(caught.value)


def test_stock_models_still_work_beside_an_unexpected_parse_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parser, "_is_row_loop", lambda loop: False)
    monkeypatch.setattr(parser, "_CODE", {})
    assert tasks.parse_model(copy.deepcopy(PLAIN), 3, False)
    with pytest.raises(YoloAttnError, match="expected one loop"):
        tasks.parse_model(model_with([-1, 1, "SE", []]), 3, False)


def test_a_model_with_our_blocks_copies_pickles_fuses_and_halves() -> None:
    model = tasks.DetectionModel(
        {**model_with([-1, 1, "NonLocal", []], [-1, 1, "SE", []]), "scale": ""}, ch=3, verbose=False
    )
    model.train()
    model(torch.rand(2, 3, 64, 64))  # leaves nothing behind that cannot be copied
    copy.deepcopy(model)
    pickle.loads(pickle.dumps(model))
    model.eval()
    x = torch.rand(1, 3, 64, 64)
    before = model(x)[0]
    torch.testing.assert_close(model.fuse(verbose=False)(x)[0], before, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(model(x)[0]).all()
    assert torch.isfinite(copy.deepcopy(model).half()(x.half())[0].float()).all()
    torch.testing.assert_close(
        model.to(memory_format=torch.channels_last)(x)[0], before, rtol=1e-3, atol=1e-3
    )
