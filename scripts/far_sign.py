"""Which blocks learn a task that needs a far sign, inside a network that Ultralytics has touched?

Small pictures whose marked cells must answer what stands far away, outside of what the convolutions
see (`far_sign_tasks.py`). A network of Ultralytics' layers with one block is set up by its
`initialize_weights` and trained by its optimisers; `none`, without a block, must fail.

- sign: one striped sign lies or stands; every disc says which.
- band: two halves of the picture have a tint and a sign each; a disc answers for its own half.
- copy: two framed places among six unframed; each tells the other's colour.
- match: two squares, red or green; each says whether the other has its colour.

Example: python scripts/far_sign.py --jobs 2 --json far_sign.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_VERBOSE", "false")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from far_sign_tasks import BATCH, CELL, OPTIMIZERS, SIDE, STEPS, TASKS, make_block, train

import yolo_attn
from yolo_attn.errors import YoloAttnError

MODES = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")
BLOCKS = (
    "none",
    *(f"NonLocal:{mode}" for mode in MODES),
    "PositionAttention",
    "CrissCross",
    "BiFormer",
)
LEARNED = 0.9  # accuracy; a guess has 0.5 or, of three answers, 0.33


def job(words: tuple[str, str, str, int, int, int]) -> dict[str, Any]:
    """One training on one thread."""
    torch.set_num_threads(1)
    return train(*words)


def kept(path: Path | None, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of a file that is there already."""
    if path is None or not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["settings"] != settings:
        raise YoloAttnError(
            f"{path}: made with {content['settings']}, not with {settings}; give another file"
        )
    return content["records"]


def table(records: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Seeds that learned, and in brackets the median accuracy, as Markdown."""
    lines = [
        f"| block | optimizer | {' | '.join(args.tasks)} |",
        "|---" * (2 + len(args.tasks)) + "|",
    ]
    for block in args.blocks:
        for optimizer in args.optimizers:
            cells = []
            for task in args.tasks:
                found = [
                    r["accuracy"]
                    for r in records
                    if (r["block"], r["optimizer"], r["task"]) == (block, optimizer, task)
                    and r["seed"] < args.seeds
                ]
                learned = sum(a > LEARNED for a in found)
                cells.append(f"{learned} of {len(found)} ({statistics.median(found):.2f})")
            lines.append(f"| {block} | {optimizer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", nargs="+", default=BLOCKS, help="NAME or NAME:MODE")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--optimizers", nargs="+", default=["SGD", "AdamW"], choices=OPTIMIZERS)
    for name, value in (("seeds", 6), ("width", 32), ("steps", STEPS), ("jobs", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path, help="keep the results; go on where they end")
    args = parser.parse_args()
    for block in args.blocks:
        make_block(block, args.width)
    settings = {"version": yolo_attn.__version__, "width": args.width, "steps": args.steps}
    records = kept(args.json, settings)
    there = {(r["block"], r["task"], r["optimizer"], r["seed"]) for r in records}
    todo = [
        (*words, args.width, args.steps)
        for words in (
            (block, task, optimizer, seed)
            for seed in range(args.seeds)
            for task in args.tasks
            for block in args.blocks
            for optimizer in args.optimizers
        )
        if words not in there
    ]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for n, record in enumerate(pool.imap_unordered(job, todo), 1):
            records.append(record)
            print(f"{n} of {len(todo)}", *record.values(), file=sys.stderr)
            if args.json:
                content = json.dumps({"settings": settings, "records": records}, indent=1)
                args.json.with_suffix(".tmp").write_text(content, encoding="utf-8")
                args.json.with_suffix(".tmp").replace(args.json)
    print(table(records, args))
    print(
        f"\nyolo_attn {yolo_attn.__version__}, torch {torch.__version__}; {args.width} channels, "
        f"{SIDE * CELL} x {SIDE * CELL} px, batch {BATCH}, at most {args.steps} steps; seeds with "
        f"an accuracy above {LEARNED} on fresh pictures, in brackets the median accuracy (a guess: "
        + ", ".join(f"{task} {TASKS[task].chance:.2f}" for task in args.tasks)
        + f"); {statistics.median(r['seconds'] for r in records):.1f} s of one thread a training"
    )


if __name__ == "__main__":
    try:
        main()
    except YoloAttnError as error:
        sys.exit(f"error: {error}")
