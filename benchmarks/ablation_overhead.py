"""Wall time of a study of two trials against the bare `yolo train` and `yolo val` commands.

The promise: at most 2 % + 5 s more. Both do the same trainings with the same arguments, on a
synthetic set, one after the other; the latency measurement is part of the study.

Example: python benchmarks/ablation_overhead.py --epochs 5 --imgsz 160
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from yolo_attn.data.synthetic import make_smallshapes

MODELS = ("yolov8n.yaml", "yolov8n-gc.yaml")
YOLO = str(Path(sys.executable).with_name("yolo"))


def timed(command: list[str], cwd: Path) -> float:
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("epochs", 5), ("imgsz", 160), ("images", 64), ("runs", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("| run | bare s | study s | more s | allowed s |\n|---|---|---|---|---|")
    for run in range(args.runs):
        with tempfile.TemporaryDirectory() as scratch:
            cwd = Path(scratch)
            make_smallshapes(
                cwd / "set", image_size=args.imgsz, train_images=args.images, val_images=16
            )
            data = f"data={cwd / 'set' / 'data.yaml'}"
            common = [f"epochs={args.epochs}", f"imgsz={args.imgsz}", "batch=16", "workers=0"]
            common += ["plots=False"]
            bare = 0.0
            for i, model in enumerate(MODELS):
                train = [YOLO, "detect", "train", f"model={model}", data, *common, "device=cpu"]
                train += [f"project={cwd / 'bare'}", f"name={i}", "pretrained=False", "seed=0"]
                best = cwd / "bare" / str(i) / "weights" / "best.pt"
                val = [YOLO, "detect", "val", f"model={best}", data, "device=cpu", "workers=0"]
                val += [f"imgsz={args.imgsz}", "plots=False", f"project={cwd / 'bare'}"]
                bare += timed(train, cwd) + timed(val, cwd)
            ablate = [sys.executable, "-m", "yolo_attn.cli", "ablate", "--models"]
            ablate += [",".join(MODELS), "--seeds", "1", "--data", data[5:], "--devices", "cpu"]
            study = timed([*ablate, *common], cwd)
        allowed = 0.02 * bare + 5
        print(f"| {run} | {bare:.1f} | {study:.1f} | {study - bare:+.1f} | {allowed:.1f} |")


if __name__ == "__main__":
    main()
