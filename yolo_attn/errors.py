"""The one exception for input that is at fault, and how a person gets to read it."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable
from types import TracebackType

TRACEBACK_ENV = "YOLO_ATTN_TRACEBACK"
LONGEST = 1500  # characters of a message


class YoloAttnError(ValueError):
    """Input at fault: one sentence with the file, the row or option, the value and the way out.

    Left uncaught, it ends the process with that sentence on stderr and exit code 1; set
    ``YOLO_ATTN_TRACEBACK=1`` to see the stack as well.
    """

    exit_code = 1  # of the command line

    def __init__(self, message: str):
        super().__init__(_printable(message))
        _print_uncaught_as_one_line()


def _printable(message: str) -> str:
    """One line of bearable length: a damaged file's own values must not flood a terminal."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 210]} ... {text[-200:]}"


def _print_uncaught_as_one_line() -> None:
    """Chain ``sys.excepthook``; done at the first error, so other programs never see it."""
    previous = sys.excepthook
    if getattr(previous, "_yolo_attn", False):
        return

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if issubclass(kind, YoloAttnError) and not os.environ.get(TRACEBACK_ENV):
            print(f"yolo_attn: error: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    hook._yolo_attn = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def did_you_mean(name: object, known: Iterable[str], most: int = 3) -> str:
    """Return ``", did you mean 'A' or 'B'?"`` for the nearest names, or an empty string."""
    lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(str(name).lower(), lower, n=most, cutoff=0.6)
    return f", did you mean {' or '.join(repr(lower[k]) for k in near)}?" if near else ""
