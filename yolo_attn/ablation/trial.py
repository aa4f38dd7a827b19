"""One trial from start to finish: a child process trains and evaluates, each end is recorded."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any, Callable

from yolo_attn.ablation import child
from yolo_attn.ablation.plan import Job
from yolo_attn.ablation.store import (
    DONE,
    EVALUATE_LOG,
    FAILED,
    RUNNING,
    TRAIN,
    TRAIN_LOG,
    TRAINED,
    TRAINER,
    TrialFolder,
    locked,
    read_json,
)

POLL = 0.2  # seconds between two looks at a child
TAIL = 15  # lines of a log that a failure keeps
CHILD = "yolo_attn.ablation.trial_process"
BUSY = "busy"  # another process has the trial
GPU_MEMORY = re.compile(r"\d+/\d+\s+([\d.]+)G\s")


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
        child.end_marked(handle)  # of a run whose study and guard were killed
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
        command = _train_command(job, folder, device)
        if command is None and "epochs" not in folder.record:
            _record_training(folder, 0.0, None)  # killed before we recorded it
        error = _train_and_evaluate(job, folder, device, handle, command)
        if error:
            return folder.write(status=FAILED, error=error)
        record = folder.record
        seconds = record.get("train_seconds", 0.0) + record.get("evaluation_seconds", 0.0)
        metrics = read_json(folder.path / "metrics.json")
        return folder.write(
            status=DONE,
            error=None,
            seconds=seconds,
            finished=time.time(),
            # Not there in a trial that an older release evaluated and was killed after.
            blocks=metrics.pop("blocks", []),
            metrics=metrics,
            **_trainer(folder),
        )


def _train_command(job: Job, folder: TrialFolder, device: str) -> list[str] | None:
    """The `yolo` command that trains, or trains on; None if the training has ended."""
    if folder.trained:
        return None
    last = folder.restore_checkpoint() if job.after_crash == "resume" else None
    epochs = epochs_done(folder)
    if last is not None and epochs >= job.epochs:
        (folder.path / TRAINED).touch()  # killed between the last epoch and the child's note of it
        return None
    if last is not None and epochs:
        folder.write(resumed=[*folder.record.get("resumed", []), epochs])
        return ["yolo", "detect", "train", "resume", f"model={last}", f"device={device}"]
    shutil.rmtree(folder.path / TRAIN, ignore_errors=True)
    (folder.path / TRAINED).unlink(missing_ok=True)
    folder.drop_safe_copy()
    return [*job.train, f"device={device}"]


def _train_and_evaluate(
    job: Job, folder: TrialFolder, device: str, handle: int, train: list[str] | None
) -> dict[str, Any] | None:
    """One child does both, for Python, torch and Ultralytics start but once; the failure, or None.

    What the training was is recorded as soon as it ends, so that a kill after it loses nothing.
    """
    options = {"train": train, "evaluate": {**job.evaluate, "device": device}}
    command = [sys.executable, "-m", CHILD, str(folder.path), json.dumps(options)]
    begin = time.monotonic()
    training = train is not None

    def look(peak_memory: int) -> None:
        nonlocal begin, training
        if not training:
            return
        if folder.trained:
            training = False
            _record_training(folder, time.monotonic() - begin, peak_memory)
            begin = time.monotonic()
        elif job.after_crash == "resume":
            folder.keep_checkpoint()

    def broken() -> None:
        if training:
            spent = folder.record.get("train_seconds", 0.0) + time.monotonic() - begin
            folder.write(train_seconds=spent)

    try:
        code = _child(command, folder.path / TRAIN_LOG, handle, look)
    except KeyboardInterrupt:
        if training and job.after_crash == "resume":
            folder.keep_checkpoint()
        broken()
        raise
    if code:
        broken()
        what, log = ("training", TRAIN_LOG) if training else ("evaluation", EVALUATE_LOG)
        return _failure(what, code, folder.path / log)
    folder.write(evaluation_seconds=time.monotonic() - begin)
    return None


def _trainer(folder: TrialFolder) -> dict[str, Any]:
    """Versions, commit and platform of the process that trained, where it noted them."""
    return read_json(folder.path / TRAINER) or {}


def _record_training(folder: TrialFolder, seconds: float, peak_memory: int | None) -> None:
    folder.write(
        train_seconds=folder.record.get("train_seconds", 0.0) + seconds,
        epochs=epochs_done(folder),
        epoch_seconds=_epoch_seconds(folder),
        peak_memory=_gpu_memory(folder.path / TRAIN_LOG) or peak_memory,
    )
    folder.drop_safe_copy()


def _child(command: list[str], log: Path, handle: int, look: Callable[[int], None]) -> int:
    """`child.run` at our pace."""
    return child.run(command, log, handle, look, POLL)


def _failure(what: str, code: int, log: Path) -> dict[str, Any]:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
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
