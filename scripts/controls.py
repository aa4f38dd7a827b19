"""Can the harness say "better" where it must, and keep quiet where it must?

Two studies of a small detector against the same one with a block that gathers context from the
whole image. In the synthetic set's `context` mode a sign far away says which shapes are objects; in
`plain` mode the pictures are the same and the sign does not matter. The detector alone sees 79
pixels around its cell at most, less than the way from a shape to the sign and back.

Example: python scripts/controls.py --seeds 3 --epochs 12 --out docs/controls.md
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from yolo_attn.ablation.executors.local import LocalExecutor, devices_here
from yolo_attn.ablation.report import write_report
from yolo_attn.ablation.runner import plan_study, run_plan
from yolo_attn.ablation.spec import from_dict
from yolo_attn.ablation.tables import Row, interval, number, rows_of
from yolo_attn.data.synthetic import make_smallshapes
from yolo_attn.errors import YoloAttnError
from yolo_attn.explain.use_table import percent

MODES = ("context", "plain")
NOTES = "\n## Notes"
# Three strides, one scale: a cell of the head sees 79 x 79 px, 39 to each side.
DETECTOR = """\
# Written by scripts/controls.py: a detector that sees 79 px.
nc: 1
backbone:
  - [-1, 1, Conv, [16, 3, 2]] # 0
  - [-1, 1, Conv, [32, 3, 2]] # 1
  - [-1, 1, C2f, [32, True]] # 2
  - [-1, 1, Conv, [64, 3, 2]] # 3
{block}  - [-1, 1, Conv, [64, 3, 1]]
head:
  - [[{last}], 1, Detect, [nc]]
"""
SIDE, DISTANCE = 96, 44  # pixels: of an image, between the sign and the nearest shape
SET = {
    "image_size": SIDE,
    "distance": DISTANCE,
    "val_images": 150,
    "object_size": (8, 16),
    "objects": (3, 6),
    "clutter": 0.25,
    "classes": 1,
}
TRAIN = {
    "imgsz": SIDE,
    "batch": 16,
    "nbs": 16,
    "optimizer": "AdamW",
    "lr0": 0.001,  # at 0.003 whether the block learns to look for the sign hangs on the seed
    "warmup_epochs": 1.0,
    "warmup_bias_lr": 0.0,  # Ultralytics' 0.1 is meant for SGD; its own "auto" AdamW has 0, too
    "cache": "ram",
    "workers": 0,
    "plots": False,
    "patience": 0,
    # These would move the sign out of the picture, or put those of four into one.
    "mosaic": 0.0,
    "scale": 0.0,
    "translate": 0.0,
}
PAGE = """\
# Controls: can the harness say "better", and can it keep quiet?

Printed by `python scripts/controls.py{words}` in {minutes:.0f} minutes on {cores} CPU cores.

Two studies compare a small detector with the same one that has a {block} block at stride 8.
The detector alone sees 79 x 79 px. Of the shapes in a picture of {side} px about half are objects.
`context`: a sign at least {distance} px away says which ones, so the detector alone has to guess.
`plain`: the same pictures, but bright shapes are always the objects. A sound harness says "better"
on the first and does not on the second. {train_images} training and {val_images} validation images,
{epochs} epochs, {seeds} seeds; means and differences in percent points, COCO protocol.

{table}
"""


def models(folder: Path, block: str) -> dict[str, str]:
    """Write the two model files: arm -> path."""
    row = f"  - [-1, 1, {block}, []]\n"
    texts = {
        "baseline": DETECTOR.format(block="", last=4),
        "block": DETECTOR.format(block=row, last=5),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {arm: folder / f"{arm}.yaml" for arm in texts}
    for arm, path in paths.items():
        path.write_text(texts[arm], encoding="utf-8")
    return {arm: str(path) for arm, path in paths.items()}


def run_control(mode: str, args: argparse.Namespace, arms: dict[str, str]) -> list[Row]:
    """Draw the set, run the study, compare by the COCO protocol; the rows that have a verdict."""
    root = make_smallshapes(
        args.project / "sets" / mode, mode=mode, train_images=args.train_images, **SET
    )
    content = {
        "name": mode,
        "arms": arms,
        "seeds": args.seeds,
        "data": str(root / "data.yaml"),
        "train": {"epochs": args.epochs, **TRAIN},
        "protocols": ["coco"],
        "project": str(args.project),
    }
    plan = plan_study(from_dict(content, f"controls, {mode}"))
    devices = devices_here() if args.jobs is None else ["cpu"] * args.jobs
    outcome = run_plan(
        plan,
        LocalExecutor(devices),
        report=lambda job, record: print(
            f"{mode} {job.arm}/{job.seed}: {record['status']}", file=sys.stderr
        ),
    )
    if outcome.failed:
        job, error = outcome.failed[0]
        sys.exit(f"{mode} {job.arm}/{job.seed}: {error['what']}; see {error.get('log')}")
    rows = rows_of(write_report(plan.study.folder, device=devices[0]))
    return [row for row in rows if row.comparison]


def table(rows: list[tuple[str, Row]]) -> str:
    """Both studies as Markdown."""
    titles = "set | metric | baseline | block | difference | 95 % interval | detectable"
    lines = [f"| {titles} | block change | verdict |", "|---" * 9 + "|"]
    for mode, row in rows:
        c = row.comparison
        assert c is not None  # run_control leaves the baseline out
        shown = [number(c.baseline_mean), number(c.arm_mean), number(c.difference, sign=True)]
        shown += [interval(c.interval), number(c.detectable), percent(row.change), row.verdict]
        lines.append(f"| {mode} | {c.metric} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("seeds", 3), ("epochs", 12), ("train-images", 2000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--block", default="NonLocal", help="any block of one input")
    parser.add_argument("--jobs", type=int, help="trials at a time, on the CPU; default one")
    parser.add_argument("--project", type=Path, default=Path("runs/controls"))
    parser.add_argument("--out", type=Path, help="also write a page, such as docs/controls.md")
    args = parser.parse_args()
    begin = time.monotonic()
    args.project = args.project.resolve()
    arms = models(args.project / "models", args.block)
    rows = [(mode, row) for mode in MODES for row in run_control(mode, args, arms)]
    minutes = (time.monotonic() - begin) / 60
    print(table(rows))
    print(f"\n{args.seeds} seeds, {args.epochs} epochs, {minutes:.1f} minutes")
    if args.out:
        page = PAGE.format(
            words="".join(f" {word}" for word in sys.argv[1:]),
            minutes=minutes,
            cores=os.cpu_count(),
            block=args.block,
            side=SIDE,
            distance=DISTANCE,
            val_images=SET["val_images"],
            table=table(rows),
            **{key: vars(args)[key] for key in ("train_images", "epochs", "seeds")},
        )
        # What people wrote below the table stays.
        old = args.out.read_text(encoding="utf-8") if args.out.is_file() else ""
        page += old[old.find(NOTES) :] if NOTES in old else ""
        args.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except YoloAttnError as error:
        sys.exit(f"error: {error}")
