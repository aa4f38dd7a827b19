"""Where trials run: on this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Protocol

from yolo_attn.ablation.plan import Job

EXECUTORS = ("local", "ray")
Report = Callable[[Job, dict[str, Any]], None]


class Executor(Protocol):
    """Does jobs and reports each as it ends; `places` of them at the same time."""

    places: int

    def execute(self, jobs: Sequence[Job], report: Report) -> None:
        """Do all jobs; `report(job, record)` is called once for each, in this process."""
