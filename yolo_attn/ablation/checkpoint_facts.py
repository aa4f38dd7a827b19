"""What a checkpoint says of itself: when it was written, and with which arguments.

Do last.pt and best.pt belong to one moment of a training? Ultralytics writes one, then the other;
each holds the best fitness at its own moment, so a best.pt that was not yet replaced tells on
itself. Only plain values are read: no tensor, and no class but a stand-in is ever built.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUMBERS = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
PLAIN = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),  # how NumPy's numbers are written
    *((module, name) for module in NUMBERS for name in ("dtype", "scalar")),
}
STRIPPED = -1  # the epoch of a checkpoint whose optimizer was taken out at the end


@dataclass(frozen=True)
class Moment:
    """When a checkpoint was written.

    Attributes:
        epoch: from 0; `STRIPPED` at the end of the training.
        fitness: of this epoch.
        best: the best fitness so far, this epoch's included.
    """

    epoch: int
    fitness: Any
    best: Any


def moment(file: Path) -> Moment | None:
    """When a checkpoint was written; None if it does not say."""
    try:
        content = _content(file)
        metrics = content.get("train_metrics") or {}
        return Moment(
            int(content["epoch"]), _number(metrics.get("fitness")), _number(content["best_fitness"])
        )
    except Exception:  # pickles that are no checkpoint fail in any way
        return None


def train_arguments(file: Path) -> dict[str, Any] | None:
    """The arguments that Ultralytics trained a checkpoint with; None if it does not say."""
    try:
        found = dict(_content(file)["train_args"])
    except Exception:  # as above
        return None
    simple = (type(None), bool, int, float, str, list, tuple, dict)
    return {str(key): value for key, value in found.items() if isinstance(value, simple)}


def write_arguments(file: Path, changes: Mapping[str, Any]) -> bool:
    """Change arguments that a checkpoint of Ultralytics holds, unless it holds them already.

    Returns:
        Whether it holds them now.
    """
    known = train_arguments(file)
    if known is None or all(str(known.get(k)) == str(v) for k, v in changes.items()):
        return True
    import torch

    draft = file.with_name(f".{file.name}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=False)
        content["train_args"].update(changes)
        torch.save(content, draft)
        os.replace(draft, file)
    except Exception:  # whatever a class of the checkpoint raises
        draft.unlink(missing_ok=True)
        return False
    return True


def _content(file: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        name = next(n for n in archive.namelist() if n.rsplit("/", 1)[-1] == "data.pkl")
        return _Reader(io.BytesIO(archive.read(name))).load()


def is_pair(last: Path, best: Path) -> bool:
    """Whether best.pt is the one that the training had when it had written last.pt.

    A checkpoint of the end has no optimizer, so nothing can be resumed from it: no pair.
    """
    now, then = moment(last), moment(best)
    if now is None or then is None:
        return last.read_bytes() == best.read_bytes()
    if STRIPPED in (now.epoch, then.epoch) or then.best != now.best or then.epoch > now.epoch:
        return False
    # As good as the best: this epoch's weights have just become, or are about to become, best.pt.
    return now.fitness is None or now.fitness != now.best or now.epoch == then.epoch


def _number(value: Any) -> Any:
    return None if value is None or isinstance(value, _StandIn) else float(value)


class _StandIn:
    """In place of whatever class a checkpoint names."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> _StandIn:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """A list's."""

    def extend(self, values: Any) -> None:
        """A list's."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if (module, name) in PLAIN else _StandIn

    def persistent_load(self, pid: Any) -> Any:
        return _StandIn()
