"""Nothing of a trial outlives its study, and nobody else gets the trial before that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.processes import PATIENCE, environment
from yolo_attn.ablation import child
from yolo_attn.ablation.guard import MARK, end_all
from yolo_attn.ablation.store import locked

ROOT = Path(__file__).resolve().parents[1]
# As a training on two GPUs: a launcher whose ranks have sessions of their own, and no lock.
TRAINING = """
import subprocess, sys, time
from pathlib import Path
rank = "import sys, time; time.sleep(600)"
launcher = f"import subprocess, sys; rank = [sys.executable, '-c', {rank!r}, {sys.argv[1]!r}];"
launcher += "[subprocess.Popen(rank, start_new_session=True) for _ in range(2)][0].wait()"
launch = subprocess.Popen([sys.executable, "-c", launcher, sys.argv[1]], start_new_session=True)
Path(sys.argv[1], "ready").touch()
launch.wait()
"""
STUDY = """
import sys
from pathlib import Path
from yolo_attn.ablation import child
from yolo_attn.ablation.store import locked
folder = Path(sys.argv[1])
with locked(folder) as handle:
    command = [sys.executable, "-c", sys.argv[2], str(folder)]
    child.run(command, folder / "log", handle, lambda _: None, 0.1)
"""


def of(folder: Path) -> dict[int, str]:
    """Processes that name a folder, but the study itself: number -> the start of its command."""
    found = {}
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if str(folder) in words and STUDY not in words:
            found[process.pid] = " ".join(words)[:200]
    return found


def start(folder: Path) -> subprocess.Popen:
    """A study at a trial: guard, training, launcher and two ranks."""
    folder.mkdir(exist_ok=True)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    study = subprocess.Popen(
        [sys.executable, "-c", STUDY, str(folder), TRAINING], env=environment(PYTHONPATH=path),
        start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: len(of(folder)) == 5, study)
    return study


def wait_for(condition, study: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + PATIENCE / 10
    while not condition():
        assert time.monotonic() < deadline and (study is None or study.poll() is None)
        time.sleep(0.05)


def guard_of(study: subprocess.Popen) -> psutil.Process:
    return psutil.Process(study.pid).children()[0]


@pytest.mark.parametrize("how", ["KILL", "TERM", "INT", "HUP"])
def test_a_killed_study_leaves_no_grandchild_and_the_lock_is_held_until_then(
    tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "trial"
    study = start(folder)
    study.send_signal(getattr(signal, f"SIG{how}"))
    study.wait(PATIENCE)
    with locked(folder, wait=True):
        assert not of(folder), "the lock was free before"


@pytest.mark.parametrize("who", ["training", "guard"])
def test_a_killed_training_or_guard_leaves_nothing_either(tmp_path: Path, who: str) -> None:
    folder = tmp_path / "trial"
    study = start(folder)
    guard = guard_of(study)
    (guard if who == "guard" else guard.children()[0]).kill()
    assert study.wait(PATIENCE) == 0, "the study goes on with its other trials"
    assert not of(folder)


def test_what_a_killed_study_and_guard_left_is_ended_by_the_next_run(tmp_path: Path) -> None:
    folder = tmp_path / "trial"
    study = start(folder)
    guard = guard_of(study)
    study.send_signal(signal.SIGSTOP)  # so that it does not see the guard go
    guard.kill()
    study.kill()
    study.wait(PATIENCE)
    wait_for(lambda: len(of(folder)) == 3)  # the launcher and its ranks: nobody is left to end them
    with locked(folder, wait=True) as handle:
        assert handle is not None and len(child.end_marked(handle)) == 3
    assert not of(folder)


def test_the_exit_code_and_the_signal_of_the_training_reach_the_study(tmp_path: Path) -> None:
    with locked(tmp_path) as handle:
        assert handle is not None
        for code, text in ((0, "pass"), (7, "sys.exit(7)"), (-9, "os.kill(os.getpid(), 9)"),
                           (-15, "os.kill(os.getpid(), 15)")):  # fmt: skip
            command = [sys.executable, "-c", f"import os, sys; {text}"]
            assert child.run(command, tmp_path / "log", handle, lambda _: None, 0.05) == code


def test_memory_is_that_of_the_training_without_its_guard(tmp_path: Path) -> None:
    seen: list[int] = []
    code = "x = bytearray(200_000_000); import time; time.sleep(1.5)"
    with locked(tmp_path) as handle:
        assert handle is not None
        child.run([sys.executable, "-c", code], tmp_path / "log", handle, seen.append, 0.05)
    assert 2e8 < seen[-1] < 2.4e8


def test_other_trials_and_we_ourselves_are_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, "mine")
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, MARK: "other"}
    ) as other:
        assert end_all("mine", descendants=False) == []
        assert other.poll() is None
        other.kill()
