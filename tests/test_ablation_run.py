"""Real studies through the command line: three arms, two seeds; killed and run again; on Ray."""

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

from tests.processes import PATIENCE, environment, python
from yolo_attn.ablation.store import DONE, TrialFolder
from yolo_attn.data.synthetic import make_smallshapes

pytestmark = pytest.mark.slow
ARMS = ("yolov8n", "yolov8n-gc", "yolov8n-se")
SEEDS = (0, 1)
ENTRY = "from ultralytics.cfg import entrypoint; entrypoint()"
ROOT = Path(__file__).resolve().parents[1]
MEASURED = ("latency_ms", "latency_p95_ms", "peak_memory", "epoch_seconds")
CLUSTER = """
import subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
for _ in range(2):
    cluster.add_node(num_cpus=1)
code = subprocess.call([sys.executable, *sys.argv[1:], "--address", cluster.address])
cluster.shutdown()
sys.exit(code)
"""


def command(cwd: Path, name: str, *more: str) -> list[str]:
    models = ",".join(f"{arm}.yaml" for arm in ARMS)
    return [
        "-m", "yolo_attn.cli", "ablate", "--models", models, "--seeds", "2",
        "--data", str(cwd / "shapes" / "data.yaml"), "--name", name,
        "epochs=2", "imgsz=96", "batch=6", "workers=0", "plots=False", *more,
    ]  # fmt: skip


def trials(folder: Path) -> dict[str, TrialFolder]:
    return {f"{a}/{s}": TrialFolder(folder / a / str(s)) for a in ARMS for s in SEEDS}


def curve(trial: Path) -> list[dict[str, str]]:
    """results.csv without the clock."""
    with open(trial / "train" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k.strip() != "time"} for row in rows]


def table(folder: Path) -> list[dict[str, str]]:
    """table.csv without what a clock or a meter measured."""
    with open(folder / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]


def path() -> str:
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set and the undisturbed study."""
    folder = tmp_path_factory.mktemp("studies")
    make_smallshapes(folder / "shapes", image_size=96, train_images=12, val_images=6)
    python(*command(folder, "undisturbed"), cwd=folder, PYTHONPATH=path())
    return folder


def runs(cwd: Path, name: str) -> Path:
    return cwd / "runs" / "ablation" / name


def test_a_study_leaves_a_table_records_and_the_models_of_bare_yolo(cwd: Path) -> None:
    folder = runs(cwd, "undisturbed")
    rows = table(folder)
    assert {r["arm"] for r in rows} == set(ARMS) and all(r["trials"] == "2" for r in rows)
    record = trials(folder)[f"{ARMS[1]}/1"].record
    assert record["epochs"] == 2 and record["versions"]["ultralytics"]
    assert record["peak_memory"] > 1e8
    uses = {n: [b["block"] for b in t.record["blocks"]] for n, t in trials(folder).items()}
    wanted = {ARMS[0]: [], ARMS[1]: ["GlobalContext"] * 3, ARMS[2]: ["SE"] * 3}
    assert uses == {f"{arm}/{seed}": wanted[arm] for arm in ARMS for seed in SEEDS}
    with open(folder / "blocks.csv", newline="") as file:
        assert [r["block"] for r in csv.DictReader(file)] == wanted[ARMS[1]] + wanted[ARMS[2]]
    # Ultralytics 8.3.0 writes no times.
    results = folder / ARMS[1] / "1" / "train" / "results.csv"
    timed = "time" in results.read_text().splitlines()[0].replace(" ", "").split(",")
    assert record["epoch_seconds"] > 0 if timed else record["epoch_seconds"] is None
    for t in trials(folder).values():
        with np.load(t.path / "predictions.npz") as arrays:
            assert len(arrays["paths"]) == 6 and len(arrays["det_boxes"])

    # The command that trial.json names, typed by hand, trains the same model.
    bare = [w.replace(str(folder), str(cwd / "bare")) for w in record["command"]]
    python("-c", ENTRY, *bare[1:], f"device={record['device']}", cwd=cwd, PYTHONPATH=path())
    assert curve(cwd / "bare" / ARMS[1] / "1") == curve(folder / ARMS[1] / "1")

    again = python(*command(cwd, "undisturbed", "--json"), cwd=cwd, PYTHONPATH=path())
    assert len(json.loads(again.stdout)["comparisons"]) == 2 * 6 and not again.stderr.count("done")


@pytest.mark.parametrize("after_crash", ["resume", "restart"])
def test_killed_in_the_middle_and_run_again(cwd: Path, after_crash: str) -> None:
    folder = runs(cwd, after_crash)
    words = command(cwd, after_crash, "--after-crash", after_crash)
    process = subprocess.Popen(
        [sys.executable, *words], cwd=cwd, env=environment(PYTHONPATH=path()),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    third = folder / ARMS[2] / "0" / "train" / "weights" / "last.pt"
    deadline = time.monotonic() + PATIENCE
    while not third.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {n: t for n, t in trials(folder).items() if t.status == DONE}
    assert set(before) == {f"{ARMS[0]}/0", f"{ARMS[1]}/0"}
    stamps = {n: (t.path / "trial.json").stat().st_mtime_ns for n, t in before.items()}

    done = python(*words, cwd=cwd, PYTHONPATH=path())
    assert all(t.status == DONE for t in trials(folder).values())
    for n, t in before.items():
        assert (t.path / "trial.json").stat().st_mtime_ns == stamps[n]
    assert "yolov8n-se" in done.stdout and "detectable" in done.stdout
    if after_crash == "restart":
        assert table(folder) == table(runs(cwd, "undisturbed"))


def test_ray_gives_the_same_table(cwd: Path) -> None:
    pytest.importorskip("ray")
    words = command(cwd, "ray", "--executor", "ray")
    python("-c", CLUSTER, *words, cwd=cwd, PYTHONPATH=path(), RAY_ENABLE_UV_RUN_RUNTIME_ENV="0")
    assert table(runs(cwd, "ray")) == table(runs(cwd, "undisturbed"))
    hosts = {t.record["process"] for t in trials(runs(cwd, "ray")).values()}
    assert len(hosts) >= 2, "one worker did it all"
