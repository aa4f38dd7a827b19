"""Runs a study: what is left of it, on an executor; each trial ends up on disk or as a failure."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

from yolo_attn.ablation.executors import Executor
from yolo_attn.ablation.plan import Job, Plan, make_plan
from yolo_attn.ablation.shared_training import in_two_rounds, take_weights
from yolo_attn.ablation.spec import Study, from_dict
from yolo_attn.ablation.store import (
    DONE,
    FAILED,
    STUDY,
    TrialFolder,
    locked,
    read_json,
    write_json,
)
from yolo_attn.errors import YoloAttnError

Report = Callable[[Job, dict[str, Any]], None]


@dataclass
class Outcome:
    """What a run of a study left.

    Attributes:
        done: trials that are finished, now or before.
        failed: trials that failed, with their errors.
        busy: trials that another process is at.
        left: trials that were not asked for (`--only`) and are not finished.
    """

    done: list[Job] = field(default_factory=list)
    failed: list[tuple[Job, dict[str, Any]]] = field(default_factory=list)
    busy: list[Job] = field(default_factory=list)
    left: list[Job] = field(default_factory=list)


def with_more_seeds(study: Study, count: int) -> Study:
    """The study with this many seeds more than it has, on disk or in its file."""
    seeds = list(with_stored_seeds(study).seeds)
    new = (s for s in range(max(seeds) + count + 1) if s not in seeds)
    return replace(study, seeds=(*seeds, *(next(new) for _ in range(count))))


def with_stored_seeds(study: Study) -> Study:
    """The study with the seeds that were added to it before."""
    stored = read_json(study.folder / STUDY)
    if not stored:
        return study
    more = [s for s in stored["study"]["seeds"] if s not in study.seeds]
    return replace(study, seeds=(*study.seeds, *more))


def load_study(folder: Path) -> tuple[Study, dict[str, Any]]:
    """The study of a results folder, and the rest of study.json (flags, costs of the arms).

    Raises:
        YoloAttnError: the folder holds no study.
    """
    stored = read_json(folder / STUDY)
    if stored is None:
        raise YoloAttnError(
            f"{folder}: no {STUDY} there (expected: a folder that `yolo-attn ablate` wrote, "
            "such as runs/ablation/<study>)"
        )
    study = from_dict(stored["study"], str(folder / STUDY))
    # The folder may have been moved or copied.
    return replace(study, name=folder.resolve().name, project=str(folder.resolve().parent)), stored


def plan_study(study: Study, *, force: bool = False, only: Sequence[str] = ()) -> Plan:
    """Check a study; `force` forgets the results of the trials that `only` names (default: all).

    Raises:
        YoloAttnError: see `plan.make_plan`; a pattern of `only` names no trial.
    """
    study = with_stored_seeds(study)
    if force:
        for arm in _arm_names(study):
            for seed in study.seeds:
                if chosen(arm, seed, only):
                    _forget(TrialFolder(study.folder / arm / str(seed)))
    plan = make_plan(study)
    for pattern in only:
        if not any(chosen(job.arm, job.seed, [pattern]) for job in plan.jobs):
            arms = ", ".join(dict.fromkeys(job.arm for job in plan.jobs))
            raise YoloAttnError(f"--only {pattern}: names no trial (arms: {arms}; or ARM/SEED)")
    return plan


def chosen(arm: str, seed: int, only: Sequence[str]) -> bool:
    """Whether `only` names a trial; patterns are ARM or ARM/SEED, none means all."""
    return not only or any(
        fnmatch.fnmatch(arm, pattern) or fnmatch.fnmatch(f"{arm}/{seed}", pattern)
        for pattern in only
    )


def to_do(plan: Plan, only: Sequence[str] = ()) -> list[Job]:
    """The trials that `run_plan` will do."""
    return [
        job
        for job in plan.jobs
        if TrialFolder(Path(job.folder)).status != DONE and chosen(job.arm, job.seed, only)
    ]


def run_plan(
    plan: Plan, executor: Executor, *, only: Sequence[str] = (), report: Report | None = None
) -> Outcome:
    """Do what is left of a study.

    Args:
        plan: the checked study.
        executor: does the trials.
        only: patterns of trials to do; by default all.
        report: called for each trial that ends.

    Returns:
        What is finished, failed, busy elsewhere, or left.

    Raises:
        YoloAttnError: results cannot be written.
    """
    folder = plan.study.folder
    with locked(folder, wait=True):
        content = {"study": plan.study.as_dict(), "arms": plan.arms, "flags": plan.flags}
        write_json(folder / STUDY, content)
    outcome, todo = Outcome(), []
    for job in plan.jobs:
        if TrialFolder(Path(job.folder)).status == DONE:
            outcome.done.append(job)
        elif chosen(job.arm, job.seed, only):
            todo.append(job)
        else:
            outcome.left.append(job)

    def ended(job: Job, record: dict[str, Any]) -> None:
        if record["status"] == DONE:
            outcome.done.append(job)
        elif record["status"] == FAILED:
            outcome.failed.append((job, record["error"]))
        else:
            outcome.busy.append(job)
        if report:
            report(job, record)

    first, then = in_two_rounds(todo, plan.jobs)
    executor.execute(first, ended)
    if then:
        for job in then:
            take_weights(job, plan.jobs)
        executor.execute(then, ended)
    return outcome


def _arm_names(study: Study) -> list[str]:
    matched = [f"{study.baseline}-match-{kind}" for kind in study.match]
    return [*(arm.name for arm in study.arms), *matched]


def _forget(folder: TrialFolder) -> None:
    if not folder.path.is_dir():
        return
    with locked(folder.path) as handle:
        if handle is None:
            raise YoloAttnError(f"{folder.path}: another process is at it; wait, or end that one")
        folder.clear()
