"""Whole YAMLs in the manner of forks: migrated, built by stock Ultralytics, trained one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from tests import loss_steps
from yolo_attn.cli import app
from yolo_attn.migrate.heads import rewrite
from yolo_attn.migrate.overlay_form import as_overlay
from yolo_attn.migrate.rows import Translation, translate
from yolo_attn.migrate.written import plain_yaml
from yolo_attn.paths import zoo_dir
from yolo_attn.registry import find_block

FORKS = sorted((Path(__file__).parent / "forks").glob("*.yaml"))
ANCHOR_KEYS = ("anchors",)


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def migrate(*args: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["migrate", *map(str, args)], catch_exceptions=True)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def attention_rows(d: dict[str, Any]) -> int:
    return sum(
        1
        for row in [*d["backbone"], *d["head"]]
        if (info := find_block(row[2])) is not None and not info.layer
    )


def test_there_are_ten_of_four_families_with_several_modules_each() -> None:
    names = [path.name for path in FORKS]
    assert len(names) == 10
    for family in ("yolov5", "yolov7", "yolov8", "yolo11"):
        assert [n for n in names if n.startswith(family)]
    for path in FORKS:
        assert len(load(path)["backbone"]) > 5
        assert attention_rows(translate(load(path)).model) >= 3, path.name


@pytest.mark.parametrize("path", FORKS, ids=lambda p: p.stem)
def test_a_fork_s_model_migrates_builds_and_trains_one_step(path: Path, tmp_path: Path) -> None:
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import DEFAULT_CFG

    out = tmp_path / path.name
    result = migrate(path, "-o", out, "--json")
    said = json.loads(result.stdout)
    assert said.keys() == {"rows", "refused", "parameters"} and said["refused"] == []
    net = DetectionModel(str(out), verbose=False)
    # A convolution that no gradient moves (DFL) is among the parameters.
    assert sum(p.numel() for p in net.parameters()) == said["parameters"]
    for row in said["rows"]:
        assert row.keys() == {
            "row", "before", "after", "block", "options", "parameters", "why",
        }  # fmt: skip
        layer = net.model[row["row"]]
        assert sum(p.numel() for p in layer.parameters()) == row["parameters"]

    net.args = DEFAULT_CFG
    net.train()
    loss, _ = net.loss(loss_steps.batch("detect"))
    loss.sum().backward()
    unmoved = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert unmoved == []
    torch.optim.SGD(net.parameters(), lr=1e-3).step()
    after, _ = net.loss(loss_steps.batch("detect"))
    assert torch.isfinite(after).all() and not torch.equal(after, loss)
    assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize("path", FORKS, ids=lambda p: p.stem)
def test_what_is_no_row_is_kept(path: Path) -> None:
    before = load(path)
    after = yaml.safe_load(plain_yaml(translate(before), path.name))
    kept = {k: v for k, v in before.items() if k not in ("backbone", "head", "anchors")}
    assert {k: after[k] for k in kept} == kept
    assert "anchors" not in after
    assert list(after.get("scales", {})) == list(before.get("scales", {}))
    assert len(after["backbone"]) == len(before["backbone"])
    # Rows that mean nothing of ours are as they were.
    for a, b in zip(before["backbone"] + before["head"], after["backbone"] + after["head"]):
        if a[2] in ("C3", "C2f", "C3k2", "SPPF", "Concat", "nn.Upsample"):
            assert a == b


def test_the_written_file_says_what_each_changed_row_was() -> None:
    path = next(p for p in FORKS if p.name == "yolov5s-cbam-ca.yaml")
    text = plain_yaml(translate(load(path)), path.name)
    assert "  - [-1, 1, CoordAtt, []] # 8, was [-1, 1, CA, [512]]" in text.splitlines()
    assert text.rstrip().endswith("was [[21, 24, 27], 1, Detect, [nc, anchors]]")


def test_the_count_of_a_file_is_that_of_what_is_written(tmp_path: Path) -> None:
    from ultralytics.nn.tasks import DetectionModel

    file, out = tmp_path / "fork.yaml", tmp_path / "mine.yaml"
    file.write_text(
        "nc: 3\nwidth_multiple: 0.25\ndepth_multiple: 0.33\nbackbone:\n"
        "  - [-1, 1, Conv, [256, 3, 2]]\n  - [-1, 1, CBAM, [256]]\n"
        "head:\n  - [[1], 1, Detect, [nc]]\n"
    )
    said = json.loads(migrate(file, "-o", out, "--json").stdout)
    assert said["rows"][0]["parameters"] == 679
    net = DetectionModel(str(out), verbose=False)
    assert sum(p.numel() for p in net.parameters()) == said["parameters"]


def test_every_scale_of_a_migrated_yaml_builds(tmp_path: Path) -> None:
    from yolo_attn.zoo import check

    path = next(p for p in FORKS if p.name == "yolov8-cbam-neck.yaml")
    out = tmp_path / "yolov8-migrated.yaml"
    migrate(path, "-o", out)
    assert len(check(str(out))) == 5
    # The scale of the name is the one that is counted.
    medium = tmp_path / "yolov8m-mine.yaml"
    medium.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    said = json.loads(migrate(medium, "--json").stdout)
    small = json.loads(migrate(medium, "--scale", "s", "--json").stdout)
    assert said["parameters"] > 2 * small["parameters"]
    assert next(r for r in said["rows"] if r["row"] == 13)["parameters"] == (
        2 * 384 * 24 + 24 + 384 + 99
    )


# Families


def as_published(name: str, aux: bool = False) -> dict[str, Any]:
    """A base of the zoo in the words of the YOLOv7 repository."""
    d = load(zoo_dir() / "bases" / name)
    for row in [*d["backbone"], *d["head"]]:
        if row[2] == "nn.MaxPool2d" and row[3] == [2, 2]:
            row[2:] = ["MP", []]
        elif row[2] == "nn.MaxPool2d":
            row[2:] = ["SP", row[3][:1]]
        elif row[2] == "Shortcut":
            row[3] = [1]
    head = d["head"][-1]
    if not aux:
        for i in head[0]:
            d["head"][i - len(d["backbone"])][2] = "RepConv"
    d["head"][-1] = [head[0], 1, "IDetect", ["nc", "anchors"]]
    return {**d, "anchors": 3, "depth_multiple": 1.0, "width_multiple": 1.0}


@pytest.mark.parametrize("name", ["yolov7.yaml", "yolov7-tiny.yaml"])
def test_yolov7_as_published_is_the_zoo_s(name: str) -> None:
    from yolo_attn.zoo import describe

    d = as_published(name)
    translation = translate(d)
    assert translation.refused == []
    if name == "yolov7.yaml":
        assert translation.parameters == 44_281_440  # facts of the family, with RepConv
    else:
        assert translation.parameters is not None
        assert translation.parameters > describe(name).parameters


def test_the_auxiliary_levels_go_with_what_feeds_them() -> None:
    d = as_published("yolov7-w6.yaml", aux=True)
    lead = d["head"][-1][0]
    first = len(d["backbone"]) + len(d["head"]) - 1
    width = [320, 640, 960, 1280]
    extra = [[i, 1, "Conv", [w, 3, 1]] for i, w in zip((83, 71, 59, 47), width)]
    d["head"][-1:] = [
        *extra,
        [[*lead, *range(first, first + 4)], 1, "IAuxDetect", ["nc", "anchors"]],
    ]
    translation = translate(d)
    assert translation.refused == []
    assert translation.parameters == 79_755_984  # facts of the family
    assert translation.model["head"][-1] == [lead, 1, "Detect", ["nc"]]


def test_old_yolov5_rows() -> None:
    d = load(next(p for p in FORKS if p.name == "yolov5m-focus-decoupled.yaml"))
    rows = translate(d).model
    assert rows["backbone"][0][2] == "Focus" and rows["head"][-1][2] == "Detect"
    d["head"][-1] = [d["head"][-1][0], 1, "Segment", ["nc", "anchors", 32, 256]]
    assert translate(d).model["head"][-1][2:] == ["Segment", ["nc", 32, 256]]


@pytest.mark.parametrize(
    ("module", "args", "expected"),
    [
        ("MP", [], ["nn.MaxPool2d", [2, 2]]),
        ("MP", [3], ["nn.MaxPool2d", [3, 3]]),
        ("SP", [13], ["nn.MaxPool2d", [13, 1, 6]]),
        ("SP", [3, 2], ["nn.MaxPool2d", [3, 2, 1]]),
        ("RepConv", [256, 3, 1], ["RepConv3x3", [256]]),
        ("RepConv", [256, 3, 2], ["RepConv3x3", [256, 2]]),
        ("RepConv", [256], ["RepConv3x3", [256]]),
        ("RepConv", [256, 5, 1], "RepConv has [256, 5, 1]"),
        ("MP", ["a"], "MP has"),
        ("IKeypoint", ["nc", "anchors"], "IKeypoint"),
        ("ASFF_Detect", ["nc", "anchors"], "ASFF"),
        ("Segment", ["nc", 32, 256], None),
        ("Detect", ["nc"], None),
        ("Conv", [64, 3, 2], None),
        ("SPPCSPC", [512], None),
        ("Shortcut", [1], ["Shortcut", []]),
    ],
)
def test_layers_and_heads(module: str, args: list[Any], expected: Any) -> None:
    found = rewrite(module, args, [1, 2, 3])
    if isinstance(expected, list):
        assert not isinstance(found, str) and found is not None
        assert [found.module, found.args] == expected and found.why
    elif expected is None:
        assert found is None
    else:
        assert isinstance(found, str) and expected in found


def test_convolutions_with_an_activation_of_their_own() -> None:
    leaky = "nn.LeakyReLU(0.1)"
    d = {
        "nc": 1,
        "backbone": [
            [-1, 1, "Conv", [32, 3, 2, None, 1, leaky]],
            [-1, 1, "Conv", [64, 3, 2, 1, 2, leaky]],
            [-1, 1, "SE", [64]],
        ],
        "head": [[[2], 1, "Detect", ["nc", "anchors"]]],
    }
    translation = translate(d)
    assert translation.refused == [] and translation.model["activation"] == f"torch.{leaky}"
    assert [row[3] for row in translation.model["backbone"][:2]] == [[32, 3, 2], [64, 3, 2, 1, 2]]
    d["backbone"][1][3] = [64, 3, 2]
    (refused,) = translate(d).refused
    assert refused.row == 0 and "several" in refused.why


# Overlays


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("yolov5s-cbam-ca.yaml", "yolov5.yaml"),
        ("yolov8-mixed.yaml", "yolov8.yaml"),
        ("yolo11-gc-nl.yaml", "yolo11.yaml"),
        ("yolov5m-focus-decoupled.yaml", "yolov5.yaml"),
    ],
)
def test_a_variant_of_a_known_base_is_written_as_its_overlay(
    name: str, base: str, tmp_path: Path
) -> None:
    from yolo_attn.overlay.dry_run import load_model_yaml, run

    path = next(p for p in FORKS if p.name == name)
    out = tmp_path / "mine.yaml"
    migrate(path, "--overlay", "-o", out)
    overlay = load(out)
    assert overlay["base"] == base and len(overlay["insert"]) >= 3
    assert len(overlay.get("replace", [])) == (3 if "focus" in name else 0)
    layers, _ = run(load_model_yaml(str(out)))
    found = sum(p.numel() for p in layers.parameters())
    assert found == translate(load(path)).parameters


def test_what_is_no_variant_says_why_not(tmp_path: Path) -> None:
    path = next(p for p in FORKS if p.name == "yolov7-tiny-attention.yaml")
    out = tmp_path / "mine.yaml"
    result = migrate(path, "--overlay", "-o", out)
    assert "no overlay: " in result.output and not out.exists()


def test_readers_that_bypass_a_block_make_no_overlay() -> None:
    d = load(next(p for p in FORKS if p.name == "yolov8-cbam-neck.yaml"))
    # Detect reads the stage itself: the last block is read by nobody, or by the next row alone.
    d["head"][-1][0] = [16, 21, 25]
    text, why_not = as_overlay(translate(d), "x.yaml")
    assert text is None and "another way" in why_not


def test_yolov7_with_attention_is_an_overlay_of_its_base() -> None:
    d = as_published("yolov7.yaml")
    for i in (102, 103, 104):
        d["head"][i - len(d["backbone"])][2] = "RepConv"
    text, why_not = as_overlay(translate(d), "x.yaml")
    assert text is None and "no row of it" in why_not
    d["head"].insert(-1, [-1, 1, "SimAM", [1024]])
    d["head"][-1][0] = [102, 103, 105]
    text, why_not = as_overlay(translate(d), "x.yaml")
    assert text is not None and "base: yolov7-rep.yaml" in text, why_not
    assert "- [104, 1, SimAM, [{correction: 1}]]" in text


# The command


def test_without_out_nothing_is_written_and_files_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "fork.yaml"
    path.write_text(FORKS[0].read_text(encoding="utf-8"), encoding="utf-8")
    before = path.read_bytes()
    result = migrate(path)
    assert "parameters at scale n" in result.output and " -> " in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["fork.yaml"] and path.read_bytes() == before
    failed = CliRunner().invoke(app, ["migrate", str(path), "-o", str(path)])
    assert failed.exit_code == 1 and "exists already" in str(failed.exception)
    assert path.read_bytes() == before
    migrate(path, "-o", path, "--overwrite")
    assert translate(load(path)).refused == [] and path.read_bytes() != before


def test_a_refused_row_is_exit_code_one_and_nothing_is_written(tmp_path: Path) -> None:
    path, out = tmp_path / "fork.yaml", tmp_path / "out.yaml"
    text = FORKS[0].read_text(encoding="utf-8").replace("SimAM, [1024]", "NoSuchModule, [1024]")
    path.write_text(text, encoding="utf-8")
    result = migrate(path, "-o", out, "--json", code=1)
    said = json.loads(result.stdout)
    assert not out.exists() and said["parameters"] is None
    (refused,) = said["refused"]
    assert refused.keys() == {"row", "why"} and "NoSuchModule" in refused["why"]
    assert "refused" in migrate(path, code=1).output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "needs FILE"),
        (["--design", "CBAM"], "NAME=DESIGN"),
        (["--design", "CBAM=papre"], "did you mean 'paper'"),
        (["--design", "Cbamm=paper"], "did you mean 'CBAM'"),
    ],
)
def test_wrong_usage_is_exit_code_two(args: list[str], said: str) -> None:
    file = [] if not args else [str(FORKS[0])]
    result = migrate(*file, *args, code=2)
    assert said in result.output


def test_input_at_fault_is_one_line(tmp_path: Path) -> None:
    cases = {
        "list.yaml": "- 1\n",
        "empty.yaml": "",
        "broken.yaml": "a: [1,\n",
        "overlay.yaml": "base: yolov8.yaml\ninsert: []\n",
        "norows.yaml": "nc: 1\nbackbone: 3\nhead: []\n",
        "short.yaml": "nc: 1\nbackbone: [[-1, 1, Conv]]\nhead: [[-1, 1, Detect, [nc]]]\n",
    }
    for name, text in cases.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        result = CliRunner().invoke(app, ["migrate", str(tmp_path / name)])
        message = str(result.exception)
        assert type(result.exception).__name__ == "YoloAttnError", (name, message)
        assert "\n" not in message and name in message, message
    result = CliRunner().invoke(app, ["migrate", str(tmp_path / "emtpy.yaml")])
    assert "no such file, did you mean 'empty.yaml'" in str(result.exception)


def test_the_list_of_designs() -> None:
    text = migrate("--designs").output
    assert "CBAM, CBAMBlock, CBAM_Authentic: paper*: CBAM {}, 8,563" in text
    assert "UltralyticsCBAM {}, 65,890" in text and "SPD" in text
    listed = json.loads(migrate("--designs", "--json").stdout)
    chosen = [one for one in listed if "CoordAtt" in one["names"]]
    assert [one["design"] for one in chosen if one["default"]] == ["paper"]
    assert {one["design"] for one in chosen} == {"paper", "nobias", "silu", "relu"}


def test_the_documentation_has_every_design_with_its_parameters() -> None:
    text = (Path(__file__).parents[1] / "docs" / "migrate.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| ")][1:]
    listed = json.loads(migrate("--designs", "--json").stdout)
    assert len(table) == len(listed)
    for line, one in zip(table, listed):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1].split()[0] == one["design"] and f"`{one['block']}`" in cells[2]
        assert cells[3] == f"{one['parameters_at_256']:,}"
        assert ("(taken)" in cells[1]) == one["default"]
        assert not cells[0] or cells[0] == ", ".join(f"`{n}`" for n in one["names"])


def test_a_model_that_does_not_build_is_a_refusal(tmp_path: Path) -> None:
    d = load(FORKS[0])
    d["head"][-1][0] = [1, 2, 999]
    translation: Translation = translate(d)
    assert [r.row for r in translation.refused] == [None]
    assert "does not build" in translation.refused[0].why
