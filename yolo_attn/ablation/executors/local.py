"""This machine: one trial at a time on each device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any

from yolo_attn.ablation.executors import Report
from yolo_attn.ablation.plan import Job
from yolo_attn.ablation.trial import run_job


def devices_here() -> list[str]:
    """Every CUDA device, or the CPU."""
    import torch

    return [str(i) for i in range(torch.cuda.device_count())] or ["cpu"]


class LocalExecutor:
    """Child processes on this machine, one at a time for each device."""

    def __init__(self, devices: Sequence[str]):
        self.devices = list(devices)

    def execute(self, jobs: Sequence[Job], report: Report) -> None:
        """Do all jobs; a trial that fails is reported and the others go on."""
        if len(self.devices) == 1:
            for job in jobs:
                report(job, run_job(job, self.devices[0]))
            return
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threads = [
            threading.Thread(target=_work, args=(device, waiting, ended), daemon=True)
            for device in self.devices[: len(jobs)]
        ]
        for thread in threads:
            thread.start()
        for _ in jobs:
            job, record = ended.get()
            if isinstance(record, BaseException):
                raise record  # the disk is full, or we are at fault: not one trial's matter
            report(job, record)


def _work(device: str, waiting: queue.SimpleQueue[Job], ended: queue.SimpleQueue[Any]) -> None:
    while True:
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            ended.put((job, run_job(job, device)))
        except BaseException as error:
            ended.put((job, error))
