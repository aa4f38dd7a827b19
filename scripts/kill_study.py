"""Kill a study at random moments, a training on two processes among its trials, and look.

Each time `yolo-attn ablate` gets SIGKILL; within 10 s nothing of it may be left. Then the same
command again, at last to its end: the table must be that of a study that nobody disturbed. The arm
`ddp` trains as two ranks over gloo on the CPU, started by `torch.distributed.run` as Ultralytics
starts its own; the arm `one` is the stock command. Both start anew after a kill (--after-crash
restart), because only then equal numbers may be asked for.

Example: python scripts/kill_study.py --kills 20
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
MARK = "KILL_STUDY"
MEASURED = ("latency_ms", "latency_p95_ms", "peak_memory", "epoch_seconds")
PATIENCE = 10.0  # seconds until nothing may be left of a killed study


def main() -> None:
    """Kill, look, run again; exit code 1 if anything was left or the tables differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(0 if kill_and_compare(Path(scratch), args.kills, args.seed) else 1)


def kill_and_compare(cwd: Path, kills: int, seed: int) -> bool:
    """Do it in a folder; prints a line for each kill, and whether the promise was kept."""
    from yolo_attn.data.synthetic import make_smallshapes

    rng = random.Random(seed)
    make_smallshapes(
        cwd / "shapes", image_size=64, train_images=8, val_images=4, object_size=(8, 16)
    )
    begin = time.monotonic()
    assert start(cwd, "undisturbed").wait() == 0, (cwd / "undisturbed.log").read_text()
    whole = time.monotonic() - begin
    print(f"undisturbed: {whole:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    slowest, good, kill, round_, name, finished = 0.0, True, 0, 0, "killed0", {}
    while kill < kills:
        study = start(cwd, name)
        # Up to the length of an undisturbed study, so that some of them come to their end.
        try:
            code = study.wait(rng.uniform(0.5, 0.9 * whole))
        except subprocess.TimeoutExpired:
            code = None
        if code is not None:
            good = ended_well(cwd, name, code) and good
            round_ += 1
            name, finished = f"killed{round_}", {}
            continue
        kill += 1
        had = len(processes(study.mark))
        study.send_signal(signal.SIGKILL)
        moment = time.monotonic()
        study.wait()
        while (left := processes(study.mark)) and time.monotonic() - moment < PATIENCE:
            time.sleep(0.05)
        took = time.monotonic() - moment
        slowest = max(slowest, took)
        now = done(cwd / "runs" / "ablation" / name)
        kept = all(now.get(trial) == stamp for trial, stamp in finished.items())
        finished = now
        good = good and not left and kept
        print(
            f"kill {kill}: {had} processes, gone after {took:.1f} s, left {len(left)}; "
            f"finished trials {len(now)}, kept: {kept}",
            flush=True,
        )
    good = ended_well(cwd, name, start(cwd, name).wait()) and good
    print(f"{kills} kills, slowest end {slowest:.1f} s, load {os.getloadavg()[0]:.1f}")
    print(f"nothing left, nothing lost, the same tables: {good}")
    return good


def ended_well(cwd: Path, name: str, code: int) -> bool:
    """Whether a study that was killed and came to its end has the table of the undisturbed one."""
    if code:
        print(f"{name} ended with {code}: {(cwd / f'{name}.log').read_text()[-2000:]}")
        return False
    same = table(cwd, name) == table(cwd, "undisturbed")
    print(f"{name} came to its end; the same table: {same}", flush=True)
    return same


class Started(subprocess.Popen):  # type: ignore[type-arg]
    """A study, and the mark that all processes of it carry."""

    mark = ""


def start(cwd: Path, name: str) -> Started:
    """Start the study, or go on with it."""
    mark = uuid.uuid4().hex
    path = os.pathsep.join([str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "YOLO_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    (cwd / f"{name}.yaml").write_text(
        f"data: {cwd / 'shapes' / 'data.yaml'}\nseeds: 1\nafter_crash: restart\n"
        "arms: {ddp: yolov8n-gc.yaml, one: yolov8n.yaml}\n"
        "train: {epochs: 2, imgsz: 32, batch: 4, workers: 0, plots: false, optimizer: SGD}\n"
    )
    with open(cwd / f"{name}.log", "ab") as log:
        study = Started(
            [sys.executable, str(Path(__file__).resolve()), "study", "ablate", f"{name}.yaml"],
            cwd=cwd, env={**env, MARK: mark}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    study.mark = mark
    return study


def processes(mark: str) -> list[int]:
    """Numbers of the living processes that a study started, itself included."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def done(folder: Path) -> dict[str, int]:
    """Finished trials and when their trial.json was written."""
    return {
        file.parent.parent.name: file.stat().st_mtime_ns
        for file in folder.glob("*/*/trial.json")
        if json.loads(file.read_text())["status"] == "done"
    }


def table(cwd: Path, name: str) -> list[dict[str, str]]:
    """table.csv without what a clock or a meter measured."""
    with open(cwd / "runs" / "ablation" / name / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]


def run_study() -> None:
    """`yolo-attn`, with trials whose child is this file."""
    from yolo_attn import cli
    from yolo_attn.ablation import trial

    trial.CHILD = "kill_study"
    sys.argv = ["yolo-attn", *sys.argv[2:]]
    cli.main()


def run_trial() -> None:
    """The child of a trial."""
    from yolo_attn.ablation.store import TrialFolder
    from yolo_attn.ablation.trial_process import evaluate_here, run_child, yolo

    folder = TrialFolder(Path(sys.argv[1]))
    ddp = folder.path.parent.name == "ddp"
    run_child(train_on_two if ddp else lambda command: yolo(command, folder), evaluate_here)


def train_on_two(command: list[str]) -> None:
    """Two ranks, started as Ultralytics starts them on two GPUs."""
    from ultralytics.utils.dist import find_free_network_port

    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", str(find_free_network_port()), str(Path(__file__).resolve())]
    subprocess.run([*launch, "rank", *command[3:]], check=True)


def run_rank() -> None:
    """One of them."""
    import yaml

    from tests.ddp_worker import CpuTrainer

    words = dict(word.split("=", 1) for word in sys.argv[2:])
    overrides = {key: yaml.safe_load(value) for key, value in words.items()}
    trainer = CpuTrainer(overrides={**overrides, "device": "cpu", "amp": False})
    trainer._do_train()


if __name__ == "__main__":
    mode = sys.argv[1] if len(sys.argv) > 1 else ""
    if mode == "study":
        run_study()
    elif mode == "rank":
        run_rank()
    elif mode.startswith("/"):
        run_trial()
    else:
        main()
