"""``levels:`` gives the rows of the models that their authors wrote, and keeps the weights."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml, run

from .surgery_bases import COUNTS, COUNTS_P6, FAST, levels_of


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def put(text: str, name: str = "yolov8-test.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return put


def parameters(d: dict[str, Any]) -> int:
    from ultralytics.nn import tasks
    from ultralytics.nn.modules.head import Detect

    if not hasattr(Detect, "legacy"):
        pytest.skip("this Ultralytics gives every family the newer class branch")
    with torch.device("meta"):
        layers, _ = tasks.parse_model(deepcopy(d), 3, False)
    return sum(p.numel() for p in layers.parameters())


def need(base: str) -> None:
    """Skip where this Ultralytics lacks a family."""
    try:
        load_model_yaml(base)
    except YoloAttnError:
        pytest.skip(f"this Ultralytics has no {base}")


def graph(d: dict[str, Any]) -> list[Any]:
    """Rows with absolute sources."""
    return [
        [[s if s >= 0 else i + s for s in (f if isinstance(f, list) else [f])], *rest]
        for i, (f, *rest) in enumerate([*d["backbone"], *d["head"]])
    ]


def scale_free(name: str) -> str:
    """A file name at whose end no scale letter is lost: overlays have that of their base."""
    return f"{name}-levels.yaml"


CASES = [
    pytest.param(name, column, marks=() if name in FAST else pytest.mark.slow)
    for name in {**COUNTS, **COUNTS_P6}
    for column in range(4)
]


@pytest.mark.parametrize(("name", "column"), CASES)
def test_parameters_are_those_of_the_rule(write, name: str, column: int) -> None:
    need(f"{name}.yaml")
    levels = levels_of(name)[column]
    d = load_model_yaml(write(f"base: {name}.yaml\nlevels: [{', '.join(levels)}]\n", "own.yaml"))
    assert parameters(d) == {**COUNTS, **COUNTS_P6}[name][column]
    assert len(graph(d)[-1][0]) == len(levels)


@pytest.mark.parametrize(
    ("base", "stock"),
    [
        ("yolov8n.yaml", "yolov8n-p2.yaml"),
        ("yolov8n-ghost.yaml", "yolov8n-ghost-p2.yaml"),
        ("yolo26n.yaml", "yolo26n-p2.yaml"),
    ],
)
def test_rows_are_those_of_the_authors_own_p2_model(write, base: str, stock: str) -> None:
    need(stock)
    theirs = load_model_yaml(stock)
    d = load_model_yaml(write(f"base: {base}\nlevels: [P2, P3, P4, P5]\n"))
    assert graph(d) == graph(theirs)


def test_published_models_are_stated_by_levels_and_replace(write) -> None:
    narrow = (
        "base: yolov8n.yaml\nnc: 10\nlevels: [P2, P3, P4]\nreplace:\n"
        "  - [7, 1, Conv, [512, 3, 2]]\n  - [8, 3, C2f, [512, True]]\n  - [9, 1, SPPF, [512, 5]]\n"
    )
    assert parameters(load_model_yaml(write(narrow))) == 1_382_782
    wide = (
        "base: yolo11n.yaml\nnc: 10\nlevels: [P2, P3, P4, P5]\nreplace:\n"
        "  - [N4.down, 1, Conv, [512, 3, 2]]\n  - [N5.down, 1, Conv, [1024, 3, 2]]\n"
    )
    assert parameters(load_model_yaml(write(wide))) == 2_893_672


def test_a_published_p2_model_with_space_to_depth(write) -> None:
    text = """base: yolov8n.yaml
nc: 10
levels: [P2, P3, P4, P5]
replace:
  - [{each: [1, 3, 5, 7]}, same, SPDConv, same]
  - [{each: down}, same, SPDConv, same]
"""
    # Without the two weights of each of its six fusions.
    assert parameters(load_model_yaml(write(text))) == 4_683_540 - 12


def test_a_published_neck_is_stated_by_named_rows(write) -> None:
    text = """base: yolov8s.yaml
nc: 10
neck:
  - [P5, 1, Conv, [512, 1, 1], {name: top}]
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, P4], 1, Concat, [1]]
  - [-1, 1, Conv, [512, 1, 1]]
  - [-1, 1, Conv, [512, 3, 1], {name: mid}]
  - [-1, 1, Conv, [256, 1, 1]]
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, P3], 1, Concat, [1]]
  - [-1, 1, Conv, [256, 1, 1]]
  - [-1, 1, Conv, [256, 3, 1], {name: out3}]
  - [-1, 1, Conv, [256, 3, 2]]
  - [[-1, mid, P4], 1, Concat, [1]]
  - [-1, 1, Conv, [512, 1, 1]]
  - [-1, 1, Conv, [512, 3, 1], {name: out4}]
  - [-1, 1, Conv, [512, 3, 2]]
  - [[-1, top, P5], 1, Concat, [1]]
  - [-1, 1, Conv, [1024, 1, 1]]
  - [-1, 1, Conv, [1024, 3, 1], {name: out5}]
  - [out3, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, P2], 1, Concat, [1]]
  - [-1, 1, Conv, [128, 1, 1]]
  - [-1, 1, Conv, [128, 3, 1], {name: out2}]
  - [out2, out3, out4, out5]
"""
    from ultralytics.nn import tasks

    d = load_model_yaml(write(text))
    with torch.device("meta"):
        layers, _ = tasks.parse_model(deepcopy(d), 3, False)
    counts = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    assert [n for n in counts[10:] if n] == [
        131584, 131584, 590336, 33024, 33024, 147712, 147712, 164352, 590336, 590336,
        525312, 2360320, 12416, 36992, *counts[-1:],
    ]  # fmt: skip
    assert parameters(d) == sum(counts) and counts[-1] == 1_422_136


def trained(name: str) -> nn.Module:
    """A model whose norms have seen something."""
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    model = DetectionModel(name, verbose=False).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def maps(model: nn.Module) -> dict[int, torch.Tensor]:
    """What the head reads, by the side of the map."""
    seen: list[list[torch.Tensor]] = []
    head: Any = model.model[-1]  # type: ignore[index]
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(list(inputs[0])))
    torch.manual_seed(1)
    with torch.no_grad():
        model.eval()(torch.rand(1, 3, 64, 64))
    hook.remove()
    return {y.shape[-1]: y for y in seen[0]}


def model_of(d: dict[str, Any]) -> nn.Module:
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(d, verbose=False)


def test_with_the_gate_the_old_levels_get_what_they_got(write) -> None:
    from ultralytics.nn.tasks import DetectionModel

    base = trained("yolov8n.yaml")
    name = write("base: yolov8.yaml\nlevels: [P2, P3, P4, P5, {identity_start: true}]\n")
    model = DetectionModel(name.replace("v8", "v8n"), verbose=False)
    model.load(deepcopy(base), verbose=False)
    before, after = maps(base), maps(model)
    assert set(after) - set(before) == {16}
    assert all(torch.equal(after[side], before[side]) for side in before)


def test_without_a_coarse_level_the_others_get_what_they_got(write) -> None:
    from ultralytics.nn.tasks import DetectionModel

    base = trained("yolo11n.yaml")
    write("base: yolo11.yaml\nlevels: [P3, P4]\n", "yolo11-test.yaml")
    model = DetectionModel("yolo11n-test.yaml", verbose=False)
    model.load(deepcopy(base), verbose=False)
    before, after = maps(base), maps(model)
    assert set(before) - set(after) == {2}
    assert all(torch.equal(after[side], before[side]) for side in after)


def test_new_stages_and_branches_start_from_trained_ones(write, caplog) -> None:
    from ultralytics.nn.tasks import DetectionModel

    base = trained("yolov8n.yaml")
    write("base: yolov8.yaml\nlevels: [P2, P3, P4, P5]\n")
    model = DetectionModel("yolov8n-test.yaml", verbose=False)
    with torch.no_grad():
        base.model[-1].cv3[0][-1].bias.fill_(-5.0)
    model.load(deepcopy(base), verbose=False)
    old, new = base.model[15].state_dict(), model.model[21].state_dict()
    equal = [name for name in old if old[name].shape == new[name].shape]
    assert len(equal) == 23 and all(torch.equal(old[n], new[n]) for n in equal)
    head = model.model[-1]
    assert torch.equal(head.cv3[1][-1].bias, base.model[-1].cv3[0][-1].bias)
    # Four times as many cells for as many objects.
    expected = torch.full_like(head.cv3[0][-1].bias, -5.0 - math.log(4))
    torch.testing.assert_close(head.cv3[0][-1].bias.data, expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("levels: P2", "accepted: consecutive levels"),
        ("levels: []", "accepted: consecutive levels"),
        ("levels: [P2, P4]", "leaves a hole"),
        ("levels: [P3, P2]", "leaves a hole"),
        ("levels: [N3, N4]", "'N3' .accepted: consecutive"),
        ("levels: [P3, P4, P5, P6]", "has no P6 .it ends at P5"),
        ("levels: [P1, P2, P3]", "has no P1 .it has P2"),
        ("levels: [P3, P4, {gate: true}]", "accepted as last entry: {identity_start: true}"),
        ("levels: [P3, P4, {identity_start: 1}]", "accepted as last entry"),
    ],
)
def test_levels_that_make_no_sense_are_one_line(write, text: str, message: str) -> None:
    with pytest.raises(YoloAttnError, match=message) as error:
        load_model_yaml(write(f"base: yolov8n.yaml\n{text}\n"))
    assert "yolov8-test.yaml levels" in str(error.value)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("yolov3.yaml", "not one way up the levels and one way down"),
        ("yolov8n-cls.yaml", "ends in Classify"),
        ("rtdetr-l.yaml", "ends in RTDETRDecoder"),
        ("yolov8n-world.yaml", "ends in WorldDetect"),
    ],
)
def test_bases_without_such_levels_are_refused(write, base: str, message: str) -> None:
    with pytest.raises(YoloAttnError, match=message):
        load_model_yaml(write(f"base: {base}\nlevels: [P2, P3, P4, P5]\n", "own.yaml"))


def test_a_row_that_went_is_named(write) -> None:
    text = "base: yolov8n.yaml\nlevels: [P3, P4]\ninsert:\n  - [21, 1, CBAM, []]\n"
    with pytest.raises(YoloAttnError, match="after=21 was removed by `levels`"):
        load_model_yaml(write(text))


def test_a_repeated_expansion_keeps_where_new_stages_start(write) -> None:
    write("base: yolov8n.yaml\nlevels: [P2, P3, P4, P5]\n", "inner.yaml")
    d = load_model_yaml(write("base: inner.yaml\ninsert:\n  - [N3, 1, CBAM, []]\n", "outer.yaml"))
    assert d["yolo_attn"]["starts"] == [[21, 15]]
    run(d)
