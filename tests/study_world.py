"""A small world in which studies run: models, labels, weights; a stub trainer that reads them.

``python -m tests.study_world FOLDER JSON`` is the child of a trial, as
`yolo_attn.ablation.trial_process` is. The stub mixes all that it reads, epoch by epoch, into a
chain of hashes, so a number tells exactly what it was made of; `expected` computes it anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import pickle
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

MODEL = """nc: 1
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, {block}, []]
head:
  - [[2], 1, Detect, [nc]]
"""
ARMS = ("a", "b", "c")
EPOCH = float(os.environ.get("STUDY_WORLD_EPOCH", "0.02"))  # seconds
WARM: list[bool] = []
DEFAULTS = {"lr0": "0.01", "epochs": "100"}


def sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def checkpoint(variant: int) -> bytes:
    """A model that Ultralytics can load; the same bytes each time."""
    import torch
    from ultralytics import YOLO

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.yaml"
        file.write_text(MODEL.format(block="SE"))
        torch.manual_seed(variant)
        net = YOLO(str(file))
        net.save(str(file.with_suffix(".pt")))
        return file.with_suffix(".pt").read_bytes()


@dataclass(frozen=True)
class Spec:
    """What a user asks for."""

    arms: tuple[str, ...] = ("a", "b")
    seeds: int = 1
    protocols: tuple[str, ...] = ("coco",)
    lr0: float | None = None
    epochs: int = 3
    weights: bool = False
    data: str = "data.yaml"


@dataclass
class World:
    """Folders and files, and the way to start a study in them."""

    root: Path
    spec: Spec = field(default_factory=Spec)
    project: str = "runs"
    epoch: float = EPOCH
    variants: dict[tuple[str, int], int] = field(default_factory=dict)
    real: bool = False  # train with Ultralytics, not with the stub

    def __post_init__(self) -> None:
        from PIL import Image

        for split, count in (("train", 2), ("val", 1)):
            for i in range(count):
                image = self.root / "set" / "images" / split / f"{i}.png"
                image.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), (i, 0, 0)).save(image)
                self.label(split, i, 0)
        (self.root / "set" / "data.yaml").write_text(
            "train: images/train\nval: images/val\nnames: {0: ship}\n"
        )
        for arm in ARMS:
            self.model(arm, 0)
        self.weights(0)
        self._warm()

    def _warm(self) -> None:
        """Import and build here, once, what every forked study would import and build anew."""
        if not WARM:
            WARM.append(True)
            from yolo_attn.ablation.executors import local  # noqa: F401
            from yolo_attn.ablation.runner import plan_study

            plan_study(self.study())

    def model(self, arm: str, variant: int) -> None:
        # The first rows are alike, so that the weights fit; "b" ends as no other does.
        block = (("SE", "CBAM", "SE"), ("EMA", "SE", "EMA"))[arm == "b"][variant]
        text = MODEL.format(block=block)
        note = "# a comment changes nothing\n" if variant == 2 else ""
        (self.root / f"{arm}.yaml").write_text(note + text)

    def label(self, split: str, i: int, variant: int) -> None:
        file = self.root / "set" / "labels" / split / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(("0 0.5 0.5 0.2 0.2\n", "0 0.5 0.5 0.3 0.2\n", "")[variant])
        self.variants[split, i] = variant

    def weights(self, variant: int) -> None:
        (self.root / "weights.pt").write_bytes(checkpoint(variant))

    def sidecar(self, variant: int) -> None:
        file = self.root / "set" / "annotations" / "val.json"
        if variant == 0:
            file.unlink(missing_ok=True)
            return
        file.parent.mkdir(exist_ok=True)
        box = [4, 4, 4 + variant, 4]
        row = {"id": 1, "image_id": 0, "category_id": 1, "bbox": box, "area": box[2] * box[3]}
        content = {
            "images": [{"id": 0, "file_name": "0.png", "width": 16, "height": 16}],
            "annotations": [{**row, "iscrowd": 0}],
            "categories": [{"id": 1, "name": "ship"}],
        }
        file.write_text(json.dumps(content))

    def study(self, name: str = "s"):
        from yolo_attn.ablation.spec import from_dict

        s = self.spec
        train = {"epochs": s.epochs, **({} if s.lr0 is None else {"lr0": s.lr0})}
        return from_dict(
            {
                "name": name,
                "arms": {arm: str(self.root / f"{arm}.yaml") for arm in s.arms},
                "seeds": s.seeds,
                "data": str(self.root / "set" / s.data),
                "protocols": list(s.protocols),
                "train": {**train, "imgsz": 32, "batch": 2, "workers": 0, "plots": False},
                "weights": str(self.root / "weights.pt") if s.weights else None,
                "project": str(self.root / self.project),
            }
        )

    def start(self, **options: Any) -> int:
        """Run the study in a forked process; its pid."""
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            os.setpgid(0, 0)
            code = self._run(**options)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(code)

    def _run(self, **options: Any) -> int:
        from yolo_attn.ablation import trial
        from yolo_attn.ablation.executors.local import LocalExecutor
        from yolo_attn.ablation.runner import plan_study, run_plan
        from yolo_attn.errors import YoloAttnError

        if not self.real:
            trial.CHILD, trial.POLL = "tests.study_world", 0.01
        os.environ.update(STUDY_WORLD=str(self.root), STUDY_WORLD_EPOCH=str(self.epoch))
        try:
            outcome = run_plan(plan_study(self.study(), **options), LocalExecutor(["cpu"]))
        except YoloAttnError as error:
            (self.root / "said.txt").write_text(str(error))
            return error.exit_code
        faults = [f"{job.arm}/{job.seed}: {error['what']}" for job, error in outcome.failed]
        (self.root / "said.txt").write_text("\n".join(faults))
        return 3 if outcome.failed or outcome.busy else 0

    def settle(self) -> None:
        """Wait until nothing is left of a study that was killed: its trials' locks are free."""
        for lock in self.root.rglob(".lock"):
            with open(lock, "a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)

    def said(self) -> str:
        return (self.root / "said.txt").read_text()


def ended(pid: int, kill_after: float | None = None) -> int:
    """Wait for a study, or kill it; its exit code, negative for a signal."""
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def truth_of(root: Path) -> dict[str, Any]:
    """What an evaluation reads."""
    sidecar = root / "set" / "annotations" / "val.json"
    labels = [p.read_text() for p in sorted((root / "set" / "labels" / "val").glob("*.txt"))]
    return {"labels": labels, "sidecar": sidecar.read_text() if sidecar.is_file() else None}


def labels_of(root: Path) -> dict[str, str]:
    """What an epoch reads."""
    files = sorted((root / "set" / "labels").rglob("*.txt"))
    return {f.relative_to(root).as_posix(): f.read_text() for f in files}


def beginning(options: dict[str, str]) -> str:
    """The chain before the first epoch: model, weights, arguments, seed."""
    import yaml

    weights = options["pretrained"]
    return sha(
        {
            "model": yaml.safe_load(Path(options["model"]).read_text()),
            "weights": None if weights == "False" else digest_of(Path(weights)),
            "args": {k: float(options.get(k, v)) for k, v in DEFAULTS.items()},
            "seed": options["seed"],
        }
    )


def step(chain: str, epoch: int, labels: dict[str, str]) -> tuple[str, float]:
    """The chain after an epoch, and its fitness."""
    chain = sha([chain, epoch, labels])
    return chain, int(chain[0], 16) / 16  # few values, so that equal ones occur


def number(chain: str, truth: dict[str, Any], protocol: str) -> float:
    return int(sha([chain, truth, protocol])[:8], 16) / 2**32


def expected(start: str, epochs: int, labels: dict[str, str]) -> str:
    """The chain of best.pt after an undisturbed training."""
    chain, best, found = start, None, start
    for epoch in range(epochs):
        chain, fitness = step(chain, epoch, labels)
        if not best or best <= fitness:
            best, found = fitness, chain
    return found


def read_checkpoint(file: Path) -> dict[str, Any]:
    with zipfile.ZipFile(file) as archive:
        return pickle.loads(archive.read("archive/data.pkl"))


def _write_slowly(file: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content))
        archive.writestr("archive/padding", bytes(3000))
    whole = buffer.getvalue()
    with open(file, "wb") as out:  # in place, as Ultralytics does
        for at in range(0, len(whole), 1200):
            out.write(whole[at : at + 1200])
            out.flush()
            time.sleep(EPOCH / 10)


def train(words: list[str]) -> None:
    """The stub of `yolo detect train`."""
    root = Path(os.environ["STUDY_WORLD"])
    options = dict(word.partition("=")[::2] for word in words if "=" in word)
    if "resume" in words:
        state = read_checkpoint(Path(options["model"]))
        args = state["train_args"]
        folder, epochs, chain = Path(args["save_dir"]), args["epochs"], state["chain"]
        first, best = state["epoch"] + 1, state["best_fitness"]
    else:
        folder, epochs = Path(options["project"]) / "train", int(options["epochs"])
        chain, first, best = beginning(options), 0, None
        args = {"epochs": epochs, "save_dir": str(folder), "project": options["project"],
                "lr0": float(options.get("lr0", DEFAULTS["lr0"]))}  # fmt: skip
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    table = folder / "results.csv"
    if not table.exists():
        table.write_text("epoch,time\n")
    for epoch in range(first, epochs):
        labels = labels_of(root)
        time.sleep(EPOCH)
        chain, fitness = step(chain, epoch, labels)
        if not best or best < fitness:
            best = fitness
        with open(table, "a") as file:
            file.write(f"{epoch + 1},{0.1 * epoch}\n")
        state = {"epoch": epoch, "best_fitness": best, "train_metrics": {"fitness": fitness},
                 "train_args": args, "chain": chain}  # fmt: skip
        _write_slowly(folder / "weights" / "last.pt", state)
        if best == fitness:
            _write_slowly(folder / "weights" / "best.pt", state)
    for name in ("last.pt", "best.pt"):  # stripped, as at the end of a training
        state = read_checkpoint(folder / "weights" / name)
        _write_slowly(folder / "weights" / name, {**state, "epoch": -1, "best_fitness": None})


def evaluate(trial: Any, options: dict[str, Any]) -> None:
    from yolo_attn.ablation.store import write_json

    root = Path(os.environ["STUDY_WORLD"])
    chain, truth = read_checkpoint(trial.best)["chain"], truth_of(root)
    time.sleep(EPOCH)
    metrics = {p: {"metrics": {"AP": number(chain, truth, p)}} for p in options["protocols"]}
    write_json(Path(options.get("into") or trial.path) / "metrics.json", {**metrics, "blocks": []})


def alone(folder: Path, work: Callable[[], None]) -> None:
    """Do some work, and leave a mark if another process works in this folder."""
    with open(folder / "stub.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (Path(os.environ["STUDY_WORLD"]) / "COLLISION").write_text(str(folder))
        work()


def changed(spec: Spec, **more: Any) -> Spec:
    return replace(spec, **more)


if __name__ == "__main__":
    from yolo_attn.ablation.trial_process import run_child

    place = Path(sys.argv[1])
    alone(place, lambda: run_child(lambda command: train(command[3:]), evaluate))
