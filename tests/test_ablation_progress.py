"""A study that can be watched: the view, lines in a log, the estimate, Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ablation_worker import ARMS, EPOCHS, jobs_in, plan_in
from tests.processes import PATIENCE, environment
from yolo_attn.ablation import estimate, progress
from yolo_attn.ablation.executors.local import places_for
from yolo_attn.ablation.plan_table import WIDTH, continuing, print_plan
from yolo_attn.ablation.progress import View, duration, last_error, running, seconds_left
from yolo_attn.ablation.store import DONE, FAILED, INVALID, RUNNING, TrialFolder
from yolo_attn.errors import YoloAttnError

ROOT = Path(__file__).resolve().parents[1]


def set_running(plan, at: int, epochs: int, ap: float = 0.25) -> None:
    job = plan.jobs[at]
    trial = TrialFolder(Path(job.folder))
    (trial.path / "train").mkdir(parents=True)
    rows = "".join(f"{e},{e * 2.0},{ap}\n" for e in range(1, epochs + 1))
    (trial.path / "train" / "results.csv").write_text(f"epoch,time,  {progress.AP}\n{rows}")
    trial.write(status=RUNNING, started=time.time() - 10, device="cpu")


def test_the_view_says_study_trial_epoch_ap_time_left_and_log(tmp_path: Path) -> None:
    plan = plan_in(tmp_path / ("a-long-name-" * 5) / "study")
    TrialFolder(Path(plan.jobs[0].folder)).write(status=DONE, seconds=100.0)
    view = View(plan, plan.jobs[1:], out=io.StringIO())
    view.begin -= 60
    set_running(plan, 1, 2)
    lines = view.lines(80)
    assert lines[0] == "study study: 1 of 4 done, left: about 2 min"
    assert lines[1] == f"  trial 2 of 4: {ARMS[1]}/0, epoch 2/{EPOCHS}, AP 25.00, on cpu"
    assert lines[2].endswith("block/0/train.log") and all(len(line) <= 80 for line in lines)


def test_time_left_is_that_of_finished_trials_shared_among_the_places(tmp_path: Path) -> None:
    plan = plan_in(tmp_path / "study")
    assert seconds_left(plan, plan.jobs, []) is None
    for job, seconds in zip(plan.jobs, (10.0, 30.0)):
        TrialFolder(Path(job.folder)).write(status=DONE, seconds=seconds)
    assert seconds_left(plan, plan.jobs[2:], []) == pytest.approx(40)
    # Two places: not before the longest of them has ended.
    assert seconds_left(plan, plan.jobs[2:], [], places=2) == pytest.approx(30)


def test_before_a_trial_is_finished_the_epochs_at_hand_tell(tmp_path: Path) -> None:
    plan = plan_in(tmp_path / "study")
    before = time.time() - 60
    set_running(plan, 0, EPOCHS // 2)
    (now,) = running(plan, before)
    assert now.epoch == EPOCHS // 2
    left = seconds_left(plan, plan.jobs, [now])
    assert left == pytest.approx(now.elapsed * 2 * 4 - now.elapsed)


def test_a_trial_that_was_left_running_before_is_not_shown(tmp_path: Path) -> None:
    plan = plan_in(tmp_path / "study")
    set_running(plan, 0, 1)
    assert running(plan, time.time() + 1) == []


def test_a_failure_is_said_at_once_with_its_last_line(tmp_path: Path) -> None:
    plan, out = plan_in(tmp_path / "study"), io.StringIO()
    with View(plan, plan.jobs, out=out) as view:
        error = {"what": "training ended with exit code 1", "log": "x/train.log",
                 "tail": ["Trace", "\x1b[31mRuntimeError: out of memory\x1b[0m", ""]}  # fmt: skip
        view.ended(plan.jobs[0], {"status": FAILED, "error": error})
        said = out.getvalue()
    assert "baseline/0: failed: training ended with exit code 1; RuntimeError: out of mem" in said
    assert "x/train.log" in said and "\x1b" not in said
    assert last_error({"what": "lost", "tail": []}) == "lost"
    with View(plan, plan.jobs, out=out) as view:
        view.ended(plan.jobs[1], {"status": INVALID, "error": {"what": "no result", "tail": []}})
    assert out.getvalue().count("no result") == 1, "a failure without a log says it once"


def test_a_log_file_gets_plain_lines_and_not_one_for_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = plan_in(tmp_path / "study"), io.StringIO()
    view = View(plan, plan.jobs, out=out)
    view.begin -= 60
    set_running(plan, 0, 1)
    trial = TrialFolder(Path(plan.jobs[0].folder))
    for epochs in (1, 2, 3, EPOCHS):
        rows = "".join(f"{e},{e * 2.0},0.5\n" for e in range(1, epochs + 1))
        table = trial.path / "train" / "results.csv"
        table.write_text(f"epoch,time,  {progress.AP}\n{rows}")
        view._tell()
    lines = out.getvalue().splitlines()
    assert len(lines) == 2, "the start and the end, for a minute has not passed"
    assert "epoch 1/4" in lines[0] and "train.log" in lines[0]
    assert "epoch 4/4" in lines[1] and "left:" in lines[1]
    monkeypatch.setattr(progress, "QUIET", 0.0)
    view.told.clear()
    view._tell()
    assert len(out.getvalue().splitlines()) == 3 and "\x1b" not in out.getvalue()


def test_the_plan_fits_80_columns_and_says_time_and_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plan = plan_in(tmp_path / "study")
    TrialFolder(Path(plan.jobs[0].folder)).write(status=DONE, seconds=3600.0)
    (Path(plan.jobs[0].folder) / "big").write_bytes(bytes(5_000_000))
    plan.arms[ARMS[1]]["parameters"] = 100_000_000
    found = estimate.estimate(plan, plan.jobs[1:], ["cpu"])
    trials = [
        {"arm": j.arm, "seed": j.seed, "status": "to do", "chosen": j.seed == 0} for j in plan.jobs
    ]
    print_plan(plan, trials, found, ["cpu"])
    text = capsys.readouterr().out
    assert all(len(line) <= WIDTH for line in text.splitlines())
    assert "about 3 h 00 min (from 1 finished trial)" in " ".join(text.split())
    # One trial as large as the finished one, two of 100 M parameters in half precision, twice.
    assert found.disk == pytest.approx(5e6 + 2 * (4e8 + estimate.PICTURES), rel=0.01)
    assert "disk: about 817 MB more" in text and "free in" in text
    print_plan(plan, trials, estimate.estimate(plan, [], ["cpu"]), ["cpu"])
    assert "trials; nothing is left to do" in capsys.readouterr().out


def test_without_a_finished_trial_one_step_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in(tmp_path / "study")
    object.__setattr__(plan, "images", 10)
    monkeypatch.setattr(estimate, "_step", lambda *_: 0.5)
    found = estimate.estimate(plan, plan.jobs, ["cpu"])
    steps = EPOCHS * 10 * 0.5
    assert 4 * steps < found.seconds < 4 * (2 * steps + estimate.START)
    assert "one training step" in found.basis


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "unknown"), (5, "about 5 s"), (600, "about 10 min"), (7500, "about 2 h 05 min"),
     (4 * 86400, "about 4 days 0 h")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds).startswith(text)


def test_the_continuing_command_neither_forces_nor_adds_seeds_again() -> None:
    words = ["ablate", "my study.yaml", "--force", "--add-seeds", "2", "--add-seeds=2", "lr0=0.1"]
    assert continuing(words) == "yolo-attn ablate 'my study.yaml' lr0=0.1"


def test_devices_of_a_study_are_checked_before_its_first_trial() -> None:
    assert places_for("cpu, cpu", None) == ["cpu", "cpu"]
    assert places_for(None, [0, 1], here=False) == ["0,1"], "one place, both for each trial"
    assert places_for("0,1", None, here=False) == ["0", "1"]
    assert places_for(None, "None")
    with pytest.raises(YoloAttnError, match="device='cuda9'"):
        places_for(None, "cuda9", here=False)
    with pytest.raises(YoloAttnError, match="--devices=77: torch sees"):
        places_for("77", None)


@pytest.mark.parametrize("devices", ["cpu", "a,b"])
def test_ctrl_c_once_ends_the_trial_and_the_next_run_goes_on(tmp_path: Path, devices: str) -> None:
    folder = tmp_path / "study"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ablation_worker", "study", str(folder), "resume", devices],
        cwd=ROOT, env=environment(PYTHONPATH=path, STUB_EPOCH_SECONDS="0.5"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    first = TrialFolder(Path(jobs_in(folder, "resume")[0].folder))
    deadline = time.monotonic() + PATIENCE
    while not (first.path / "safe").is_dir() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) != 0
    assert first.status == RUNNING and first.record["train_seconds"] > 0
    assert not leftovers(folder)


def leftovers(folder: Path) -> list[int]:
    """Processes that still have something to do with a study."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if any(str(folder) in word for word in words) and process.pid != os.getpid():
            found.append(process.pid)
    return found
