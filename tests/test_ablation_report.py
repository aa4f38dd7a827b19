"""The report of a study: the same numbers in every form, one page that opens offline."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.ablation_study import finished_study
from tests.processes import python
from yolo_attn.ablation.figures import figures_of, pareto
from yolo_attn.ablation.report import write_report
from yolo_attn.ablation.store import FAILED, STUDY, TrialFolder, write_json
from yolo_attn.cli import app
from yolo_attn.errors import YoloAttnError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_study(tmp_path_factory.mktemp("runs"))


def test_the_verdicts_are_right_and_the_same_in_every_form(made: Path) -> None:
    results = write_report(made)
    said = {(p, c.metric, c.arm): c for p, c in results.comparisons}
    assert said["coco", "AP", "block"].verdict == "better"
    assert said["coco", "AP", "odd_arm"].verdict not in ("better", "worse")
    mean = results.mean("block", "coco", "AP")
    assert said["coco", "AP", "block"].arm_mean == pytest.approx(mean, abs=1e-9)
    with open(made / "table.csv", newline="") as file:
        rows = {(r["protocol"], r["metric"], r["arm"]): r for r in csv.DictReader(file)}
    assert len(rows) == 3 * (3 + 3 + 2)
    for key, c in said.items():
        if c.difference is None:
            continue
        row = rows[key]
        assert float(row["difference"]) == c.difference and row["verdict"] == c.verdict
        assert (float(row["low"]), float(row["high"])) == c.interval
        assert float(row["low"]) <= c.difference <= float(row["high"])
    assert rows["coco", "AP", "block"]["latency_ms"] == "6.0"
    tex = (made / "table.tex").read_text()
    assert f"{results.mean('block', 'coco', 'AP'):.2f}" in tex and "odd\\_arm" in tex
    assert tex.count("\\\\") == 1 + 3 + 2
    shown = CliRunner().invoke(app, ["report", str(made)]).stdout
    assert re.search(r"coco .* AP .* block .*better", shown) and "note: a <flag>" in shown
    answer = json.loads(CliRunner().invoke(app, ["report", str(made), "--json"]).stdout)
    assert len(answer["comparisons"]) == len(said)


def test_every_picture_is_written_as_png_and_svg(made: Path) -> None:
    results = write_report(made)
    keys = [figure.key for figure in figures_of(results)]
    assert keys == ["latency", "curves", "sizes", "classes", "errors"]
    for key in keys if (made / "report.html").is_file() else ():
        assert Image.open(made / "figures" / f"{key}.png").size == (1200, 675)
        assert (made / "figures" / f"{key}.svg").read_text().count("<svg") == 1
    assert pareto([(2, 5.0), (1, 3.0), (3, 4.0), (2, 6.0)]) == [(1, 3.0), (2, 6.0)]


def test_the_page_needs_nothing_else(made: Path) -> None:
    pytest.importorskip("plotly")
    write_report(made)
    page = (made / "report.html").read_text()
    own = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", own)
    assert "&lt;demo&gt;.yaml" in own and "a &lt;flag&gt;" in own
    assert own.count("<img ") == 3 * 4 and own.count('class="sortable"') == 3
    assert "yolo detect train model=block.yaml &#39;data=my data.yaml&#39; device=cpu" in own
    assert '<td class="better">better</td>' in own
    for key in ("latency", "curves", "sizes", "classes", "errors"):
        assert f'id="figure-{key}"' in own


def test_failed_and_missing_trials_are_said(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    error = {"what": "training ended with signal 9", "log": "x", "tail": ["last <line>"]}
    TrialFolder(folder / "block" / "1").write(status=FAILED, error=error)
    shutil.rmtree(folder / "block" / "2")
    shutil.rmtree(folder / "odd_arm")
    results = write_report(folder)
    assert results.study.folder == folder, "a folder that was moved"
    assert list(results.failed) == ["block/1"] and results.unfinished[0] == "block/2"
    (c,) = [c for p, c in results.comparisons if (p, c.metric) == ("coco", "AP")]
    assert c.seeds == (0,) and c.verdict == "too few seeds to tell"
    versions = {"ultralytics": "7", "torch": "2", "yolo_attn": "0"}
    TrialFolder(folder / "baseline" / "0").write(versions=versions, resumed=[1])
    flags = write_report(folder).flags
    assert "trials of several versions of ultralytics: 7, 8" in flags
    assert any("baseline/0" in flag and "resumed" in flag for flag in flags)


def test_records_without_the_protocol_name_the_way_out(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    stored = json.loads((folder / STUDY).read_text())
    stored["study"]["protocols"] = ["coco", "coco-500"]
    write_json(folder / STUDY, stored)
    with pytest.raises(YoloAttnError, match="without protocol coco-500; .*--re-evaluate"):
        write_report(folder)


def test_the_results_of_the_readme_are_those_of_the_study(made: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results: how -->\nold\n<!-- end -->\nafter\n")
    script = Path(__file__).resolve().parents[1] / "scripts" / "readme_results.py"
    python(str(script), str(made), "--readme", str(readme), "--metrics", "coco:AP")
    text = readme.read_text()
    assert text.startswith("before\n<!-- results: how -->\n|") and text.endswith("end -->\nafter\n")
    rows = [[c.strip() for c in line.split("|")] for line in text.splitlines() if "beside" in line]
    found = {c.arm: c for p, c in write_report(made).comparisons if (p, c.metric) == ("coco", "AP")}
    assert len(rows) == len(found) == 2 and "old" not in text
    for row in rows:
        c = found[row[2].split()[0]]
        assert row[7] == f"{c.difference:+.2f}" and row[9] == f"**{c.verdict}**"
