"""The yolo-attn command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import yolo_attn
from tests.processes import python
from yolo_attn.cli import app
from yolo_attn.errors import YoloAttnError

runner = CliRunner()
ROOT = Path(__file__).resolve().parents[1]


def run(*args: str, code: int = 0) -> str:
    result = runner.invoke(app, list(args))
    if isinstance(result.exception, YoloAttnError):
        assert code == 1, result.exception
        return str(result.exception)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_every_command_has_help_with_an_example() -> None:
    for command in ("blocks", "zoo", "check", "expand", "new", "version"):
        assert "Example: yolo-attn" in run(command, "--help")
    for command in ("voc", "coco"):
        assert "Example: yolo-attn convert" in run("convert", command, "--help")


def test_exit_codes_as_a_shell_sees_them(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("base: nothing.yaml\n")
    cli = ("-m", "yolo_attn.cli")
    assert python(*cli, "blocks", cwd=tmp_path).returncode == 0
    wrong = python(*cli, "blocks", "Zzz", cwd=tmp_path, ok=False)
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1
    assert python(*cli, "check", "bad.yaml", cwd=tmp_path, ok=False).returncode == 1
    assert python(*cli, "check", cwd=tmp_path, ok=False).returncode == 2


def test_docs_have_the_card_of_every_block(tmp_path: Path) -> None:
    # A process of its own: other tests register blocks.
    python("-m", "yolo_attn.cli", "blocks", "--markdown", str(tmp_path / "blocks.md"))
    page = (tmp_path / "blocks.md").read_text(encoding="utf-8")
    written = "run `yolo-attn blocks --markdown docs/blocks.md`"
    assert page == (ROOT / "docs/blocks.md").read_text(encoding="utf-8"), written
    names = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert len(names) >= 35
    for name, info in ((n, yolo_attn.block_info(n)) for n in names):
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert info.paper.split(":")[0] in section
        assert all(f"| `{option}` | " in section for option in info.options)
        assert "|  |" not in section, "an option without its meaning"


def test_blocks_lists_and_shows_a_card() -> None:
    names = {b["name"] for b in json.loads(run("blocks", "--json"))}
    assert {"NonLocal", "GlobalContext", "ContextAggregation", "CoordAtt", "SE"} <= names
    card = run("blocks", "GC")
    assert (
        "GlobalContext" in card
        and "softmax_n" in card
        and "fusion='add'" in card
        and "1904.11492" in card
    )
    assert "did you mean 'NonLocal'" in run("blocks", "NonLokal", code=1)


def test_zoo_tells_cost_and_place() -> None:
    (config,) = json.loads(run("zoo", "yolov8-nonlocal.yaml", "--json"))
    assert config["name"] == "yolov8n-nonlocal.yaml" and config["parameters"] == 3_289_040
    assert config["gflops"] == pytest.approx(9.04, abs=0.02)
    assert config["blocks"] == [{"row": 10, "block": "NonLocal", "after": "P5", "args": []}]
    assert "no config of the zoo matches" in run("zoo", "nothing*", code=1)
    assert "has no scale 'z'" in run("zoo", "yolov8-nonlocal.yaml", "--scale", "z", code=1)


def test_check_reports_every_file(tmp_path: Path) -> None:
    bad = tmp_path / "yolov8-bad.yaml"
    bad.write_text("base: yolov8.yaml\ninsert:\n  - [P5, 1, SE, [{rd: 1}]]\n")
    results = json.loads(run("check", "yolov8-se.yaml", str(bad), "--json", code=1))
    assert [r["ok"] for r in results] == [True, False]
    assert "insert 1: SE has no option 'rd'" in results[1]["lines"][0]


def test_check_finds_rows_that_do_not_fit(tmp_path: Path) -> None:
    bad = tmp_path / "yolov8-bad.yaml"
    bad.write_text(
        "base: yolov8.yaml\nreplace:\n  - [13, 1, SE, []]\ninsert:\n  - [[4, 6], 1, Concat, [1]]\n"
    )
    (result,) = json.loads(run("check", str(bad), "--json", code=1))
    assert "does not fit what it reads" in result["lines"][0]


def test_new_writes_an_overlay_that_passes_check(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path))
    run("new", "yolo11.yaml", "GlobalContext", "--at", "P5", "--set", "fusion=both", *out)
    path = tmp_path / "yolo11-globalcontext.yaml"
    assert "[P5, 1, GlobalContext, [{fusion: both}]]" in path.read_text()
    assert "exists already" in run(
        "new", "yolo11.yaml", "GlobalContext", "--at", "P5", *out, code=1
    )
    assert "no tap 'P9'" in run("new", "yolo11.yaml", "SE", "--at", "P9", *out, code=1)
    assert "no option 'x'" in run(
        "new", "yolo11.yaml", "SE", "--at", "P5", "--set", "x=1", *out, code=1
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name], (
        "a refused overlay left a file behind"
    )


def test_expand_says_what_a_tap_meant(tmp_path: Path) -> None:
    text = run("expand", "yolov8n-nonlocal.yaml")
    assert "# 10 (insert 1: NonLocal after P5, layer 9 of yolov8.yaml)" in text
    out = tmp_path / "yolov8-plain.yaml"
    run("expand", "yolov8-nonlocal.yaml", "--out", str(out))
    assert "scale n: ok" in run("check", str(out))
    assert "exists already" in run("expand", "yolov8-nonlocal.yaml", "--out", str(out), code=1)
