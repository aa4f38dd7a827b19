"""The trials of a study, checked before any of them starts: models, data, fairness."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yolo_attn.ablation import arm_loss, start_weights
from yolo_attn.ablation.spec import Arm, Study
from yolo_attn.ablation.store import DONE, TRAIN, TRIAL, TrialFolder, read_json
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.slicing import require_sahi

# Arguments of an arm that change what it learns from, not only how it is built.
AUGMENTATION = (
    "hsv_h hsv_s hsv_v degrees translate scale shear perspective flipud fliplr bgr mosaic mixup "
    "cutmix copy_paste close_mosaic augmentations multi_scale rect"
).split()


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
    """

    arm: str
    seed: int
    folder: str
    train: list[str]
    epochs: int
    evaluate: dict[str, Any]
    after_crash: str
    manifest: dict[str, Any]

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
    """

    study: Study
    jobs: list[Job]
    arms: dict[str, dict[str, Any]]
    flags: list[str] = field(default_factory=list)
    images: int = 0


def make_plan(study: Study) -> Plan:
    """Check a study and list its trials; nothing is trained.

    Raises:
        YoloAttnError: a model does not build, data or weights are missing, or the finished trials
            on disk are of other versions, data or arguments.
    """
    from yolo_attn.ablation.controls import with_controls

    if any(arm.slice for arm in study.arms):
        require_sahi()
    images, digest = dataset_digest(study.data, study.split)
    if study.weights and not Path(study.weights).is_file():
        raise YoloAttnError(f"{study.name}: weights {study.weights} are not there")
    arms = {arm.name: _cost(arm, study) for arm in study.arms}
    study, arms, flags = with_controls(study, arms)
    manifest = {**environment(), "dataset": {"data": study.data, "sha256": digest}}
    jobs = [_job(study, arm, seed, manifest) for seed in study.seeds for arm in study.arms]
    flags += [*_fairness(study), *arm_loss.told(study), *start_weights.told(study)]
    _same_versions(study, jobs)
    return Plan(study, jobs, arms, flags, images)


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


def _job(study: Study, arm: Arm, seed: int, manifest: dict[str, Any]) -> Job:
    folder = study.folder / arm.name / str(seed)
    args = {**study.train, **arm.args}
    model = arm_loss.model_of(study, arm)
    train = ["yolo", "detect", "train", f"model={model}", f"data={study.data}", f"seed={seed}"]
    train += [f"pretrained={start_weights.weights_of(study, arm) or False}"]
    train += [f"{key}={value}" for key, value in args.items() if key != "device"]
    train += [f"project={folder}", f"name={TRAIN}", "exist_ok=True"]
    evaluate = {"data": study.data, "split": study.split, "protocols": list(study.protocols)}
    slices: dict[str, Any] = {}
    if arm.slice is not None:
        slices = {"slice_size": arm.slice, "slice_overlap": arm.slice_overlap}
    return Job(
        arm=arm.name,
        seed=seed,
        folder=str(folder),
        train=train,
        epochs=int(args.get("epochs", 100)),
        evaluate={**evaluate, **slices},
        after_crash=study.after_crash,
        manifest={**manifest, "slices": slices or None, "loss": arm_loss.recorded(arm)},
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


def _same_versions(study: Study, jobs: list[Job]) -> None:
    """Refuse to mix results that cannot be compared; they stay as they are."""
    for job in jobs:
        record = TrialFolder(Path(job.folder)).record
        if record.get("status") != DONE:
            continue
        where = f"{Path(job.folder) / TRIAL}"
        for name, now in (("ultralytics", job.manifest["versions"]["ultralytics"]),):
            then = record["versions"].get(name)
            if then != now:
                raise YoloAttnError(
                    f"{where}: was done with {name} {then}, this is {now}; install that one, give "
                    "the study another name, or do it again with --force (nothing was changed)"
                )
        if record["dataset"]["sha256"] != job.manifest["dataset"]["sha256"]:
            raise YoloAttnError(
                f"{where}: was done on another state of {study.data}; give the study another "
                "name, or do it again with --force (nothing was changed)"
            )
        if record.get("slices") != job.manifest["slices"]:
            raise YoloAttnError(
                f"{where}: was done with slices {record.get('slices')}, the study now says "
                f"{job.manifest['slices']}; give the arm another name, or do it again with --force "
                "(nothing was changed)"
            )
        # The folder of all studies may have been moved.
        then, now = (
            {w for w in c if not w.startswith("project=")} for c in (record["command"], job.train)
        )
        if then != now:
            changed = sorted(then ^ now)
            raise YoloAttnError(
                f"{where}: was done with other arguments ({', '.join(changed)}); give the study "
                "another name, or do it again with --force (nothing was changed)"
            )


def dataset_digest(data: str, split: str) -> tuple[int, str]:
    """Number of training images, and a digest of all image names, sizes and labels.

    Raises:
        YoloAttnError: the dataset cannot be loaded or lacks a split.
    """
    from yolo_attn.data.stats_read import label_files, list_images, load_dataset

    content = load_dataset(data)
    digest, images = hashlib.sha256(), 0
    for name in dict.fromkeys(("train", split)):
        if not content.get(name):
            raise YoloAttnError(f"{data}: has no split {name!r}")
        files = list_images(content[name], f"{data}: {name}")
        if not files:
            raise YoloAttnError(f"{data}: {name} has no images at {content[name]}")
        images = images or len(files)
        for image, label in zip(files, label_files(files)):
            digest.update(f"{name}/{Path(image).name} {Path(image).stat().st_size}\n".encode())
            if label.is_file():
                digest.update(label.read_bytes())
    digest.update(repr(sorted(dict(content["names"]).items())).encode())
    return images, digest.hexdigest()


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
