"""A study whose training is a stub: seconds instead of hours, with checkpoints that can be torn.

``python -m tests.ablation_worker study FOLDER AFTER_CRASH`` runs the study; otherwise it is the
child of a trial, as `yolo_attn.ablation.trial_process`. A stub's weights are a chain of hashes over
its epochs, so a lost, a repeated and a wrongly resumed epoch all change the final table.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import zipfile
from pathlib import Path

from yolo_attn.explain.use_table import BlockUse

EPOCHS = 4
ARMS = ("baseline", "block")
SEEDS = (0, 1)
IMAGES = 20
BLOCKS = [BlockUse(10, "NonLocal", "P5", None, 0.002, 0.004)]


def jobs_in(folder: Path, after_crash: str):
    from yolo_attn.ablation.plan import Job

    manifest = {
        "versions": {"ultralytics": "0", "torch": "0", "yolo_attn": "0"},
        "commit": None,
        "dataset": {"data": "d.yaml", "sha256": "0"},
    }
    return [
        Job(
            arm=arm,
            seed=seed,
            folder=str(folder / arm / str(seed)),
            train=["yolo", "detect", "train", f"model={arm}.yaml", f"seed={seed}",
                   f"project={folder / arm / str(seed)}"],
            epochs=EPOCHS,
            evaluate={"arm": arm, "seed": seed},
            after_crash=after_crash,
            manifest=manifest,
        )
        for seed in SEEDS
        for arm in ARMS
    ]  # fmt: skip


def plan_in(folder: Path, after_crash: str = "resume"):
    from yolo_attn.ablation.plan import Plan
    from yolo_attn.ablation.spec import Arm, Study

    study = Study(
        name=folder.name,
        arms=tuple(Arm(arm, f"{arm}.yaml") for arm in ARMS),
        baseline=ARMS[0],
        seeds=SEEDS,
        data="d.yaml",
        protocols=("coco",),
        draws=100,
        after_crash=after_crash,
        project=str(folder.parent),
    )
    costs = {arm: {"parameters": 1, "gflops": 1.0, "blocks": []} for arm in ARMS}
    return Plan(study, jobs_in(folder, after_crash), costs)


def run_study(folder: Path, after_crash: str = "resume", devices=("cpu",)):
    from yolo_attn.ablation import trial
    from yolo_attn.ablation.executors.local import LocalExecutor
    from yolo_attn.ablation.runner import run_plan

    trial.CHILD = "tests.ablation_worker"
    trial.POLL = 0.02
    return run_plan(plan_in(folder, after_crash), LocalExecutor(devices))


def train(words: list[str]) -> None:
    """The stub of `yolo detect train`: writes last.pt in place and slowly, as Ultralytics may."""
    options = dict(word.partition("=")[::2] for word in words)
    if "resume" in words:
        last = Path(options["model"])
        with zipfile.ZipFile(last) as archive:
            state = json.loads(archive.read("state"))
        folder = last.parents[1]
    else:
        folder = Path(options["project"]) / "train"
        state = {"epoch": 0, "chain": f"{options['model']} {options['seed']}"}
        if (folder.parent / "fail").exists():
            sys.exit("a stub that was told to fail")
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    table = folder / "results.csv"
    if not table.exists():
        table.write_text("epoch,time\n")
    while state["epoch"] < EPOCHS:
        time.sleep(float(os.environ.get("STUB_EPOCH_SECONDS", "0.05")))
        state["epoch"] += 1
        state["chain"] = hashlib.sha256(f"{state['chain']} {state['epoch']}".encode()).hexdigest()
        with open(table, "a") as file:
            file.write(f"{state['epoch']},{0.1 * state['epoch']}\n")
        draft = folder / "draft"
        with zipfile.ZipFile(draft, "w") as archive:
            archive.writestr("state", json.dumps(state))
            archive.writestr("padding", bytes(3000))
        whole = draft.read_bytes()
        for name in ("last.pt", "best.pt"):
            with open(folder / "weights" / name, "wb") as file:
                for at in range(0, len(whole), 1000):
                    file.write(whole[at : at + 1000])
                    file.flush()
                    time.sleep(0.01)


def evaluate(trial, options: dict) -> None:
    import numpy as np

    from tests.ablation_records import World
    from yolo_attn.ablation.store import write_json
    from yolo_attn.evaluation.records import save_records

    folder = trial.path
    with zipfile.ZipFile(trial.best) as archive:
        state = json.loads(archive.read("state"))
    assert state["epoch"] == EPOCHS
    world = World(np.random.default_rng(0), IMAGES)
    world.rng = np.random.default_rng(int(state["chain"][:12], 16))
    save_records(folder / "records.npz", {"coco": world.trial(0.2)})
    metrics = {"coco": {"metrics": {"AP": 0.0}, "per_class": {}}}
    write_json(folder / "metrics.json", {**metrics, "blocks": [b.as_dict() for b in BLOCKS]})


if __name__ == "__main__":
    if sys.argv[1] == "study":
        devices = sys.argv[4].split(",") if len(sys.argv) > 4 else ("cpu",)
        outcome = run_study(Path(sys.argv[2]), sys.argv[3], devices)
        sys.exit(0 if len(outcome.done) == len(ARMS) * len(SEEDS) else 3)
    from yolo_attn.ablation.trial_process import run_child

    run_child(lambda command: train(command[3:]), evaluate)
