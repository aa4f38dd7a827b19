"""A verdict says in the same sentence that its block is hardly used; old studies still report."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.ablation_study import SEEDS, finished_study
from tests.processes import python
from yolo_attn.ablation.block_use import mean_use, remark
from yolo_attn.ablation.report import write_report
from yolo_attn.ablation.store import TrialFolder
from yolo_attn.cli import app
from yolo_attn.explain.use_table import BlockUse

CHANGES = {"block": (0.002, 0.003, 0.004), "odd_arm": (0.2, 0.3, 0.4)}
AP = ("coco", "AP")
SENTENCE = "better, with NonLocal at P5 changing its input by 0.3 % only"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of an older release, whose trials know nothing of the use of their blocks."""
    return finished_study(tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def made(old: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "demo"
    shutil.copytree(old, folder)
    for seed in SEEDS:
        TrialFolder(folder / "baseline" / str(seed)).write(blocks=[])
        for arm, changes in CHANGES.items():
            use = BlockUse(10, "NonLocal", "P5", None, 0.01 * (1 + seed), changes[seed])
            TrialFolder(folder / arm / str(seed)).write(blocks=[use.as_dict()])
    return folder


def test_the_sentence_stands_in_every_form_of_the_report(made: Path) -> None:
    results = write_report(made)
    changed = pytest.approx(0.003)
    assert results.use["block"] == [BlockUse(10, "NonLocal", "P5", None, 0.02, changed)]
    said = {c.arm: results.verdict(c) for p, c in results.comparisons if (p, c.metric) == AP}
    assert said["block"] == SENTENCE and "," not in said["odd_arm"]
    shown = " ".join(CliRunner().invoke(app, ["report", str(made)]).stdout.split())
    assert SENTENCE in shown and "Are the blocks used?" in shown
    answer = json.loads(CliRunner().invoke(app, ["report", str(made), "--json"]).stdout)
    assert SENTENCE in [c["sentence"] for c in answer["comparisons"]]
    assert answer["blocks"]["odd_arm"] == [
        {"layer": 10, "block": "NonLocal", "where": "P5", "gate": None, "gamma": 0.02,
         "change": pytest.approx(0.3)}
    ]  # fmt: skip
    with open(made / "table.csv", newline="") as file:
        rows = {r["arm"]: r for r in csv.DictReader(file) if r["metric"] == "AP"}
    assert rows["block"]["verdict"] == "better", "one word, for programs"
    assert float(rows["block"]["block_change"]) == pytest.approx(0.003)
    assert rows["baseline"]["block_change"] == ""
    with open(made / "blocks.csv", newline="") as file:
        lines = {r["arm"]: r for r in csv.DictReader(file)}
    assert set(lines) == {"block", "odd_arm"} and lines["block"]["gate"] == ""
    assert float(lines["block"]["gamma"]) == pytest.approx(0.02)
    tex = (made / "blocks.tex").read_text()
    assert r"block & 10 & NonLocal & P5 & - & 0.02 & 0.3 \%" in tex and r"odd\_arm" in tex


def test_the_page_says_it_beside_the_verdict(made: Path) -> None:
    pytest.importorskip("plotly")
    write_report(made)
    page = (made / "report.html").read_text()
    own = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert f'<td class="better">{SENTENCE}</td><td class="n">0.3 %</td>' in own
    assert '<table id="blocks" class="sortable">' in own and own.count('class="sortable"') == 4


def test_the_readme_table_says_it_too(made: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results: how -->\nold\n<!-- end -->\n")
    script = Path(__file__).resolve().parents[1] / "scripts" / "readme_results.py"
    python(str(script), str(made), "--readme", str(readme), "--metrics", "coco:AP")
    assert f"| {SENTENCE.replace('better', '**better**')} |" in readme.read_text()


def test_a_study_without_these_numbers_reports_as_before(old: Path) -> None:
    results = write_report(old)
    assert all(results.verdict(c) == c.verdict for _, c in results.comparisons)
    assert not any(results.use.values())
    assert not list(old.glob("blocks.*"))
    if (old / "report.html").is_file():
        assert "Are the blocks used?" not in (old / "report.html").read_text()
    assert "Are the blocks used?" not in CliRunner().invoke(app, ["report", str(old)]).stdout


def test_what_a_verdict_adds() -> None:
    def use(change: float | None, name: str = "SE") -> BlockUse:
        return BlockUse(5, name, "P4", None, None, change)

    assert remark([], []) == remark([use(0.01), use(None)], [use(0.5)]) == ""
    assert remark([use(0.0099)], []) == ", with SE at P4 changing its input by 0.99 % only"
    two = remark([use(0.001), use(0.002), use(0.5), use(None)], [use(0)])
    assert two == (
        ", with 2 of 3 blocks changing their input by 0.2 % at most and the baseline's SE at P4 "
        "changing its input by 0 % only"
    )


def test_the_mean_is_over_the_trials_that_have_the_number() -> None:
    def trial(gate: float | None, change: float | None) -> dict:
        return {"blocks": [BlockUse(5, "SE", "P4", gate, None, change).as_dict()]}

    found = mean_use([trial(0.1, 0.2), trial(None, 0.4), {"blocks": []}, {}])
    assert found == [BlockUse(5, "SE", "P4", 0.1, None, pytest.approx(0.3))]
    # A diverged training has no number that JSON could hold.
    assert mean_use([trial(0.1, float("nan"))]) == [BlockUse(5, "SE", "P4", 0.1, None, None)]
