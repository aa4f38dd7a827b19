"""One trial from start to finish: training and evaluation as child processes, each end recorded."""

from __future__ import annotations

import csv
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_attn.ablation.plan import Job, yolo_command
from yolo_attn.ablation.store import (
    DONE,
    FAILED,
    RUNNING,
    TRAIN,
    TrialFolder,
    locked,
    read_json,
)

POLL = 0.2  # seconds between two looks at a child
TAIL = 15  # lines of a log that a failure keeps
EVALUATE = "yolo_attn.ablation.evaluate_trial"  # module of the second child
BUSY = "busy"  # another process has the trial
GPU_MEMORY = re.compile(r"\d+/\d+\s+([\d.]+)G\s")


@dataclass
class Ended:
    """How a child process ended."""

    code: int
    seconds: float
    peak_memory: int  # bytes, largest sum over the process and its children


def run_job(job: Job, device: str) -> dict[str, Any]:
    """Do a trial, or what is left of it.

    Args:
        job: the trial.
        device: as `device=` of Ultralytics.

    Returns:
        trial.json, or {"status": "busy"} if another process is at it.
    """
    folder = TrialFolder(Path(job.folder))
    with locked(folder.path) as handle:
        if handle is None:
            return {"status": BUSY}
        if folder.status == DONE:
            return folder.record
        started = folder.record.get("started", time.time())
        folder.write(
            arm=job.arm,
            seed=job.seed,
            status=RUNNING,
            started=started,
            host=socket.gethostname(),
            process=os.getpid(),
            device=device,
            command=job.train,
            **job.manifest,
        )
        if not folder.record.get("trained"):
            error = _train(job, folder, device, handle)
            if error:
                return folder.write(status=FAILED, error=error)
            folder.write(trained=True)
            folder.drop_safe_copy()
        error = _evaluate(job, folder, device, handle)
        if error:
            return folder.write(status=FAILED, error=error)
        record = folder.record
        seconds = record.get("train_seconds", 0.0) + record.get("evaluation_seconds", 0.0)
        return folder.write(
            status=DONE,
            error=None,
            seconds=seconds,
            finished=time.time(),
            metrics=read_json(folder.path / "metrics.json"),
        )


def _train(job: Job, folder: TrialFolder, device: str, handle: int) -> dict[str, Any] | None:
    """Train to the end; the failure, or None."""
    command = [*job.train, f"device={device}"]
    last = folder.restore_checkpoint() if job.after_crash == "resume" else None
    epochs = epochs_done(folder)
    if last is not None and epochs >= job.epochs:
        return None  # killed between the last epoch and our note of it
    if last is not None and epochs:
        command = ["yolo", "detect", "train", "resume", f"model={last}", f"device={device}"]
        folder.write(resumed=[*folder.record.get("resumed", []), epochs])
    else:
        shutil.rmtree(folder.path / TRAIN, ignore_errors=True)
        folder.drop_safe_copy()
    keep = folder.keep_checkpoint if job.after_crash == "resume" else None
    ended = _child(yolo_command(command), folder.path / "train.log", handle, keep)
    total = folder.record.get("train_seconds", 0.0) + ended.seconds
    folder.write(train_seconds=total)
    if ended.code or not folder.best.is_file():
        return _failure("training", ended, folder.path / "train.log")
    folder.write(
        epochs=epochs_done(folder),
        epoch_seconds=_epoch_seconds(folder),
        peak_memory=_gpu_memory(folder.path / "train.log") or ended.peak_memory,
    )
    return None


def _evaluate(job: Job, folder: TrialFolder, device: str, handle: int) -> dict[str, Any] | None:
    arguments = json.dumps({**job.evaluate, "device": device})
    command = [sys.executable, "-m", EVALUATE, str(folder.path), arguments]
    ended = _child(command, folder.path / "evaluate.log", handle, None)
    if ended.code:
        return _failure("evaluation", ended, folder.path / "evaluate.log")
    folder.write(evaluation_seconds=ended.seconds)
    return None


def _child(command: list[str], log: Path, handle: int, each_poll: Any) -> Ended:
    """Run a child that dies with us and holds the trial's lock as long as it lives."""
    begin, peak = time.monotonic(), 0
    with open(log, "ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            pass_fds=(handle,), preexec_fn=_die_with_parent,
        )  # fmt: skip
        try:
            while process.poll() is None:
                peak = max(peak, _resident(process.pid))
                if each_poll:
                    each_poll()
                time.sleep(POLL)
            if each_poll:
                each_poll()
        except BaseException:
            process.kill()
            process.wait()
            raise
    return Ended(process.returncode, time.monotonic() - begin, peak)


def _die_with_parent() -> None:
    # An orphan would go on writing into a folder that the next run takes over.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _resident(pid: int) -> int:
    import psutil

    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(p.memory_info().rss for p in family)
    except psutil.Error:
        return 0


def _failure(what: str, ended: Ended, log: Path) -> dict[str, Any]:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    how = f"signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
    return {"what": f"{what} ended with {how}", "log": str(log), "tail": lines[-TAIL:]}


def epochs_done(folder: TrialFolder) -> int:
    """Rows of results.csv."""
    return len(results_rows(folder))


def results_rows(folder: TrialFolder) -> list[dict[str, float]]:
    """results.csv as numbers (column names without spaces); empty if there is none."""
    try:
        with open(folder.path / TRAIN / "results.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError:
        return []
    out = []
    for row in rows:
        try:
            out.append({str(k).strip(): float(v) for k, v in row.items()})
        except (TypeError, ValueError):
            break  # the row that a kill cut off
    return out


def _epoch_seconds(folder: TrialFolder) -> float | None:
    """Median seconds of an epoch, its validation included; Ultralytics adds them up."""
    import statistics

    rows = results_rows(folder)
    times = [row["time"] for row in rows if "time" in row]
    steps = [b - a for a, b in zip([0.0, *times], times) if b > a]
    return statistics.median(steps) if steps else None


def _gpu_memory(log: Path) -> int | None:
    """Largest GPU_mem that the training printed, in bytes; None on the CPU."""
    text = log.read_text(encoding="utf-8", errors="replace")
    largest = max((float(value) for value in GPU_MEMORY.findall(text)), default=0.0)
    return int(largest * 1e9) if largest else None
