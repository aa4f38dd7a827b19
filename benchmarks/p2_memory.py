"""Peak memory of a training step at 640 pixels with Non-local on the 160 x 160 map.

Each step runs in a process of its own; what is printed is that process's peak resident memory.

Example: python benchmarks/p2_memory.py
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time


def step(model: str, batch: int, imgsz: int) -> None:
    import torch
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    net = DetectionModel(model, ch=3, nc=10, verbose=False).train()
    net.args = get_cfg()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = {
        "img": torch.rand(batch, 3, imgsz, imgsz),
        "batch_idx": torch.zeros(4),
        "cls": torch.zeros(4, 1),
        "bboxes": torch.rand(4, 4) * 0.1 + 0.4,
    }
    begin = time.perf_counter()
    loss = net.loss(data)[0]
    loss.sum().backward()
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{peak / 1024:.0f} {before / 1024:.0f} {seconds:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        return step(args.step, args.batch, args.imgsz)
    n = (args.imgsz // 4) ** 2
    print(
        "| model | peak of the process (MiB) | of that before the step (MiB) | step (s) "
        "|\n|---|---|---|---|"
    )
    for model in ("yolov8n-p2.yaml", "yolov8n-p2-nonlocal.yaml"):
        command = [
            sys.executable,
            __file__,
            "--step",
            model,
            "--batch",
            str(args.batch),
            "--imgsz",
            str(args.imgsz),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, before, seconds = done.stdout.split()[-3:]
        print(f"| {model} | {peak} | {before} | {seconds} |", flush=True)
    matrix = args.batch * n * n * 4 / 2**20
    print(
        f"\nThe {n:,} x {n:,} matrix alone, float32, batch {args.batch}: {matrix:,.0f} MiB; the "
        "plain formulation "
        "keeps the logits' softmax for the backward pass and forms its gradient: at least "
        f"{2 * matrix:,.0f} MiB."
    )


if __name__ == "__main__":
    main()
