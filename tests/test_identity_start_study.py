"""scripts/identity_start.py trains, measures, prints, and goes on where it was stopped (tiny)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.processes import python

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_study_runs_and_is_continued(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    words = ["--settings", "scratch", "--epochs", "1", "--images", "16", "--project", str(tmp_path)]

    def study(*forms: str) -> str:
        return python(
            str(ROOT / "scripts" / "identity_start.py"), *words, "--blocks", "SE", "EMA",
            "--forms", *forms, PYTHONPATH=path,
        ).stdout  # fmt: skip

    first = study("channel10")
    kept = json.loads((tmp_path / "results.json").read_text())
    assert sorted(kept) == ["scratch-channel10-EMA-0", "scratch-channel10-SE-0"]
    assert all(0 < record["gate"] <= record["largest"] for record in kept.values())
    assert all(record["change"] > 0 for record in kept.values())
    kept["scratch-channel10-SE-0"]["gate"] = 0.5
    (tmp_path / "results.json").write_text(json.dumps(kept))

    second = study("channel10", "zero")
    assert "| block | channel10 | zero |" in second and "| SE | 0.500 / " in second
    assert "| EMA | " in second and second.count("| - |") == 1  # EMA has no zero form
    assert "| SE | 0.500 / " not in first
