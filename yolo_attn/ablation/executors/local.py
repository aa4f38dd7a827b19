"""This machine: one trial at a time on each device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any

from yolo_attn.ablation import child
from yolo_attn.ablation.executors import Report
from yolo_attn.ablation.plan import Job
from yolo_attn.ablation.trial import run_job
from yolo_attn.devices import check, parse


def devices_here() -> list[str]:
    """Every CUDA device, or the CPU."""
    import torch

    return [str(i) for i in range(torch.cuda.device_count())] or ["cpu"]


def places_for(devices: str | None, own: Any, here: bool = True) -> list[str]:
    """Where the trials of a study run: one trial at a time at each place.

    Args:
        devices: words with commas, one place each; None: not given.
        own: the study's ``device=``: one place, with several GPUs for each trial; None: not given.
        here: whether this machine must have them.

    Raises:
        YoloAttnError: a word is unknown, or names what is not here.
    """
    look = check if here else parse
    if devices:
        found = [look(word, "--devices") for word in devices.split(",") if word.strip()]
    else:
        found = [look(own)]
    words = [each.word for each in found if each.word]
    return words or devices_here()


class LocalExecutor:
    """Child processes on this machine, one at a time for each device."""

    def __init__(self, devices: Sequence[str]):
        self.devices = list(devices)
        self.places = len(self.devices)

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
        child.stop.clear()
        threads = [
            threading.Thread(target=_work, args=(device, waiting, ended), daemon=True)
            for device in self.devices[: len(jobs)]
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in jobs:
                job, record = ended.get()
                if isinstance(record, BaseException):
                    raise record  # the disk is full, or we are at fault: not one trial's matter
                report(job, record)
        except BaseException:  # Ctrl-C reaches this thread alone
            child.stop.set()
            for thread in threads:
                thread.join()
            raise


def _work(device: str, waiting: queue.SimpleQueue[Job], ended: queue.SimpleQueue[Any]) -> None:
    while not child.stop.is_set():
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            ended.put((job, run_job(job, device)))
        except BaseException as error:
            ended.put((job, error))
