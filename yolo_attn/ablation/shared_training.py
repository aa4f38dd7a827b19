"""Arms that differ in slicing alone share one training: the later one takes the weights.

Nothing else may share: the same model twice, trained twice, is how a study measures its own noise.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from yolo_attn.ablation.plan import Job
from yolo_attn.ablation.store import DONE, TRAIN, TRAINED, TrialFolder, locked

TAKEN = ("weights/best.pt", "results.csv")
TOLD = ("epochs", "epoch_seconds", "peak_memory", "resumed")  # entries of trial.json that go along


def in_two_rounds(todo: Sequence[Job], jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    """The trials that train, and those that may take another trial's weights afterwards.

    Args:
        todo: what is left of the study.
        jobs: all trials of the study, in order.
    """
    leaders: dict[tuple[str, ...], Job] = {}
    # Of equal trainings an unsliced one leads, else the first.
    for job in sorted(jobs, key=_is_sliced):
        leaders.setdefault(_training(job), job)
    follow = [j for j in todo if _is_sliced(j) and leaders[_training(j)] is not j]
    return [j for j in todo if not any(j is other for other in follow)], follow


def take_weights(job: Job, jobs: Sequence[Job]) -> str:
    """Give a trial the weights of a finished one with the same training.

    Returns:
        "arm/seed" of that one; "" if there is none, or the trial is trained or busy: it then
        trains as any other.
    """
    folder = TrialFolder(Path(job.folder))
    with locked(folder.path) as handle:
        if handle is None or folder.status == DONE or folder.trained:
            return ""
        for other in jobs:
            source = TrialFolder(Path(other.folder))
            same = other is not job and _training(other) == _training(job)
            if same and source.status == DONE and source.best.is_file():
                break
        else:
            return ""
        shutil.rmtree(folder.path / TRAIN, ignore_errors=True)
        folder.drop_safe_copy()
        for name in TAKEN:
            place = folder.path / TRAIN / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if (source.path / TRAIN / name).is_file():
                shutil.copy2(source.path / TRAIN / name, place)
        told = {key: value for key, value in source.record.items() if key in TOLD}
        name = f"{other.arm}/{other.seed}"
        identity = {"training": (source.record.get("identity") or {}).get("training", {})}
        folder.write(weights_of=name, train_seconds=0.0, identity=identity, **told)
        (folder.path / TRAINED).touch()  # last: only now there is nothing to train
        return name


def _is_sliced(job: Job) -> bool:
    return "slice_size" in job.evaluate


def _training(job: Job) -> tuple[str, ...]:
    """Everything that decides the weights: the command without the folder of its results."""
    return tuple(word for word in job.train if not word.startswith("project="))
