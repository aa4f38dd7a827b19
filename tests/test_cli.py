"""The yolo-attn command."""

from __future__ import annotations

import json
import re
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
    for command in ("blocks", "losses", "zoo", "check", "expand", "new", "version"):
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


@pytest.mark.parametrize(("flags", "kind"), [((), "blocks"), (("--layers",), "layers")])
def test_docs_have_the_card_of_every_block(
    flags: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    # A process of its own: other tests register blocks.
    file = f"{kind}.md"
    python("-m", "yolo_attn.cli", "blocks", *flags, "--markdown", str(tmp_path / file))
    page = (tmp_path / file).read_text(encoding="utf-8")
    written = f"run `yolo-attn blocks {' '.join(flags)} --markdown docs/{file}`"
    assert page == (ROOT / "docs" / file).read_text(encoding="utf-8"), written
    names = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert len(names) >= 30
    for name, info in ((n, yolo_attn.block_info(n)) for n in names):
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert info.paper.split(":")[0] in section
        assert all(f"| `{option}` | " in section for option in info.options)
        assert "|  |" not in section, "an option without its meaning"
        assert not re.search(r":\w+:`", section), "a role of Sphinx, which Markdown does not know"


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
    assert "every bottleneck of c3, c4 and c5" in card
    assert "(`yolo_attn.ops.relu_affinity`)" in run("blocks", "NonLocal")
    assert "(`LocalityConstrained`)" in run("blocks", "FPTGround")
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


@pytest.mark.parametrize(
    ("block", "places", "options", "starts"),
    [
        ("CBAM", ["P3"], [], True),
        ("DASI", ["N4", "N3", "N5"], [], True),
        ("GlobalContext", ["P4"], [], False),
        ("GlobalContext", ["P4"], ["fusion=both"], True),
    ],
)
def test_a_new_overlay_starts_as_its_base_and_says_so(
    tmp_path: Path, block: str, places: list[str], options: list[str], starts: bool
) -> None:
    words = [w for p in places for w in ("--at", p)] + [w for o in options for w in ("--set", o)]
    words = ["new", "yolov8.yaml", block, *words, "--out", str(tmp_path)]
    said = run(*words)
    path = tmp_path / f"yolov8-{block.lower()}.yaml"
    assert ("\nidentity_start: true" in path.read_text()) == starts
    assert said.count("\n") == 1 + starts
    assert ("identity_start: true" in said) == starts

    said = run(*words, "--no-identity-start", "--force")
    assert "identity_start" not in path.read_text()
    assert ("starts away from its base's predictions" in said) == starts
    assert said.count("\n") == 1 + starts


def test_new_says_where_the_identity_start_is_refused(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path))
    said = run("new", "yolov8.yaml", "DANet", "--at", "N5", "--set", "out_channels=64", *out)
    path = tmp_path / "yolov8-danet.yaml"
    assert "DANet is not the identity at the start and cannot be made to start so" in said
    assert "needs as many output as input channels" in said
    assert "identity_start" not in path.read_text()
    run("new", "yolov8.yaml", "SE", "--at", "P5", "--set", "identity_start=true", *out)
    assert "\nidentity_start" not in (tmp_path / "yolov8-se.yaml").read_text(), "the row says it"


def test_a_block_of_three_dimensional_maps_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "yolov8-clips.yaml"
    for dimension in (1, 3):
        path.write_text(
            f"base: yolov8.yaml\ninsert:\n  - [P5, 1, NonLocal, [{{dimension: {dimension}}}]]\n"
        )
        (result,) = json.loads(run("check", str(path), "--json", code=1))
        (line,) = result["lines"]
        assert f"{path.name} insert 1: NonLocal after P5 (layer 10): NonLocal: dimension=" in line
        assert f"dimension={dimension} is not accepted, a row of a model is a 2-D map" in line
    assert yolo_attn.create("NonLocal", 64, dimension=3).dimension == 3


def test_expand_says_what_a_tap_meant(tmp_path: Path) -> None:
    text = run("expand", "yolov8n-nonlocal.yaml")
    assert "# 10 (insert 1: NonLocal after P5, layer 9 of yolov8.yaml)" in text
    out = tmp_path / "yolov8-plain.yaml"
    run("expand", "yolov8-nonlocal.yaml", "--out", str(out))
    assert "scale n: ok" in run("check", str(out))
    assert "exists already" in run("expand", "yolov8-nonlocal.yaml", "--out", str(out), code=1)
