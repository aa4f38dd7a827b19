"""Results on disk: one folder a trial, files written whole or not at all, one writer at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_attn.ablation.checkpoint_facts import is_pair, moment
from yolo_attn.errors import YoloAttnError

STUDY, TRIAL, LOCK = "study.json", "trial.json", ".lock"
RUNNING, FAILED, DONE = "running", "failed", "done"
INVALID = "invalid"  # finished, but what it depends on changed meanwhile
ARCHIVE, MODELS = "archive", "models"  # in a study's folder: trials put aside; YAMLs of its own
# What else is in a study's folder, beside one folder an arm.
TAKEN_NAMES = frozenset(
    (STUDY, ARCHIVE, MODELS)
    + ("costs.json", "report.html", "figures", "table.csv", "table.tex", "blocks.csv", "blocks.tex")
)
TRAIN, SAFE = "train", "safe"  # Ultralytics' folder, and our copy of its last whole checkpoint
TRAINED = "trained"  # a file that the child leaves between training and evaluation
TRAINER = "trainer.json"  # versions of the process that trained, which may be another machine's
TRAIN_LOG, EVALUATE_LOG = "train.log", "evaluate.log"
KEPT = ("weights/last.pt", "weights/best.pt", "results.csv")


@dataclass(frozen=True)
class TrialFolder:
    """The folder of one trial, <study>/<arm>/<seed>."""

    path: Path

    @property
    def record(self) -> dict[str, Any]:
        """What trial.json says; empty if there is none."""
        return read_json(self.path / TRIAL) or {}

    @property
    def status(self) -> str:
        """`RUNNING`, `FAILED`, `DONE`, or "" if it was never started."""
        return self.record.get("status", "")

    def write(self, **changes: Any) -> dict[str, Any]:
        """Replace some entries of trial.json."""
        record = {**self.record, **changes}
        write_json(self.path / TRIAL, record)
        return record

    @property
    def best(self) -> Path:
        """The checkpoint that is evaluated."""
        return self.path / TRAIN / "weights" / "best.pt"

    @property
    def trained(self) -> bool:
        """Whether its training came to its end."""
        return (self.path / TRAINED).is_file() and self.best.is_file()

    @property
    def empty(self) -> bool:
        """Whether nothing was ever done in it."""
        return not self.path.is_dir() or all(e.name == LOCK for e in self.path.iterdir())

    def keep_checkpoint(self) -> bool:
        """Copy Ultralytics' newest checkpoint beside it if it is whole and newer than our copy.

        Ultralytics writes last.pt in place: killed while it writes, it leaves half a file; killed
        before it writes best.pt, the two are of different epochs. Both keep the older copy.
        """
        train, safe = self.path / TRAIN, self.path / SAFE
        last = train / KEPT[0]
        try:
            stamp = last.stat().st_mtime_ns
        except OSError:
            return False
        if (safe / "stamp").is_file() and (safe / "stamp").read_text() == str(stamp):
            return False
        new, old = self.path / f"{SAFE}.new", self.path / f"{SAFE}.old"
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir()
            for name in KEPT:
                if (train / name).is_file():
                    shutil.copy2(train / name, new / Path(name).name)
            (new / "stamp").write_text(str(stamp))
            unchanged = last.stat().st_mtime_ns == stamp
        except OSError:
            unchanged = False  # the disk is full, or the training is replacing the file
        both = [new / "last.pt", new / "best.pt"]
        whole = unchanged and all(file.is_file() and is_whole(file) for file in both)
        if not whole or not is_pair(*both):
            shutil.rmtree(new, ignore_errors=True)
            return False
        if at := moment(both[0]):
            # The row of the next epoch is written before its checkpoint.
            cut_rows(new / Path(KEPT[2]).name, at.epoch + 1)
        shutil.rmtree(old, ignore_errors=True)
        if safe.exists():
            safe.rename(old)
        new.rename(safe)
        shutil.rmtree(old, ignore_errors=True)
        return True

    def restore_checkpoint(self) -> Path | None:
        """Put the last whole checkpoint back into place; None if there is none.

        Returns:
            last.pt, ready for ``yolo train resume``.
        """
        train = self.path / TRAIN
        # A kill between the two renames leaves the copy under its old name.
        folders = [self.path / name for name in (SAFE, f"{SAFE}.old")]
        safe = next((f for f in folders if (f / "stamp").is_file()), None)
        if safe is None:
            return None
        for name in KEPT:
            if (safe / Path(name).name).is_file():
                (train / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(safe / Path(name).name, train / name)
        return train / KEPT[0]

    def drop_safe_copy(self) -> None:
        """A finished training needs no copy."""
        for name in (SAFE, f"{SAFE}.old", f"{SAFE}.new"):
            shutil.rmtree(self.path / name, ignore_errors=True)


def put_aside(study: Path, trials: Sequence[Path]) -> Path | None:
    """Move trials of a study into a new folder of its archive; nothing is deleted.

    Args:
        study: its folder.
        trials: folders <study>/<arm>/<seed>.

    Returns:
        The new folder; None if there was nothing to move.

    Raises:
        YoloAttnError: another process is at one of them, and then none is moved; or the folder
            cannot be written.
    """
    there = [path for path in trials if not TrialFolder(path).empty]
    if not there:
        return None
    with contextlib.ExitStack() as stack:
        for path in there:
            if stack.enter_context(locked(path)) is None:
                raise YoloAttnError(f"{path}: another process is at it; wait, or end that one")
        place = _new_archive(study)
        for path in there:
            target = place / path.relative_to(study)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)  # whole or not at all, the lock included
            except OSError as error:
                raise YoloAttnError(
                    f"{path}: cannot be moved to {target} ({error.strerror})"
                ) from error
    return place


def _new_archive(study: Path) -> Path:
    name = time.strftime("%Y-%m-%d_%H-%M-%S")
    number = 1
    while True:
        place = study / ARCHIVE / (name if number == 1 else f"{name}-{number}")
        try:
            place.mkdir(parents=True)
            return place
        except FileExistsError:  # another one in this second
            number += 1
        except OSError as error:
            raise YoloAttnError(f"{place}: cannot be written ({error.strerror})") from error


def cut_rows(table: Path, rows: int) -> None:
    """Keep a table's header and its first rows."""
    with contextlib.suppress(OSError):
        lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
        if len(lines) > rows + 1:
            table.write_text("".join(lines[: rows + 1]), encoding="utf-8")


def is_whole(file: Path) -> bool:
    """Whether a checkpoint was written to its end (a zip has its directory there, and CRCs)."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError):
        return False


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all.

    Raises:
        YoloAttnError: the disk is full or the folder cannot be written.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; errors as `write_json`."""
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            draft = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # a rename may otherwise reach the disk before the content
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except OSError as error:
        if draft:
            with contextlib.suppress(OSError):
                os.unlink(draft)
        raise YoloAttnError(
            f"{path}: cannot be written ({error.strerror}); what is finished is kept: free some "
            "space or mend the folder, and run the study again"
        ) from error


def read_json(path: Path) -> Any:
    """Content of a JSON file, or None if there is none.

    Raises:
        YoloAttnError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise YoloAttnError(
            f"{path}: cannot be read ({error}); remove its folder to do that trial again"
        ) from None


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[int | None]:
    """Hold the lock of a folder; the system frees it when its last holder ends, however it ends.

    Yields:
        The open file that holds the lock (a child that inherits it holds it, too), or None if
        somebody else has it and `wait` is false.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise YoloAttnError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            # Put aside meanwhile, the folder took the file along: this lock is of the old trial.
            yield handle if _is_at(handle, folder / LOCK) else None
    finally:
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False
