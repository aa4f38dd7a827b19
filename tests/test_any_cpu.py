"""scripts/any_cpu.py: a fresh process a path, failing ids, no path that was not really taken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .processes import python

REPO = Path(__file__).resolve().parents[1]
SCRIPT = str(REPO / "scripts" / "any_cpu.py")
sys.path.insert(0, str(REPO / "scripts"))
import any_cpu  # noqa: E402

FACTS = {
    "ATen": "AVX2",
    "OpenBLAS": ["Haswell"],
    "MKL": "AUTO",
    "oneDNN": "Intel AVX2",
    "numpy": ["X86_V3"],
    "threads": 1,
}


@pytest.fixture
def fake(tmp_path: Path) -> str:
    """A test file that fails in a process of four threads."""
    file = tmp_path / "test_fake.py"
    file.write_text(
        "import os, pytest\n"
        "def test_always(): pass\n"
        "@pytest.mark.parametrize('x', ['a - b'])\n"
        "def test_few(x): assert os.environ['OMP_NUM_THREADS'] == '1'\n"
        "def test_none_inherited(): assert 'OPENBLAS_CORETYPE' not in os.environ\n"
        "@pytest.mark.skip\n"
        "def test_never(): pass\n"
    )
    return str(file)


def test_a_line_a_path_and_the_ids_of_what_failed(fake: str) -> None:
    words = (SCRIPT, "--paths", "own", "threads", "--", fake)
    done = python(*words, ok=False, OPENBLAS_CORETYPE="Nehalem", OMP_NUM_THREADS="3")
    assert done.returncode == 1, done.stderr
    machine, left, _, own, threads, failed = done.stdout.splitlines()
    assert machine.startswith("This machine: ATen ")
    assert left == "Left out of the environment: OPENBLAS_CORETYPE=Nehalem OMP_NUM_THREADS=3"
    assert own.startswith("own       OMP_NUM_THREADS=1 | ")
    assert "| 3 passed, 0 failed, 1 skipped, " in own and "threads 1 " in own
    assert threads.startswith("threads   OMP_NUM_THREADS=4 ")
    assert "| 2 passed, 1 failed, 1 skipped, " in threads and "threads 4 " in threads
    assert failed.startswith("    ") and failed.endswith("test_fake.py::test_few[a - b]")


def test_a_run_without_a_result_is_no_success(fake: str) -> None:
    done = python(SCRIPT, "--paths", "own", "--", fake, "-k", "nothing_of_that_name", ok=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "    pytest ended with exit code 5"
    done = python(SCRIPT, "--paths", "pentium", ok=False)
    assert done.returncode == 1 and "no path 'pentium' (accepted: own, " in done.stderr


def test_settings_that_the_libraries_did_not_take_are_seen() -> None:
    taken = {
        "ATEN_CPU_CAPABILITY": "avx2", "OPENBLAS_CORETYPE": "Haswell", "MKL_CBWR": "AUTO",
        "ONEDNN_MAX_CPU_ISA": "AVX2", "NPY_DISABLE_CPU_FEATURES": "X86_V4", "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }  # fmt: skip
    assert any_cpu.ignored(taken, FACTS) == []
    assert any_cpu.ignored({"OPENBLAS_CORETYPE": "Zen"}, FACTS) == []  # the same kernels
    others = {
        "ATEN_CPU_CAPABILITY": "default", "OPENBLAS_CORETYPE": "Prescott", "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4",
        "OMP_NUM_THREADS": "4",
    }  # fmt: skip
    assert [s.split("=")[0] for s in any_cpu.ignored(others, FACTS)] == list(others)
    # Where a library is not there, it has not taken anything either.
    absent = {**FACTS, "OpenBLAS": [], "MKL": None, "oneDNN": None}
    wanted = ["OPENBLAS_CORETYPE", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"]
    assert [s.split("=")[0] for s in any_cpu.ignored(taken, absent)] == wanted


def test_a_core_that_openblas_does_not_know_is_not_in_force() -> None:
    env = {"OPENBLAS_CORETYPE": "Nonsense"}
    assert any_cpu.ignored(env, any_cpu.in_force(any_cpu.clean(**env))) == [
        "OPENBLAS_CORETYPE=Nonsense"
    ]


def test_pytest_gets_the_arguments_of_the_readme() -> None:
    assert any_cpu.readme_arguments() == ["-n", "auto"]
