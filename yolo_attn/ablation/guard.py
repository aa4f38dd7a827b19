"""The guard of a trial: a process between the study and the training that outlives neither.

``python -m yolo_attn.ablation.guard PIPE LOCK COMMAND...``, as `child.run` calls it. A training on
several GPUs starts processes of its own, in sessions of their own (torch.distributed), which no
signal to a process group reaches. The guard adopts whatever they leave behind, and ends all of
them when the training has ended, or when the study has (its end of the pipe then closes, however
the study died). It holds the trial's lock until nothing is left.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

MARK = "YOLO_ATTN_TRIAL"  # environment variable that all processes of a trial carry
PATIENCE = 10.0  # seconds until processes that were killed must be gone
LINUX = sys.platform == "linux"
DEATH_SIGNAL, SUBREAPER = 1, 36  # of prctl(2)


def main() -> None:
    """Run the command, end what it leaves, and end as it ended (also by the same signal)."""
    pipe, lock, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if LINUX:
        ctypes.CDLL(None).prctl(SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda got, _: told.append(got))
    process = subprocess.Popen(command, pass_fds=(lock,), preexec_fn=die_with_parent)
    while process.poll() is None and not told:
        ready, _, _ = select.select([pipe, woken], [], [], 1.0)
        if woken in ready:
            os.read(woken, 512)
        if pipe in ready:  # its other end was closed: the study is gone, or wants an end
            break
    code = process.poll()
    end_all(os.environ.get(MARK, ""))
    code = process.wait() if code is None else code
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def die_with_parent() -> None:
    """Linux: get SIGKILL when the process dies that started this one."""
    if LINUX:
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)


def end_all(mark: str, descendants: bool = True) -> list[int]:
    """Kill every descendant of this process and every process that carries the mark.

    Args:
        mark: value of `MARK`; "" for descendants alone.
        descendants: whether descendants without the mark are killed, too.

    Returns:
        The numbers of the processes that were killed.
    """
    import psutil

    killed: list[int] = []
    end = time.monotonic() + PATIENCE
    while True:
        # A process may start another one while it is being killed: look until there is none.
        left = [p for p in _family(mark, descendants) if _is_running(p)]
        if not left or time.monotonic() > end:
            return killed
        for process in left:
            try:
                process.kill()
                killed.append(process.pid)
            except psutil.Error:
                pass
        psutil.wait_procs(left, timeout=0.5)


def _family(mark: str, descendants: bool) -> Iterator[Any]:
    import psutil

    me = psutil.Process()
    family = {process.pid for process in me.children(recursive=True)} if descendants else set()
    spared = {me.pid, *(process.pid for process in me.parents())}
    for process in psutil.process_iter():
        if process.pid in family or (
            mark and process.pid not in spared and _environment(process).get(MARK) == mark
        ):
            yield process


def _environment(process: Any) -> dict[str, str]:
    import psutil

    try:
        return dict(process.environ())
    except (psutil.Error, OSError):  # another user's
        return {}


def _is_running(process: Any) -> bool:
    import psutil

    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


if __name__ == "__main__":
    main()
