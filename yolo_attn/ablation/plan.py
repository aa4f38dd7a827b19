"""The trials of a study, checked before any of them starts: models, data, fairness."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from yolo_attn.ablation import arm_loss, start_weights
from yolo_attn.ablation.decisions import AGAIN, decide
from yolo_attn.ablation.identity import Reader, Source, digest
from yolo_attn.ablation.spec import Arm, Study
from yolo_attn.ablation.store import DONE, STUDY, TRAIN, TRIAL, TrialFolder, read_json
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.slicing import require_sahi

# Arguments of an arm that change what it learns from, not only how it is built.
AUGMENTATION = (
    "hsv_h hsv_s hsv_v degrees translate scale shear perspective flipud fliplr bgr mosaic mixup "
    "cutmix copy_paste close_mosaic augmentations multi_scale rect"
).split()

CLASSES = ("single_cls", "classes")  # arguments that change which classes there are


@dataclass(frozen=True)
class Job:
    """One trial as plain data, so that another process or machine can do it.

    Attributes:
        arm: name of the arm.
        seed: seed of the training.
        folder: where its results go.
        train: the `yolo` command, without the device.
        epochs: how many it trains.
        evaluate: arguments of `evaluate_trial`.
        after_crash: see `spec.Study`.
        manifest: what trial.json records beside: versions, commit, dataset, environment.
        source: what its identity is read from, an `identity.Source`.
        identity: "training" and "evaluation": the parts as the plan read them; empty: not checked.
        again: evaluate it again although it is finished.
    """

    arm: str
    seed: int
    folder: str
    train: list[str]
    epochs: int
    evaluate: dict[str, Any]
    after_crash: str
    manifest: dict[str, Any]
    source: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    again: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """A checked study.

    Attributes:
        study: with its controls added.
        jobs: all trials; for each seed the arms follow each other.
        arms: arm -> parameters, GFLOPs and blocks.
        flags: what a reader of the report should know, one sentence each.
        images: number of training images.
        states: "arm/seed" -> what becomes of a trial, in the words of `decisions`.
        aside: folders of trials that are put aside before anything is trained.
        stored: study.json as the plan found it.
    """

    study: Study
    jobs: list[Job]
    arms: dict[str, dict[str, Any]]
    flags: list[str] = field(default_factory=list)
    images: int = 0
    states: dict[str, str] = field(default_factory=dict)
    aside: list[Path] = field(default_factory=list)
    stored: Any = None


def make_plan(
    study: Study, *, force: bool = False, re_evaluate: bool = False, only: Sequence[str] = ()
) -> Plan:
    """Check a study and list its trials; nothing is trained and no trial is touched.

    Args:
        study: the study.
        force: see `decisions.decide`, as the other two.
        re_evaluate: likewise.
        only: likewise.

    Raises:
        YoloAttnError: a model does not build, data or weights are missing.
        RefusedError: trials on disk are of another model, data, versions or arguments.
    """
    from yolo_attn.ablation.controls import with_controls

    if any(arm.slice for arm in study.arms):
        require_sahi()
        for key in CLASSES:
            if study.train.get(key) not in (None, False):
                raise YoloAttnError(
                    f"{study.name}: {key}={study.train[key]} does not go with an arm that predicts "
                    "slices (leave out one of the two)"
                )
    reader = Reader()
    images = [reader.images(study.data, split) for split in dict.fromkeys(("train", study.split))]
    if study.weights and not Path(study.weights).is_file():
        raise YoloAttnError(f"{study.name}: weights {study.weights} are not there")
    arms = {arm.name: _cost(arm, study) for arm in study.arms}
    study, arms, flags = with_controls(study, arms)
    manifest = environment()
    jobs = [_job(study, arm, seed, manifest, reader) for seed in study.seeds for arm in study.arms]
    flags += [*_fairness(study), *arm_loss.told(study), *start_weights.told(study)]
    found = decide(jobs, reader, force=force, re_evaluate=re_evaluate, only=only)
    if found.older:
        flags.append(
            f"{len(found.older)} trials of an older release, which did not record what model, "
            f"weights and data they were made with; its own checks pass: {', '.join(found.older)}"
        )
    jobs = [replace(job, again=found.states[f"{job.arm}/{job.seed}"] == AGAIN) for job in jobs]
    stored = read_json(study.folder / STUDY)
    return Plan(study, jobs, arms, flags, images[0], found.states, found.aside, stored)


def _cost(arm: Arm, study: Study) -> dict[str, Any]:
    from yolo_attn.zoo import describe

    imgsz = study.train.get("imgsz", 640)
    try:
        config = describe(
            arm_loss.model_of(study, arm), max(imgsz) if isinstance(imgsz, (list, tuple)) else imgsz
        )
    except YoloAttnError as error:
        raise YoloAttnError(f"{study.name}: arm {arm.name!r} does not build: {error}") from None
    return {"parameters": config.parameters, "gflops": config.gflops, "blocks": config.blocks}


def _job(study: Study, arm: Arm, seed: int, manifest: dict[str, Any], reader: Reader) -> Job:
    folder = study.folder / arm.name / str(seed)
    args = {**study.train, **arm.args}
    model = arm_loss.model_of(study, arm)
    train = ["yolo", "detect", "train", f"model={model}", f"data={study.data}", f"seed={seed}"]
    weights = start_weights.weights_of(study, arm)
    train += [f"pretrained={weights or False}"]
    train += [f"{key}={value}" for key, value in args.items() if key != "device"]
    train += [f"project={folder}", f"name={TRAIN}", "exist_ok=True"]
    evaluate: dict[str, Any] = {
        "data": study.data,
        "split": study.split,
        "protocols": list(study.protocols),
        # What the training saw as its classes is what is compared.
        **{key: args[key] for key in CLASSES if args.get(key) not in (None, False)},
    }
    slices: dict[str, Any] = {}
    if arm.slice is not None:
        slices = {"slice_size": arm.slice, "slice_overlap": arm.slice_overlap}
    evaluate.update(slices)
    given = {key: value for key, value in args.items() if key != "device"}
    source = Source(model, weights, study.data, seed, given, evaluate)
    identity = {"training": reader.training(source), "evaluation": reader.evaluation(source)}
    dataset = {"data": study.data, "sha256": digest(identity["training"]["data"])}
    return Job(
        arm=arm.name,
        seed=seed,
        folder=str(folder),
        train=train,
        epochs=int(args.get("epochs", 100)),
        evaluate=evaluate,
        after_crash=study.after_crash,
        manifest={
            **manifest,
            "dataset": dataset,
            "slices": slices or None,
            "loss": arm_loss.recorded(arm),
        },
        source=source.as_dict(),
        identity=identity,
    )


def _fairness(study: Study) -> list[str]:
    """What the arms do not share; what would leave no comparison was refused with the study."""
    flags = []
    for arm in study.arms:
        for key, value in arm.args.items():
            what = "augmentation" if key in AUGMENTATION else "training argument"
            flags.append(f"arm {arm.name} has its own {what} {key}={value}")
    if study.train.get("time"):
        flags.append("the budget is hours (time=), so slower arms see fewer epochs")
    if study.train.get("deterministic") is False:
        flags.append("deterministic=False: the same seed may give another result")
    return flags


def environment() -> dict[str, Any]:
    """Versions, commit and machine, as the manifest records them."""
    import numpy
    import torch
    import ultralytics

    import yolo_attn

    return {
        "versions": {
            "yolo_attn": yolo_attn.__version__,
            "ultralytics": ultralytics.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "commit": _commit(),
        "platform": platform.platform(),
    }


def _commit() -> str | None:
    """Commit of the checkout that this package runs from, with "+" if it was changed."""
    here = Path(__file__).resolve().parent
    if not shutil.which("git"):
        return None
    run = [
        subprocess.run(["git", "-C", str(here), *args], capture_output=True, text=True)
        for args in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    ]
    if run[0].returncode:
        return None
    return run[0].stdout.strip() + ("+" if run[1].stdout.strip() else "")


def estimated_seconds(plan: Plan) -> float | None:
    """Time of the trials to come on one device, from those that are done; None without any."""
    done: dict[str, list[float]] = {}
    for job in plan.jobs:
        record = read_json(Path(job.folder) / TRIAL) or {}
        if record.get("status") == DONE:
            done.setdefault(job.arm, []).append(record["seconds"])
    if not done:
        return None
    every = [value for values in done.values() for value in values]
    total = 0.0
    for job in plan.jobs:
        if TrialFolder(Path(job.folder)).status != DONE:
            known = done.get(job.arm, every)
            total += sum(known) / len(known)
    return total
