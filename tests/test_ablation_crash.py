"""Kill -9 at random moments: what is finished stays, the rest is done again, the table is equal."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ablation_worker import ARMS, EPOCHS, SEEDS, jobs_in, run_study
from tests.processes import PATIENCE, environment
from yolo_attn.ablation.statistics import compare_arms
from yolo_attn.ablation.store import DONE, FAILED, STUDY, TrialFolder, locked, read_json
from yolo_attn.ablation.trial import BUSY, epochs_done, run_job
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.records import load_records

ROOT = Path(__file__).resolve().parents[1]


def table(folder: Path) -> list[dict]:
    """The comparisons, from the match records on disk."""
    records = {
        arm: {s: load_records(folder / arm / str(s) / "records.npz")["coco"] for s in SEEDS}
        for arm in ARMS
    }
    return [c.as_dict() for c in compare_arms(records, ARMS[0], ["AP50"], draws=100)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("undisturbed") / "study"
    outcome = run_study(folder)
    assert len(outcome.done) == len(ARMS) * len(SEEDS)
    return table(folder)


def start(folder: Path, after_crash: str, **env: str) -> subprocess.Popen:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "tests.ablation_worker", "study", str(folder), after_crash],
        cwd=ROOT, env=environment(PYTHONPATH=path, **env),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def done_trials(folder: Path) -> dict[str, int]:
    """Finished trials and when their trial.json was written."""
    return {
        job.folder: (Path(job.folder) / "trial.json").stat().st_mtime_ns
        for job in jobs_in(folder, "resume")
        if TrialFolder(Path(job.folder)).status == DONE
    }


def killed_until_done(folder: Path, kills: int, after_crash: str, seed: int) -> int:
    """Start, kill after a random time, start again ...; how often epochs went backwards."""
    rng = random.Random(seed)
    finished: dict[str, int] = {}
    most: dict[str, int] = {}
    lost = 0
    for kill in range(kills + 1):
        process = start(folder, after_crash)
        if kill < kills:
            time.sleep(rng.uniform(0.2, 1.2))
            process.send_signal(signal.SIGKILL)
            process.wait()
        else:
            _, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, errors
        now = done_trials(folder)
        assert all(now.get(name) == stamp for name, stamp in finished.items()), "touched"
        finished = now
        for job in jobs_in(folder, after_crash):
            trial = TrialFolder(Path(job.folder))
            lost += epochs_done(trial) < most.get(job.folder, 0) - 1
            most[job.folder] = epochs_done(trial)
    return lost


@pytest.mark.parametrize("after_crash", ["resume", "restart"])
def test_killed_and_run_again_the_table_is_that_of_an_undisturbed_run(
    tmp_path: Path, undisturbed: list[dict], after_crash: str
) -> None:
    folder = tmp_path / "study"
    lost = killed_until_done(folder, 5, after_crash, seed=1)
    assert table(folder) == undisturbed
    assert after_crash == "restart" or lost == 0
    for job in jobs_in(folder, after_crash):
        assert epochs_done(TrialFolder(Path(job.folder))) == EPOCHS
        leftover = [p.name for p in Path(job.folder).iterdir() if p.name.startswith("safe")]
        assert not leftover


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_many_kills(tmp_path: Path, undisturbed: list[dict], seed: int) -> None:
    folder = tmp_path / "study"
    killed_until_done(folder, 15, "resume", seed)
    assert table(folder) == undisturbed


def test_no_orphan_goes_on_training(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    # Long epochs: on a busy machine, too, it is killed in the middle.
    process = start(folder, "resume", STUB_EPOCH_SECONDS="0.5")
    trial = TrialFolder(folder / ARMS[0] / "0")
    deadline = time.monotonic() + PATIENCE
    while not epochs_done(trial) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(trial.path, wait=True):  # the child held it, too, until it died
        first = epochs_done(trial)
        time.sleep(1)
        assert 0 < first == epochs_done(trial) < EPOCHS
    process.stderr.close()


def test_two_processes_share_a_study(tmp_path: Path, undisturbed: list[dict]) -> None:
    folder = tmp_path / "study"
    both = [start(folder, "resume") for _ in range(2)]
    codes = []
    for process in both:
        process.communicate(timeout=PATIENCE)
        codes.append(process.returncode)
    assert set(codes) <= {0, 3}  # 3: the other one was still at a trial
    assert table(folder) == undisturbed
    for job in jobs_in(folder, "resume"):
        assert TrialFolder(Path(job.folder)).record["seconds"] > 0


def test_a_trial_that_another_process_has_is_left_alone(tmp_path: Path) -> None:
    job = jobs_in(tmp_path / "study", "resume")[0]
    with locked(Path(job.folder)) as handle:
        assert handle is not None
        assert run_job(job, "cpu") == {"status": BUSY}
    assert TrialFolder(Path(job.folder)).status == ""


def test_a_full_disk_is_said_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "study"
    run_study(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*.json")}
    (folder / ARMS[1] / "1" / "trial.json").unlink()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("yolo_attn.ablation.store.os.fsync", full)
    with pytest.raises(YoloAttnError, match="No space left on device.*finished is kept"):
        run_study(folder)
    monkeypatch.undo()
    assert not [p for p in folder.rglob(".*.json.*")], "a draft is left"
    assert all(p.read_bytes() == b for p, b in before.items() if p.is_file())
    assert len(run_study(folder).done) == 4


@pytest.mark.parametrize("devices", [("cpu",), ("a", "b", "c")])
def test_a_trial_that_fails_is_recorded_and_the_others_go_on(
    tmp_path: Path, devices: tuple[str, ...]
) -> None:
    folder = tmp_path / "study"
    bad = folder / ARMS[1] / "0"
    bad.mkdir(parents=True)
    (bad / "fail").touch()
    outcome = run_study(folder, devices=devices)
    assert len(outcome.done) == 3
    ((job, error),) = outcome.failed
    assert (job.arm, job.seed) == (ARMS[1], 0)
    assert "exit code 1" in error["what"] and "told to fail" in error["tail"][-1]
    assert TrialFolder(bad).status == FAILED
    (bad / "fail").unlink()
    outcome = run_study(folder)
    assert len(outcome.done) == 4 and not outcome.failed
    assert read_json(folder / STUDY)["study"]["seeds"] == list(SEEDS)
