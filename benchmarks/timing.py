"""Clocks for functions that are compared: they take turns, and medians are taken."""

from __future__ import annotations

import gc
import math
import platform
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Fewest turns of each side, however slow they are.
MIN_REPEATS = 5


def interleaved(
    functions: list[Callable[[], Any]],
    repeats: int,
    seconds: float,
    sync: Callable[[], Any],
    clock: Callable[[], float],
) -> tuple[float, ...]:
    """Median milliseconds of functions that take turns, each turn in another order.

    A call during which the system gave one of our cores to another program is left out: with
    several threads all of them wait for the one that was put aside, and a call of microseconds
    takes as long as the other program's share. Unless fewer than `MIN_REPEATS` calls remain: then
    the median is that of all calls.

    Args:
        functions: What to time.
        repeats: Most turns.
        seconds: Stop after so long (but not before `MIN_REPEATS` turns).
        sync: Waits for the device.
        clock: Seconds.
    """
    for function in functions * 2:
        function()
    sync()
    times: list[list[float]] = [[] for _ in functions]
    undisturbed: list[list[float]] = [[] for _ in functions]
    gc.collect()
    gc.disable()
    try:
        begin = time.perf_counter()
        for turn in range(repeats):
            if turn >= MIN_REPEATS and time.perf_counter() - begin > seconds:
                break
            order = range(len(functions)) if turn % 2 == 0 else reversed(range(len(functions)))
            for i in order:
                interruptions, start = _interruptions(), clock()
                functions[i]()
                sync()
                times[i].append((clock() - start) * 1000)
                if _interruptions() == interruptions:
                    undisturbed[i].append(times[i][-1])
    finally:
        gc.enable()
    return tuple(
        statistics.median(quiet if len(quiet) >= MIN_REPEATS else every)
        for quiet, every in zip(undisturbed, times)
    )


def _interruptions() -> int:
    """How often a thread of this process had to leave its core."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def geometric_mean(values: Iterable[float]) -> float:
    """The root of the product; NaN of nothing."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else float("nan")


def processor_name() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [s for s in cpuinfo.read_text().splitlines() if s.startswith("model name")]
        if names:
            return names[0].split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
