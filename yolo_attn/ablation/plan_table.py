"""The plan of a study for a person: a table of 80 columns, and what the study will take."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yolo_attn.ablation.estimate import Estimate, size
from yolo_attn.ablation.plan import Plan
from yolo_attn.ablation.progress import duration

WIDTH = 80  # of what is piped: a log file


def print_plan(
    plan: Plan, trials: Sequence[Mapping[str, Any]], found: Estimate, places: Sequence[str]
) -> None:
    """Print the plan to stdout.

    Args:
        plan: the study.
        trials: "arm", "seed", "status" and "chosen" of each trial.
        found: time and disk of what is left.
        places: where it would run.
    """
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    table = Table("arm", title=f"study {escape(plan.study.name)}")
    for column in ("seed", "parameters", "GFLOPs"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("status", overflow="fold")
    for trial in trials:
        cost = plan.arms[trial["arm"]]
        status = trial["status"] if trial["chosen"] else f"{trial['status']} (not chosen)"
        sizes = [f"{cost['parameters']:,}", f"{cost['gflops']:.2f}"]
        table.add_row(escape(trial["arm"]), str(trial["seed"]), *sizes, escape(status))
    console.print(table)
    for flag in plan.flags:
        console.print(f"note: {flag}", markup=False, highlight=False)
    left = f"time left on {', '.join(places)}: {duration(found.seconds)}"
    if found.seconds == 0:
        left = "nothing is left to do"
    elif found.seconds is not None:
        left += f" (from {found.basis})"
    console.print(
        f"{len(trials)} trials; {left}",
        markup=False, highlight=False,
    )  # fmt: skip
    console.print(
        f"disk: about {size(found.disk)} more, {size(found.most)} meanwhile; "
        f"{size(found.free)} are free in {plan.study.project}",
        markup=False, highlight=False,
    )  # fmt: skip
    if found.most > found.free:
        console.print("note: the disk will be full before the study ends", highlight=False)
    console.print("the command of each trial: --dry-run --json", markup=False, highlight=False)


def continuing(words: Sequence[str]) -> str:
    """The command that goes on with a study after it was stopped.

    Args:
        words: of the command that was stopped, without its program.

    Returns:
        The same without what must not be done twice: putting trials aside, adding seeds.
    """
    kept, skip = [], False
    for word in words:
        if skip or word in ("--force", "--add-seeds"):
            skip = word == "--add-seeds"
        elif not word.startswith("--add-seeds="):
            kept.append(word)
    return shlex.join(["yolo-attn", *kept])
