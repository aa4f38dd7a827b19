"""Runs a study: what is left of it, on an executor; each trial ends up on disk or as a failure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

from yolo_attn.ablation.decisions import chosen
from yolo_attn.ablation.executors import Executor
from yolo_attn.ablation.identity import RefusedError, plain
from yolo_attn.ablation.plan import Job, Plan, make_plan
from yolo_attn.ablation.shared_training import in_two_rounds, take_weights
from yolo_attn.ablation.spec import Study
from yolo_attn.ablation.store import (
    DONE,
    FAILED,
    INVALID,
    STUDY,
    TrialFolder,
    locked,
    put_aside,
    read_json,
    write_json,
)
from yolo_attn.ablation.studies import continued, with_stored_seeds
from yolo_attn.errors import YoloAttnError

Report = Callable[[Job, dict[str, Any]], None]


@dataclass
class Outcome:
    """What a run of a study left.

    Attributes:
        done: trials that are finished, now or before.
        failed: trials that failed, or whose data changed meanwhile, with their errors.
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


def plan_study(
    study: Study,
    *,
    force: bool = False,
    re_evaluate: bool = False,
    extend: bool = False,
    only: Sequence[str] = (),
) -> Plan:
    """Check a study against itself and what is on disk; nothing is touched.

    Args:
        study: the study.
        force: trials that `only` names (default: all) will be put aside and trained anew.
        re_evaluate: finished trials may be evaluated again without training.
        extend: the study on disk gets the arms that it lacks, and keeps its own.
        only: patterns of trials.

    Raises:
        YoloAttnError: see `plan.make_plan`; a pattern of `only` names no trial.
        RefusedError: the folder holds a study of other arms, or trials of another training.
    """
    study = continued(study, extend=extend)
    plan = make_plan(study, force=force, re_evaluate=re_evaluate, only=only)
    for pattern in only:
        if not any(chosen(job.arm, job.seed, [pattern]) for job in plan.jobs):
            arms = ", ".join(dict.fromkeys(job.arm for job in plan.jobs))
            raise YoloAttnError(f"--only {pattern}: names no trial (arms: {arms}; or ARM/SEED)")
    return plan


def to_do(plan: Plan, only: Sequence[str] = ()) -> list[Job]:
    """The trials that `run_plan` will do."""
    aside = {str(path) for path in plan.aside}
    return [job for job in plan.jobs if chosen(job.arm, job.seed, only) and _is_open(job, aside)]


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
    with locked(folder, wait=True) as handle:
        if handle is None:
            raise YoloAttnError(f"{folder}: was moved meanwhile; run the command again")
        _unchanged(plan)
        put_aside(folder, plan.aside)
        content = {"study": plan.study.as_dict(), "arms": plan.arms, "flags": plan.flags}
        write_json(folder / STUDY, content)
    outcome, todo = Outcome(), []
    for job in plan.jobs:
        if not _is_open(job):
            outcome.done.append(job)
        elif chosen(job.arm, job.seed, only):
            todo.append(job)
        else:
            outcome.left.append(job)

    def ended(job: Job, record: dict[str, Any]) -> None:
        if record["status"] == DONE:
            outcome.done.append(job)
        elif record["status"] in (FAILED, INVALID):
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


def _is_open(job: Job, aside: Collection[str] = ()) -> bool:
    finished = TrialFolder(Path(job.folder)).status == DONE
    return not finished or job.again or job.folder in aside


def _unchanged(plan: Plan) -> None:
    """Raise if another process has changed the study since it was planned."""
    now = read_json(plan.study.folder / STUDY)
    if now is None or now == plan.stored or now["study"] == plain(plan.study.as_dict()):
        return
    raise RefusedError(
        f"{plan.study.folder}: another process has changed the study meanwhile; run the command "
        "again (nothing was changed)"
    )
