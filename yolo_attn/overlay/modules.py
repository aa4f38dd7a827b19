"""The modules that a row of a model YAML may name."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.overlay.location import Location
from yolo_attn.registry import find_block, known_names

INDEX = "Index"  # picks one of several outputs; the seam brings one where Ultralytics has none


def host_version() -> str:
    """Version of the installed Ultralytics."""
    import ultralytics

    return str(ultralytics.__version__)


def stock_module(name: Any, tasks_globals: dict[str, Any]) -> bool:
    """Whether the installed ``parse_model`` resolves this module name itself."""
    if not isinstance(name, str):
        return False
    for prefix in ("nn.", "torchvision.ops."):
        if name.startswith(prefix):
            holder = importlib.import_module("torch.nn" if prefix == "nn." else prefix[:-1])
            found = getattr(holder, name[len(prefix) :], None)
            return isinstance(found, type) and issubclass(found, nn.Module)
    found = tasks_globals.get(name)
    return isinstance(found, type) and issubclass(found, nn.Module)


def known_module(name: Any, tasks_globals: dict[str, Any]) -> bool:
    """Whether a row may name this module."""
    return stock_module(name, tasks_globals) or name == INDEX or find_block(name) is not None


def check_modules(d: dict[str, Any], where: Location) -> None:
    """Refuse rows that name something else than a module (stock would call any name it imports).

    Raises:
        YoloAttnError: Names file, row and name.
    """
    from ultralytics.nn import tasks

    for i, row in enumerate([*d["backbone"], *d["head"]]):
        if not known_module(row[2], vars(tasks)):
            raise YoloAttnError(
                f"{where.of_layer(i)}: {row[2]!r} is no module of Ultralytics {host_version()}, "
                f"torch.nn, torchvision.ops or yolo_attn{did_you_mean(row[2], known_names())}"
            )
