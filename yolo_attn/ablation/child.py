"""A trial's child process: started behind a guard, watched, and ended with all that it started."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from yolo_attn.ablation.guard import MARK, PATIENCE, end_all

GUARD = "yolo_attn.ablation.guard"
stop = threading.Event()  # set: every trial of this process ends soon, as after Ctrl-C


def run(
    command: Sequence[str], log: Path, lock: int, look: Callable[[int], None], poll: float
) -> int:
    """Run a child that dies with us, whole, and holds the trial's lock until nothing of it is left.

    Args:
        command: what to run.
        log: file that its output is appended to.
        lock: open file that holds the trial's lock, from `store.locked`.
        look: called at each poll with the largest memory so far (bytes, with the children's).
        poll: seconds between two looks.

    Returns:
        Its exit code; a negative one is a signal.

    Raises:
        KeyboardInterrupt: `stop` was set.
    """
    peak, mark = 0, _mark(lock)
    ours, theirs = os.pipe()
    try:
        with open(log, "ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", GUARD, str(ours), str(lock), *command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                pass_fds=(lock, ours), env={**os.environ, MARK: mark}, start_new_session=True,
            )  # fmt: skip
        try:
            while process.poll() is None:
                if stop.is_set():
                    raise KeyboardInterrupt
                peak = max(peak, _resident(process.pid))
                look(peak)
                time.sleep(poll)
            look(peak)
        finally:
            os.close(theirs)  # the guard ends the rest
            theirs = -1
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2 * PATIENCE)
            if process.poll() is None or process.returncode < 0:
                # Killed itself, it could not end the others.
                process.kill()
                end_marked(lock)
                process.wait()
    finally:
        for handle in (ours, theirs):
            if handle >= 0:
                os.close(handle)
    return process.returncode


def end_marked(lock: int) -> list[int]:
    """End what is left of earlier runs of a trial on this machine; we must hold its lock.

    Returns:
        The numbers of the processes that were killed.
    """
    return end_all(_mark(lock), descendants=False)


def _mark(lock: int) -> str:
    # Of the lock file, which a study that is moved keeps.
    status = os.fstat(lock)
    return f"{status.st_dev}:{status.st_ino}"


def _resident(guard: int) -> int:
    import psutil

    try:
        family = psutil.Process(guard).children(recursive=True)
        return sum(p.memory_info().rss for p in family)
    except psutil.Error:
        return 0
