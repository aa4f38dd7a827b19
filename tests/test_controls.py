"""scripts/controls.py runs both studies and prints both verdicts (tiny: no verdict is asked)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.processes import python

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_both_controls_run_and_are_printed(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    words = ["--seeds", "2", "--epochs", "1", "--train-images", "16", "--block", "GlobalContext"]
    page = tmp_path / "controls.md"
    done = python(
        str(ROOT / "scripts" / "controls.py"), *words, "--out", str(page), cwd=tmp_path,
        PYTHONPATH=path,
    )  # fmt: skip
    for mode in ("context", "plain"):
        rows = [line for line in done.stdout.splitlines() if line.startswith(f"| {mode} |")]
        assert [row.split(" | ")[1] for row in rows] == ["AP", "AP50", "AP_small"]
        assert all(row in page.read_text() for row in rows)
        model = (tmp_path / "runs" / "controls" / "models" / "block.yaml").read_text()
        assert model.count("GlobalContext") == 1
        trials = tmp_path / "runs" / "controls" / mode
        assert len(list(trials.glob("*/*/records.npz"))) == 4
    assert "python scripts/controls.py --seeds 2" in page.read_text()
