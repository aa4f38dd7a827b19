"""How far a study is, while it runs: a view that stays in place on a terminal, lines elsewhere.

All of it is read from the trials' folders (trial.json, results.csv), so trials on other machines
and of another process that shares the study are seen as well.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from yolo_attn.ablation.plan import Job, Plan
from yolo_attn.ablation.store import DONE, RUNNING, TRAIN_LOG, TRIAL, TrialFolder
from yolo_attn.ablation.trial import results_rows
from yolo_attn.errors import YoloAttnError

LOOK = 1.0  # seconds between two looks at the folders
QUIET = 60.0  # seconds at least between two lines about the epochs of one trial
AP = "metrics/mAP50-95(B)"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Running:
    """A trial that is being trained.

    Attributes:
        job: the trial.
        number: which trial of the study it is, from 1.
        epoch: how many it has finished.
        ap: AP of the last of them on the validation split, in percent; None before the first.
        elapsed: seconds since it started, or was resumed.
        here: how many epochs it has finished in that time.
        device: where.
    """

    job: Job
    number: int
    epoch: int
    ap: float | None
    elapsed: float
    here: int
    device: str


def running(plan: Plan, since: float) -> list[Running]:
    """The trials whose records say that they run, and were written after `since` (clock time)."""
    found = []
    for number, job in enumerate(plan.jobs, 1):
        folder = TrialFolder(Path(job.folder))
        try:
            if (folder.path / TRIAL).stat().st_mtime < since:
                continue
            record = folder.record
        except (OSError, YoloAttnError):  # it is being moved
            continue
        if record.get("status") != RUNNING:
            continue
        rows = results_rows(folder)
        ap = 100 * rows[-1][AP] if rows and AP in rows[-1] else None
        elapsed = time.time() - max(since, record.get("started", since))
        before = (record.get("resumed") or [0])[-1]
        device = str(record.get("device", ""))
        found.append(Running(job, number, len(rows), ap, elapsed, len(rows) - before, device))
    return found


def seconds_left(
    plan: Plan, todo: Sequence[Job], now: Sequence[Running], places: int = 1
) -> float | None:
    """Seconds until all of `todo` is done: from finished trials, else from the epochs at hand.

    Args:
        plan: the study.
        todo: trials that are not finished, the running ones among them.
        now: the running ones.
        places: how many run at the same time.

    Returns:
        None if neither a trial nor an epoch is finished.
    """
    took: dict[str, list[float]] = {}
    for job in plan.jobs:
        record = _record(job)
        if record.get("status") == DONE and record.get("seconds"):
            took.setdefault(job.arm, []).append(record["seconds"])
    for trial in now:
        if trial.here > 0 and trial.job.arm not in took:
            rate = trial.elapsed / trial.here
            took[trial.job.arm] = [rate * trial.job.epochs]
    if not took:
        return None
    mean = {arm: sum(values) / len(values) for arm, values in took.items()}
    every = sum(mean.values()) / len(mean)
    spent = {id(trial.job): trial.elapsed for trial in now}
    left = [max(mean.get(job.arm, every) - spent.get(id(job), 0.0), 0.0) for job in todo]
    return max(sum(left) / max(min(places, len(todo)), 1), max(left, default=0.0))


def duration(seconds: float | None) -> str:
    """``about 2 h 05 min``, for a person."""
    if seconds is None:
        return "unknown until the first epoch"
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    if hours >= 48:
        return f"about {hours // 24} days {hours % 24} h"
    return f"about {hours} h {rest:02d} min" if hours else f"about {minutes} min"


def last_error(error: dict[str, Any]) -> str:
    """The line of a failure that says most: the last of its log that is not empty."""
    lines = [ESCAPES.sub("", line).strip() for line in error.get("tail") or ()]
    return next((line for line in reversed(lines) if line), str(error.get("what", "")))


def short_path(path: Path, width: int) -> str:
    """A path from here if it is below here, with its start left out where it is too long."""
    try:
        text = str(path.relative_to(Path.cwd()))
    except ValueError:
        text = str(path)
    return text if len(text) <= width else f"...{text[-(width - 3) :]}"


class View:
    """Tells how far a study is, until it is left; a context manager."""

    def __init__(self, plan: Plan, todo: Sequence[Job], places: int = 1, out: TextIO | None = None):
        """Begin with the trials that are to be done, of all those of the plan.

        Args:
            plan: the study.
            todo: what is left of it.
            places: how many trials run at the same time.
            out: where to; by default stderr, for stdout belongs to the results.
        """
        self.plan, self.places = plan, places
        self.out = sys.stderr if out is None else out
        self.left = {id(job): job for job in todo}
        self.numbers = {id(job): number for number, job in enumerate(plan.jobs, 1)}
        self.begin = time.time() - 0.01  # of files that are written from now on
        self.told: dict[int, tuple[int, float]] = {}  # trial -> epoch and time of its last line
        self.end, self.lock = threading.Event(), threading.Lock()
        self.live: Any = None

    def __enter__(self) -> View:
        """Start to look."""
        if self.out.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self.out)
            self.live = Live(console=console, auto_refresh=False, transient=True)
            self.live.start()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; on a terminal the view goes, and the lines about trials that ended stay."""
        self.end.set()
        self.thread.join()
        if self.live:
            self.live.stop()

    def ended(self, job: Job, record: dict[str, Any]) -> None:
        """Say at once how a trial ended."""
        text = f"{job.arm}/{job.seed}: {record['status']}"
        if record["status"] == DONE:
            first: dict[str, Any] = next(iter((record.get("metrics") or {}).values()), {})
            ap = (first.get("metrics") or {}).get("AP")
            text += f" in {record.get('seconds', 0.0):.0f} s"
            text += "" if ap is None else f", AP {ap:.2f}"
        elif error := record.get("error"):
            # A failure without a log's lines has no more to say than what it is.
            said = dict.fromkeys((error["what"], last_error(error)))
            text += f": {'; '.join(said)}; log: {error.get('log', '-')}"
        with self.lock:
            self.left.pop(id(job), None)
            self._say(text)

    def lines(self, width: int = 80) -> list[str]:
        """The view as text, no line longer than `width`."""
        now = running(self.plan, self.begin)
        todo = list(self.left.values())
        total = len(self.plan.jobs)
        left = duration(seconds_left(self.plan, todo, now, self.places))
        lines = [f"study {self.plan.study.name}: {total - len(todo)} of {total} done, left: {left}"]
        for trial in now:
            lines.append(f"  {self._state(trial)}")
            log = Path(trial.job.folder) / TRAIN_LOG
            lines.append(f"    log: {short_path(log, width - 9)}")
        return [line if len(line) <= width else f"{line[: width - 3]}..." for line in lines]

    def _state(self, trial: Running) -> str:
        ap = "" if trial.ap is None else f", AP {trial.ap:.2f}"
        where = f"trial {trial.number} of {len(self.plan.jobs)}"
        name = f"{trial.job.arm}/{trial.job.seed}"
        return f"{where}: {name}, epoch {trial.epoch}/{trial.job.epochs}{ap}, on {trial.device}"

    def _watch(self) -> None:
        while not self.end.wait(LOOK):
            try:
                with self.lock:
                    self._draw() if self.live else self._tell()
            except Exception:  # noqa: BLE001 - a view must never end a study
                continue

    def _draw(self) -> None:
        from rich.text import Text

        width = self.live.console.width
        self.live.update(Text("\n".join(self.lines(width))), refresh=True)

    def _tell(self) -> None:
        """A line for each trial that started, then for its epochs, at most one in `QUIET`."""
        now = running(self.plan, self.begin)
        for trial in now:
            key, moment = id(trial.job), time.monotonic()
            epoch, then = self.told.get(key, (-1, 0.0))
            if key not in self.left or trial.epoch == epoch:
                continue
            if epoch >= 0 and moment - then < QUIET and trial.epoch < trial.job.epochs:
                continue
            self.told[key] = (trial.epoch, moment)
            text = f"study {self.plan.study.name}: {self._state(trial)}"
            if epoch < 0:
                text += f", log: {Path(trial.job.folder) / TRAIN_LOG}"
            else:
                todo = list(self.left.values())
                text += f", left: {duration(seconds_left(self.plan, todo, now, self.places))}"
            self._say(text)

    def _say(self, text: str) -> None:
        if self.live:
            self.live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=self.out, flush=True)


def _record(job: Job) -> dict[str, Any]:
    try:
        return TrialFolder(Path(job.folder)).record
    except YoloAttnError:
        return {}
