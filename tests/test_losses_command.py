"""`yolo-attn losses`, and the key `loss` in `check`, `expand` and overlays."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.test_losses import made
from yolo_attn.cli import app
from yolo_attn.errors import YoloAttnError
from yolo_attn.losses.catalogue import BOX, CLASS, MODIFIER
from yolo_attn.losses.class_options import CLASS_OPTIONS
from yolo_attn.losses.options import BASES, MODIFIERS

runner = CliRunner()


def run(*args: str) -> str:
    result = runner.invoke(app, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_the_list_has_every_name_in_80_columns() -> None:
    text = run("losses")
    assert max(map(len, text.splitlines())) <= 80
    names = re.findall(r"^  (\w+) ", text, re.MULTILINE)
    assert names == [*BASES, "inner", "focaler", "alpha", "focal", "wise", "nwd", *CLASS_OPTIONS]
    assert {e.name for e in MODIFIER} == {*MODIFIERS, "nwd"}
    assert tuple(e.name for e in CLASS) == tuple(CLASS_OPTIONS)
    entries = json.loads(run("losses", "--json"))
    assert len(entries) == len(names) and set(entries[0]) == {
        *("kind", "name", "formula", "span", "paper", "options")
    }


@pytest.mark.parametrize("entry", BOX, ids=lambda e: e.name)
def test_the_stated_ranges_hold_for_boxes_in_an_image(entry) -> None:
    g = torch.Generator().manual_seed(3)
    corners = torch.rand(2, 20_000, 2, 2, generator=g, dtype=torch.float64) * 640
    corners[:, ::4] = (corners[:, ::4] * 8) % 640  # and a stronger mixture of shapes
    corners[1, ::5] = corners[0, ::5] + torch.randn(4000, 2, 2, generator=g)
    low, high = corners.min(2).values, corners.max(2).values
    pred, target = torch.cat([low, high], -1).clamp(0, 640)
    name = "wiou-v1" if entry.name == "wiou" else entry.name
    loss = made(name)(pred, target, 1.0, (640, 640))
    least, most = entry.span.split("..")
    assert float(least) - 1e-6 <= loss.min()
    assert loss.max() <= (torch.e if most == "e" else float(most)) + 1e-6


def test_check_expand_and_overlays_know_the_key(tmp_path: Path) -> None:
    file = tmp_path / "yolov8n-mine.yaml"
    file.write_text("base: yolov8.yaml\nloss: {box: mpdiou, wise: 3, cls: slide}\n")
    text = run("check", str(file))
    assert "loss: box mpdiou, wise v3 (alpha 1.9" in text and "class slide (mu 1)" in text
    out = tmp_path / "plain.yaml"
    run("expand", str(file), "-o", str(out))
    assert "loss:" in out.read_text() and "loss_state" not in out.read_text()
    file.write_text("base: yolov8.yaml\nloss: focaler-iou\n")
    assert "warning: loss: box iou with focaler" in run("check", str(file))


@pytest.mark.parametrize("loss", ["cio", "{box: ciou, inner: 0}", "{innr: 1}", ""])
def test_check_refuses_in_one_line_with_the_file(tmp_path: Path, loss: str) -> None:
    file = tmp_path / "yolov8n-mine.yaml"
    file.write_text(f"base: yolov8.yaml\nloss: {loss}\n")
    result = runner.invoke(app, ["check", str(file)])
    assert result.exit_code == 1 and "yolov8n-mine.yaml loss" in result.output
    assert result.output.count("\n") == 1


def test_a_stored_state_is_not_published(tmp_path: Path) -> None:
    from yolo_attn.zoo import to_yaml

    d = {"nc": 1, "loss": "wiou", "loss_state": {"10": {"mean": 0.4}}, "backbone": [], "head": []}
    assert "loss_state" not in to_yaml(d, "x") and "wiou" in to_yaml(d, "x")


def test_the_key_is_checked_where_a_model_is_built(tmp_path: Path) -> None:
    from ultralytics import YOLO

    file = tmp_path / "yolov8n-obb-mine.yaml"
    file.write_text("base: yolov8-obb.yaml\nloss: wiou\n")
    with pytest.raises(YoloAttnError, match="yolov8n-obb-mine.yaml loss box.*OBB"):
        YOLO(str(file))


def test_a_name_is_spelled_out() -> None:
    assert "wiou: box wiou, wise v3 (alpha 1.9" in run("losses", "wiou")
    assert "warning" in run("losses", "focaler-iou")
    (found,) = json.loads(run("losses", "inner-giou", "--json"))
    assert found["loss"] == {"box": "giou", "inner": 0.7}
    with pytest.raises(YoloAttnError, match="did you mean"):
        run("losses", "gio")


def test_the_picture_and_its_table(tmp_path: Path) -> None:
    text = run("losses", "ciou", "nwd", "--plot", str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").stat().st_size > 10_000
    rows = [line.split() for line in text.splitlines() if line.startswith("  nwd")]
    # The farther-off half of the table: NWD still pulls a tiny box, and weakly a large one.
    assert len(rows) == 2 and float(rows[1][1]) > float(rows[1][4])
    with pytest.raises(YoloAttnError, match="--plot"):
        run("losses", "--plot", str(tmp_path / "a.nothing"))
