"""What becomes of each trial: kept, resumed, evaluated again, trained anew, or refused."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from yolo_attn.ablation import older_trials
from yolo_attn.ablation.file_hashes import ABSENT, hash_file
from yolo_attn.ablation.identity import (
    Reader,
    RefusedError,
    Source,
    evaluation_differences,
    training_differences,
)
from yolo_attn.ablation.store import DONE, INVALID, TrialFolder
from yolo_attn.evaluation.protocols import PROTOCOLS

if TYPE_CHECKING:
    from yolo_attn.ablation.plan import Job

NEW, KEPT, RESUMED = "to do", "finished", "resumed"
AGAIN, ANEW = "evaluated again", "put aside and trained anew"
GROUPS = 3  # of trials with the same fault that a message names


@dataclass
class Decisions:
    """What becomes of the trials of a study.

    Attributes:
        states: "arm/seed" -> `NEW`, `KEPT`, `RESUMED`, `AGAIN` or `ANEW`.
        aside: folders of trials to put aside first.
        older: "arm/seed" of kept and resumed trials that recorded no identity.
    """

    states: dict[str, str] = field(default_factory=dict)
    aside: list[Path] = field(default_factory=list)
    older: list[str] = field(default_factory=list)


def chosen(arm: str, seed: int, only: Sequence[str]) -> bool:
    """Whether `only` names a trial; patterns are ARM or ARM/SEED, none means all."""
    return not only or any(
        fnmatch.fnmatch(arm, pattern) or fnmatch.fnmatch(f"{arm}/{seed}", pattern)
        for pattern in only
    )


def decide(
    jobs: Sequence[Job],
    reader: Reader,
    *,
    force: bool = False,
    re_evaluate: bool = False,
    only: Sequence[str] = (),
) -> Decisions:
    """Compare what is on disk with what the study says; nothing is touched.

    Args:
        jobs: all trials of the study, with their identity of now.
        reader: has read those.
        force: trials that `only` names are put aside and trained anew, whatever they are.
        re_evaluate: finished trials that `only` names may be evaluated again without training.
        only: patterns, see `chosen`.

    Raises:
        RefusedError: a trial is of another training or evaluation; the message names the parts.
    """
    found = Decisions()
    trained: dict[str, list[str]] = {}
    evaluated: dict[str, list[str]] = {}
    digests: dict[tuple[str, str], str] = {}

    def old_digest(data: str, split: str) -> str:
        if (data, split) not in digests:
            digests[data, split] = older_trials.dataset_digest(data, split)[1]
        return digests[data, split]

    for job in jobs:
        name, folder = f"{job.arm}/{job.seed}", TrialFolder(Path(job.folder))
        mine, record = chosen(job.arm, job.seed, only), folder.record
        if folder.empty:
            found.states[name] = NEW
        elif (force and mine) or _is_worthless(record):
            found.states[name] = ANEW
            found.aside.append(folder.path)
        elif differ := _trained_otherwise(job, record, reader, old_digest):
            trained.setdefault("; ".join(differ), []).append(name)
        elif record["status"] != DONE:
            found.states[name] = RESUMED
        elif not (differ := _evaluated_otherwise(job, record, reader)):
            found.states[name] = KEPT
        elif re_evaluate and mine and not (reason := _no_weights(folder, record)):
            found.states[name] = AGAIN
        else:
            differ += [reason] if re_evaluate and mine else []
            evaluated.setdefault("; ".join(differ), []).append(name)
        if found.states.get(name) in (KEPT, RESUMED, AGAIN) and not _training_of(record):
            found.older.append(name)
    if trained or evaluated:
        raise RefusedError(_refusal(jobs, trained, evaluated, re_evaluate))
    return found


def _is_worthless(record: Mapping[str, Any]) -> bool:
    """No status, or trained while its data changed: neither a result nor a start for one."""
    status = record.get("status")
    return not status or (status == INVALID and bool((record.get("changed") or {}).get("training")))


def _training_of(record: Mapping[str, Any]) -> dict[str, Any]:
    return (record.get("identity") or {}).get("training") or {}


def _trained_otherwise(
    job: Job, record: Mapping[str, Any], reader: Reader, old_digest: Callable[[str, str], str]
) -> list[str]:
    source = Source(**job.source)
    if then := _training_of(record):
        return training_differences(then, reader.training(source, then))
    split = str(job.evaluate.get("split", "val"))
    slices = job.manifest.get("slices")
    digest = old_digest(source.data, split)
    return older_trials.differences(record, job.train, slices, source.data, digest)


def _evaluated_otherwise(job: Job, record: Mapping[str, Any], reader: Reader) -> list[str]:
    then = (record.get("identity") or {}).get("evaluation")
    if then:
        return evaluation_differences(then, reader.evaluation(Source(**job.source), then))
    known = [name for name in record.get("metrics") or {} if name in PROTOCOLS]
    missing = [name for name in job.evaluate["protocols"] if name not in known]
    return [f"not evaluated with protocol {', '.join(missing)}"] if missing else []


def _no_weights(folder: TrialFolder, record: Mapping[str, Any]) -> str:
    """Why a finished trial cannot be evaluated again; "" if it can."""
    known = ((record.get("identity") or {}).get("evaluation") or {}).get("checkpoint")
    now = hash_file(folder.best)
    if now == ABSENT:
        return f"its weights {folder.best} are not there any more"
    return "" if known in (None, now) else f"{folder.best} is not the checkpoint that it trained"


def _refusal(
    jobs: Sequence[Job],
    trained: Mapping[str, list[str]],
    evaluated: Mapping[str, list[str]],
    re_evaluate: bool,
) -> str:
    study = Path(jobs[0].folder).parents[1]
    if trained:
        return (
            f"{study}: not the trials that the study now describes: {_groups(trained)}; give the "
            "study another name (--name), or put them aside and train anew with --force (nothing "
            "was changed)"
        )
    way = "--force trains them anew" if re_evaluate else "--re-evaluate does it without training"
    return (
        f"{study}: finished, but evaluated otherwise: {_groups(evaluated)}; {way} (nothing was "
        "changed)"
    )


def _groups(faults: Mapping[str, list[str]]) -> str:
    parts = []
    for fault, names in list(faults.items())[:GROUPS]:
        more = f" and {len(names) - GROUPS} more" if len(names) > GROUPS else ""
        parts.append(f"{', '.join(names[:GROUPS])}{more}: {fault}")
    rest = sum(map(len, list(faults.values())[GROUPS:]))
    return " | ".join(parts) + (f" | and {rest} more trials" if rest else "")
