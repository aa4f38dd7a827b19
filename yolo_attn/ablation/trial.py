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
from yolo_attn.ablation.checkpoint_facts import train_arguments, write_arguments
from yolo_attn.ablation.file_hashes import hash_file
from yolo_attn.ablation.identity import (
    Reader,
    Source,
    evaluation_differences,
    training_differences,
)
from yolo_attn.ablation.plan import Job
from yolo_attn.ablation.store import (
    DONE,
    EVALUATE_LOG,
    FAILED,
    INVALID,
    RUNNING,
    TRAIN,
    TRAIN_LOG,
    TRAINED,
    TRAINER,
    TrialFolder,
    locked,
    read_json,
)
from yolo_attn.errors import YoloAttnError

POLL = 0.2  # seconds between two looks at a child
TAIL = 15  # lines of a log that a failure keeps
CHILD = "yolo_attn.ablation.trial_process"
BUSY = "busy"  # another process has the trial
AGAIN = "evaluation.new"  # folder of an evaluation that is not yet the trial's
RESUME = ("yolo", "detect", "train", "resume")
OPTIMIZER = re.compile(r"optimizer:\S* (\w+)\(lr=([\d.e+-]+), momentum=([\d.e+-]+)\)")
GPU_MEMORY = re.compile(r"\d+/\d+\s+([\d.]+)G\s")


def run_job(job: Job, device: str) -> dict[str, Any]:
    """Do a trial, or what is left of it.

    What it depends on is compared with the plan before it starts and after it has ended: a trial
    whose data changed meanwhile is marked invalid.

    Args:
        job: the trial.
        device: as `device=` of Ultralytics.

    Returns:
        trial.json; {"status": "busy"} if another process is at it; a failure that trial.json does
        not know if it is not the trial that was planned any more, and then nothing was touched.
    """
    folder = TrialFolder(Path(job.folder))
    with locked(folder.path) as handle:
        if handle is None:
            return {"status": BUSY}
        child.end_marked(handle)  # of a run whose study and guard were killed
        record = folder.record
        if record.get("status") == DONE and not job.again:
            return record
        if differ := not_as_planned(job, record):
            what = f"not started, it is not what was planned: {'; '.join(differ)}"
            return {"status": FAILED, "error": {"what": what, "log": str(folder.path), "tail": []}}
        if record.get("status") == DONE:
            return _evaluate_again(job, folder, device, handle)
        folder.write(
            arm=job.arm,
            seed=job.seed,
            status=RUNNING,
            started=record.get("started", time.time()),
            host=socket.gethostname(),
            process=os.getpid(),
            device=device,
            command=job.train,
            # A broken trial of a release that recorded none: nobody knows what it began with.
            identity=record.get("identity", {}) if record else job.identity,
            **job.manifest,
        )
        command = _train_command(job, folder, device)
        if command is None and "epochs" not in folder.record:
            _record_training(folder, 0.0, None)  # killed before we recorded it
        error = _train_and_evaluate(job, folder, device, handle, command)
        changed = changes_since(job)
        if any(changed.values()):
            return folder.write(status=INVALID, changed=changed, error=_changed(changed, folder))
        if error:
            return folder.write(status=FAILED, error=error)
        record = folder.record
        seconds = record.get("train_seconds", 0.0) + record.get("evaluation_seconds", 0.0)
        metrics = read_json(folder.path / "metrics.json")
        return folder.write(
            status=DONE,
            error=None,
            changed=None,
            seconds=seconds,
            finished=time.time(),
            # Not there in a trial that an older release evaluated and was killed after.
            blocks=metrics.pop("blocks", []),
            metrics=metrics,
            arguments=_arguments(job, folder),
            **_trainer(folder),
            **_evaluated_as(job, folder),
        )


def _evaluate_again(job: Job, folder: TrialFolder, device: str, handle: int) -> dict[str, Any]:
    """Evaluate a finished trial; it stays finished as it was until the new numbers are there."""
    place = folder.path / AGAIN
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    options = {**job.evaluate, "device": device, "into": str(place)}
    begin = time.monotonic()
    command = _child_command(folder, {"train": None, "evaluate": options})
    code = _child(command, folder.path / TRAIN_LOG, handle, lambda _: None)
    if code:
        error = _failure("evaluation", code, folder.path / EVALUATE_LOG)
        return {"status": FAILED, "error": error}
    if any((changed := changes_since(job)).values()):
        return {"status": FAILED, "error": _changed(changed, folder)}
    for file in place.iterdir():
        os.replace(file, folder.path / file.name)
    place.rmdir()
    metrics = read_json(folder.path / "metrics.json")
    return folder.write(
        evaluation_seconds=time.monotonic() - begin,
        evaluated=time.time(),
        blocks=metrics.pop("blocks", []),
        metrics=metrics,
        **_evaluated_as(job, folder),
    )


def _evaluated_as(job: Job, folder: TrialFolder) -> dict[str, Any]:
    """The identity with the evaluation that has just been made; nothing without a planned one."""
    if not job.identity:
        return {}
    checkpoint = hash_file(folder.best)
    evaluation = {**job.identity["evaluation"], "checkpoint": checkpoint}
    return {"identity": {**folder.record.get("identity", {}), "evaluation": evaluation}}


def not_as_planned(job: Job, record: dict[str, Any]) -> list[str]:
    """Why this is not the trial that the plan saw, a phrase each; empty if it is."""
    reader = Reader()
    differ = [text for texts in changes_since(job, reader).values() for text in texts]
    then = (record.get("identity") or {}).get("training")
    if then and job.identity and not differ:
        differ = training_differences(then, reader.training(Source(**job.source), then))
    return list(dict.fromkeys(differ))


def changes_since(job: Job, reader: Reader | None = None) -> dict[str, list[str]]:
    """What a trial depends on and has changed since it was planned.

    Returns:
        "training" and "evaluation" -> a phrase each; empty lists if nothing has.
    """
    if not job.identity:
        return {"training": [], "evaluation": []}
    reader, source = reader or Reader(), Source(**job.source)
    training, evaluation = job.identity["training"], job.identity["evaluation"]
    try:
        return {
            "training": training_differences(training, reader.training(source, training)),
            "evaluation": evaluation_differences(evaluation, reader.evaluation(source, evaluation)),
        }
    except YoloAttnError as error:  # the data set or the model is not there any more
        return {"training": [str(error)], "evaluation": []}


def _changed(changed: dict[str, list[str]], folder: TrialFolder) -> dict[str, Any]:
    texts = list(dict.fromkeys(text for found in changed.values() for text in found))
    what = f"no result, for while it ran: {'; '.join(texts)}"
    return {"what": what, "log": str(folder.path), "tail": []}


def _arguments(job: Job, folder: TrialFolder) -> dict[str, Any]:
    """The arguments that were asked for, those that the checkpoint holds, and the optimizer."""
    found = OPTIMIZER.findall((folder.path / TRAIN_LOG).read_text("utf-8", errors="replace"))
    name, lr, momentum = found[-1] if found else ("", "nan", "nan")
    return {
        "asked": job.source.get("args", {}),
        "effective": train_arguments(folder.best),
        "optimizer": {"name": name, "lr": float(lr), "momentum": float(momentum)}
        if found
        else None,
    }


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
        # Wherever the study was moved to: a checkpoint names the folder that it was written in.
        if write_arguments(last, {"project": str(folder.path), "save_dir": str(last.parents[1])}):
            folder.write(resumed=[*folder.record.get("resumed", []), epochs])
            data = [f"data={job.source['data']}"] if job.source else []
            return [*RESUME, f"model={last}", *data, f"device={device}"]
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
    command = _child_command(folder, options)
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


def _child_command(folder: TrialFolder, options: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", CHILD, str(folder.path), json.dumps(options)]


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
