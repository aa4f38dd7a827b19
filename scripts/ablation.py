"""An ablation as a readable script: read or state a study, plan it, run it, report it.

Examples:
  python scripts/ablation.py study.yaml epochs=100 imgsz=640
  python scripts/ablation.py --preset visdrone            # the study that the README names
  python scripts/ablation.py --preset visdrone --dry-run
"""

from __future__ import annotations

import argparse
import sys

import yaml

from yolo_attn.ablation.executors.local import LocalExecutor, devices_here
from yolo_attn.ablation.report import write_report
from yolo_attn.ablation.runner import plan_study, run_plan
from yolo_attn.ablation.spec import from_dict, read_study
from yolo_attn.errors import YoloAttnError
from yolo_attn.paths import datasets_dir

# The VisDrone study: the stock model, the stock P2 model, and one arm for each kind of block.
VISDRONE = {
    "name": "visdrone",
    "arms": {
        "yolov8n": "yolov8n.yaml",
        "yolov8n-p2": "yolov8n-p2.yaml",
        "nonlocal": "yolov8n-nonlocal.yaml",
        "p2-nonlocal": "yolov8n-p2-nonlocal.yaml",
        "gc": "yolov8n-gc.yaml",
        "contextaggregation": "yolov8n-contextaggregation.yaml",
        "coordatt": "yolov8n-coordatt.yaml",
        "se": "yolov8n-se.yaml",
    },
    "baseline": "yolov8n",
    "seeds": 3,
    "data": str(datasets_dir() / "VisDrone.yaml"),
    "train": {"epochs": 100, "imgsz": 640, "batch": 16, "patience": 0},
    "match": ["params", "flops"],
    "protocols": ["visdrone", "coco", "coco-500", "tiny"],
}
PRESETS = {"visdrone": VISDRONE}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="[STUDY.yaml] [KEY=VALUE]...")
    parser.add_argument("--preset", choices=PRESETS)
    parser.add_argument("--dry-run", action="store_true", help="print the plan, train nothing")
    args = parser.parse_args()
    files = [word for word in args.words if "=" not in word]
    train = {
        key: yaml.safe_load(value)
        for key, _, value in (word.partition("=") for word in args.words if "=" in word)
    }
    if len(files) + bool(args.preset) != 1:
        parser.error("give one study file, or --preset")

    if args.preset:
        preset = PRESETS[args.preset]
        study = from_dict({**preset, "train": {**preset["train"], **train}}, args.preset)
    else:
        study = read_study(files[0], {"train": train} if train else None)
    plan = plan_study(study)
    for flag in plan.flags:
        print(f"note: {flag}")
    if args.dry_run:
        for job in plan.jobs:
            print(" ".join(job.train))
        return

    devices = devices_here()
    outcome = run_plan(
        plan,
        LocalExecutor(devices),
        report=lambda job, record: print(f"{job.arm}/{job.seed}: {record['status']}"),
    )
    results = write_report(study.folder, device=devices[0])
    for protocol, c in results.comparisons:
        print(f"{c.arm}, {protocol} {c.metric}: {results.verdict(c)}")
    print(f"the report is in {study.folder}")
    sys.exit(1 if outcome.failed else 0)


if __name__ == "__main__":
    try:
        main()
    except YoloAttnError as error:
        sys.exit(f"error: {error}")
