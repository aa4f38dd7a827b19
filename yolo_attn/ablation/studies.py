"""Studies on disk: found again, continued, extended; never replaced by another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolo_attn.ablation.identity import RefusedError
from yolo_attn.ablation.spec import Arm, Study, from_dict
from yolo_attn.ablation.store import DONE, STUDY, TrialFolder, read_json
from yolo_attn.errors import YoloAttnError


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


def with_stored_seeds(study: Study) -> Study:
    """The study with the seeds that were added to it before."""
    stored = read_json(study.folder / STUDY)
    if not stored:
        return study
    more = [s for s in stored["study"]["seeds"] if s not in study.seeds]
    return replace(study, seeds=(*study.seeds, *more))


def continued(study: Study, *, extend: bool = False) -> Study:
    """The study with what its folder holds of it: a study may grow, it never loses anything.

    Seeds, protocols and controls of before stay. Other arms are another study.

    Args:
        study: as its author now describes it.
        extend: add the arms that the folder's study lacks, and keep those that it has.

    Raises:
        RefusedError: the folder holds a study of other arms and `extend` is false, or one whose
            controls belong to another baseline.
    """
    stored = read_json(study.folder / STUDY)
    if not stored:
        return study
    before = from_dict(stored["study"], str(study.folder / STUDY))
    old = [arm for arm in before.arms if not arm.matched]
    lost = [arm for arm in old if arm.name not in _names(study.arms)]
    more = [arm for arm in study.arms if arm.name not in _names(old)]
    if (lost or more) and not extend:
        raise RefusedError(_of_other_arms(study, lost, more))
    if extend:
        kept = {arm.name: arm for arm in study.arms}
        arms = (*(kept.get(arm.name, arm) for arm in old), *more)
        study = replace(study, arms=arms, baseline=before.baseline)
    if before.match and before.baseline != study.baseline:
        raise RefusedError(
            f"{study.folder}: its controls are of the baseline {before.baseline}, not of "
            f"{study.baseline}; give the study another name (--name; nothing was changed)"
        )
    return with_stored_seeds(
        replace(
            study,
            match=tuple(dict.fromkeys((*before.match, *study.match))),
            protocols=tuple(dict.fromkeys((*before.protocols, *study.protocols))),
        )
    )


def _names(arms: Any) -> list[str]:
    return [arm.name for arm in arms]


def _of_other_arms(study: Study, lost: list[Arm], more: list[Arm]) -> str:
    parts = [f"has {', '.join(_names(lost))}, which this one lacks"] if lost else []
    parts += [f"lacks {', '.join(_names(more))}"] if more else []
    return (
        f"{study.folder}: holds another study, which {' and '.join(parts)}; give this one another "
        "name (--name), or add the arms to that one with --extend (nothing was changed)"
    )


@dataclass(frozen=True)
class Listed:
    """A study in a list.

    Attributes:
        name: of its folder.
        folder: where it is.
        arms: their names, controls included.
        seeds: of the study.
        data: its dataset YAML.
        done: number of finished trials.
        trials: number of all.
        fault: why it cannot be read, else "".
    """

    name: str
    folder: str
    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    data: str = ""
    done: int = 0
    trials: int = 0
    fault: str = ""


def list_studies(project: Path) -> Iterator[Listed]:
    """The studies below a folder, by name; one that cannot be read is listed with the reason."""
    for file in sorted(project.glob(f"*/{STUDY}")):
        folder = file.parent
        try:
            study, _ = load_study(folder)
            every = [(arm, seed) for arm in _names(study.arms) for seed in study.seeds]
            done = [TrialFolder(folder / a / str(s)).status == DONE for a, s in every]
        except YoloAttnError as error:
            yield Listed(folder.name, str(folder), fault=str(error))
            continue
        yield Listed(
            folder.name, str(folder), tuple(_names(study.arms)), study.seeds, study.data,
            sum(done), len(every),
        )  # fmt: skip
