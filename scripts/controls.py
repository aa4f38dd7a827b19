"""Can the harness say "better" where it must, and keep quiet where it must?

Two studies of the baseline against a block that gathers context from the whole image. In the
synthetic set's `context` mode a sign far away says which shapes are objects; in `plain` mode the
pictures are the same and the sign does not matter.

Example: python scripts/controls.py --seeds 3 --epochs 30
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from yolo_attn.ablation.executors.local import LocalExecutor, devices_here
from yolo_attn.ablation.report import write_report
from yolo_attn.ablation.runner import plan_study, run_plan
from yolo_attn.ablation.spec import from_dict
from yolo_attn.ablation.tables import interval, number
from yolo_attn.data.synthetic import make_smallshapes
from yolo_attn.errors import YoloAttnError

MODES = ("context", "plain")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = (("seeds", 3), ("epochs", 30), ("imgsz", 96), ("train-images", 160),
               ("val-images", 100), ("batch", 16))  # fmt: skip
    for name, value in numbers:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--baseline", default="yolov8n.yaml")
    parser.add_argument("--block", default="yolov8n-gc.yaml")
    parser.add_argument("--project", type=Path, default=Path("runs/controls"))
    args = parser.parse_args()
    begin, devices = time.monotonic(), devices_here()
    rows = []
    for mode in MODES:
        root = make_smallshapes(
            args.project / "sets" / mode,
            image_size=args.imgsz,
            train_images=args.train_images,
            val_images=args.val_images,
            object_size=(8, 16),
            objects=(3, 6),
            classes=1,
            mode=mode,
        )
        content = {
            "name": f"controls-{mode}",
            "arms": {"baseline": args.baseline, "block": args.block},
            "seeds": args.seeds,
            "data": str(root / "data.yaml"),
            "train": {
                "epochs": args.epochs,
                "imgsz": args.imgsz,
                "batch": args.batch,
                "workers": 0,
                "plots": False,
                "patience": 0,
                # Mosaic would put the signs of four pictures into one.
                "mosaic": 0.0,
            },
            "project": str(args.project),
        }
        plan = plan_study(from_dict(content, f"controls, {mode}"))
        outcome = run_plan(
            plan,
            LocalExecutor(devices),
            report=lambda job, record, mode=mode: print(
                f"{mode} {job.arm}/{job.seed}: {record['status']}", file=sys.stderr
            ),
        )
        if outcome.failed:
            job, error = outcome.failed[0]
            sys.exit(f"{mode} {job.arm}/{job.seed}: {error['what']}; see {error.get('log')}")
        results = write_report(plan.study.folder, device=devices[0])
        rows += [(mode, c) for p, c in results.comparisons if p == "coco"]
    print("| set | metric | baseline | block | difference | 95 % interval | detectable | verdict |")
    print("|---|---|---|---|---|---|---|---|")
    for mode, c in rows:
        shown = [number(c.baseline_mean), number(c.arm_mean), number(c.difference, sign=True)]
        shown += [interval(c.interval), number(c.detectable), c.verdict]
        print(f"| {mode} | {c.metric} | {' | '.join(shown)} |")
    print(f"\n{args.seeds} seeds, {args.epochs} epochs, {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except YoloAttnError as error:
        sys.exit(f"error: {error}")
