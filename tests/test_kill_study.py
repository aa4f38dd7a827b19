"""scripts/kill_study.py keeps its promise: nothing left, nothing lost, the same table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.processes import python

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "kill_study.py"


@pytest.mark.skipif(sys.platform != "linux", reason="counts processes by their environment")
def test_a_study_with_two_ranks_killed_at_random_moments_gives_the_same_table() -> None:
    said = python(str(SCRIPT), "--kills", "3", "--seed", "1").stdout
    assert "3 kills" in said and "nothing left, nothing lost, the same tables: True" in said
