"""A real study through the command line: three arms, two seeds, killed in the middle, run again."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.processes import environment, python
from yolo_attn.ablation.store import DONE, TrialFolder
from yolo_attn.data.synthetic import make_smallshapes

pytestmark = pytest.mark.slow
ARMS = ("yolov8n", "yolov8n-gc", "yolov8n-se")
SEEDS = (0, 1)
ENTRY = "from ultralytics.cfg import entrypoint; entrypoint()"
ROOT = Path(__file__).resolve().parents[1]


def command(data: Path, name: str, *more: str) -> list[str]:
    models = ",".join(f"{arm}.yaml" for arm in ARMS)
    return [
        "-m", "yolo_attn.cli", "ablate", "--models", models, "--seeds", "2", "--data", str(data),
        "--name", name, "--devices", "cpu", "epochs=2", "imgsz=96", "batch=6", "workers=0",
        "plots=False", *more,
    ]  # fmt: skip


def trials(folder: Path) -> dict[str, TrialFolder]:
    return {f"{a}/{s}": TrialFolder(folder / a / str(s)) for a in ARMS for s in SEEDS}


def curve(trial: Path) -> list[dict[str, str]]:
    """results.csv without the clock."""
    with open(trial / "train" / "results.csv", newline="") as file:
        return [
            {k: v for k, v in row.items() if k.strip() != "time"} for row in csv.DictReader(file)
        ]


def path() -> str:
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


def test_killed_in_the_middle_and_run_again(tmp_path: Path) -> None:
    make_smallshapes(tmp_path / "shapes", image_size=96, train_images=12, val_images=6)
    data = tmp_path / "shapes" / "data.yaml"
    folder = tmp_path / "runs" / "ablation" / "ci"
    process = subprocess.Popen(
        [sys.executable, *command(data, "ci")],
        cwd=tmp_path, env=environment(PYTHONPATH=path()),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    third = folder / ARMS[2] / "0" / "train" / "weights" / "last.pt"
    deadline = time.monotonic() + 900
    while not third.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {n: t for n, t in trials(folder).items() if t.status == DONE}
    assert set(before) == {f"{ARMS[0]}/0", f"{ARMS[1]}/0"}
    stamps = {n: (t.path / "trial.json").stat().st_mtime_ns for n, t in before.items()}

    done = python(*command(data, "ci"), cwd=tmp_path, PYTHONPATH=path())
    assert all(t.status == DONE for t in trials(folder).values())
    for n, t in before.items():
        assert (t.path / "trial.json").stat().st_mtime_ns == stamps[n]
    assert "yolov8n-se" in done.stdout and "detectable" in done.stdout
    with open(folder / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["arm"] for r in rows} == set(ARMS) and all(r["trials"] == "2" for r in rows)
    record = trials(folder)[f"{ARMS[1]}/1"].record
    assert record["epochs"] == 2 and record["versions"]["ultralytics"]
    assert record["peak_memory"] > 1e8 and record["epoch_seconds"] > 0
    for t in trials(folder).values():
        with np.load(t.path / "predictions.npz") as arrays:
            assert len(arrays["paths"]) == 6 and len(arrays["det_boxes"])

    # The command that trial.json names, typed by hand, trains the same model.
    bare = [w.replace(str(folder), str(tmp_path / "bare")) for w in record["command"]]
    python("-c", ENTRY, *bare[1:], f"device={record['device']}", cwd=tmp_path, PYTHONPATH=path())
    assert curve(tmp_path / "bare" / ARMS[1] / "1") == curve(folder / ARMS[1] / "1")

    again = python(*command(data, "ci", "--json"), cwd=tmp_path, PYTHONPATH=path())
    assert len(json.loads(again.stdout)["comparisons"]) == 2 * 6 and not again.stderr.count("done")
