"""SHA-256 of many files, remembered by path, size and time: a large data set is read once.

The memory is one JSON file a data set below $XDG_CACHE_HOME/yolo-attn (default ~/.cache); without
it everything is read again, and nothing else changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

from yolo_attn.ablation.store import write_text
from yolo_attn.errors import YoloAttnError

ABSENT = "absent"
UNFINISHED = "unfinished JPEG"  # Ultralytics writes such a file anew when it first reads it
JPEG, JPEG_END = (".jpg", ".jpeg"), b"\xff\xd9"
SETTLED = 2.0  # seconds: a file written just now may change again within the clock's step
PATIENCE = 2.0  # seconds before progress is shown


def hash_file(file: Path) -> str:
    """SHA-256 of a file; `ABSENT` without it, `UNFINISHED` for a JPEG that lacks its end.

    Raises:
        YoloAttnError: it cannot be read.
    """
    digest, end = hashlib.sha256(), b""
    try:
        with open(file, "rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
                end = (end + block)[-2:]
    except FileNotFoundError:
        return ABSENT
    except OSError as error:
        raise YoloAttnError(f"{file}: cannot be read ({error.strerror})") from error
    unfinished = file.suffix.lower() in JPEG and end != JPEG_END
    return UNFINISHED if unfinished else digest.hexdigest()


def hash_files(files: Sequence[Path], what: str) -> list[str]:
    """`hash_file` of each; what the memory knows under the same size and times is not read.

    Args:
        files: any number.
        what: whose files they are: names the memory, and the progress that a terminal shows.

    Raises:
        YoloAttnError: a file cannot be read.
    """
    memory = _memory_of(what)
    known, new, found = _recall(memory), {}, []
    with _progress(len(files), what) as advance:
        for file in files:
            stamp = _stamp(file)
            entry = known.get(str(file))
            if stamp and entry and entry[:-1] == stamp:
                found.append(str(entry[-1]))
                continue
            value = hash_file(file)
            if stamp and time.time() - max(stamp[1:3]) / 1e9 > SETTLED:
                new[str(file)] = [*stamp, value]
            found.append(value)
            advance(len(found))
    if new:
        with contextlib.suppress(YoloAttnError):  # a home that cannot be written: read again
            write_text(memory, json.dumps({**known, **new}))
    return found


def _stamp(file: Path) -> list[int] | None:
    """Size, time of the content, time of the entry (a copy that keeps the first has another)."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _memory_of(what: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(str(what).encode()).hexdigest()[:16]
    return Path(home) / "yolo-attn" / "hashes" / f"{name}.json"


def _recall(memory: Path) -> dict[str, list[int | str]]:
    try:
        content = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr once it takes long; one plain line where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    begin, shown = time.monotonic(), False
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with contextlib.ExitStack() as stack:
        bar: Progress | None = None

        def advance(done: int) -> None:
            nonlocal bar, shown
            if not shown and time.monotonic() - begin > PATIENCE:
                shown = True
                if console.is_terminal:
                    bar = stack.enter_context(Progress(*columns, console=console, transient=True))
                    bar.add_task(f"reading {what}", total=total)
                else:
                    print(f"reading the {total} files of {what}", file=sys.stderr, flush=True)
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done)

        yield advance
