"""The modules that a row of a model YAML may name; what is said of any other name."""

from __future__ import annotations

import importlib
from types import FunctionType
from typing import Any

from torch import nn

from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.host import foreign
from yolo_attn.overlay.location import PROVENANCE, Location, migrate_command
from yolo_attn.registry import failed_imports, find_block, in_this_project, known_names
from yolo_attn.versions import FORMER_ALIASES

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


def refuse_unknown_block(d: dict[str, Any], rows: list[Any] | None, original: FunctionType) -> None:
    """Explain an unknown module where that is ours to do; stock says a bare KeyError.

    Raises:
        YoloAttnError: A name of the field, a name near one of ours, or any in a model of ours.
    """
    if foreign():
        return  # a fork may know more ways to name a module, and explains its own rows
    for i, row in enumerate(rows or ()):
        name = row[2]
        if (
            not isinstance(name, str)
            or known_module(name, original.__globals__)
            or name in original.__globals__
        ):
            continue
        near = in_this_project(name) or did_you_mean(name, known_names()) or failed_imports()
        if near or PROVENANCE in d or any(_ours_alone(r[2], original) for r in rows or ()):
            where = Location(d)
            raise YoloAttnError(
                f"{where.of_layer(i)}: {unknown(name, where.source, made_here=PROVENANCE in d)}"
            )


def _ours_alone(name: Any, original: FunctionType) -> bool:
    return not stock_module(name, original.__globals__) and known_module(name, original.__globals__)


def check_modules(d: dict[str, Any], where: Location) -> None:
    """Refuse rows that name something else than a module (stock would call any name it imports).

    Raises:
        YoloAttnError: Names file, row and name.
    """
    if foreign():
        return
    from ultralytics.nn import tasks

    for i, row in enumerate([*d["backbone"], *d["head"]]):
        if known_module(row[2], vars(tasks)):
            continue
        if in_this_project(row[2]):
            said = unknown(row[2], where.source, made_here=PROVENANCE in d)
        else:
            said = (
                f"{row[2]!r} is no module of Ultralytics {host_version()}, torch.nn, "
                f"torchvision.ops or yolo_attn{did_you_mean(row[2], known_names())}"
                f"{failed_imports()}"
            )
        raise YoloAttnError(f"{where.of_layer(i)}: {said}")


def unknown(name: str, file: str, made_here: bool) -> str:
    """What is said of a name that neither Ultralytics nor we have.

    Args:
        name: The name.
        file: What `yolo-attn migrate` would be called with.
        made_here: Whether the model is an overlay of ours or was made from one.
    """
    meant = in_this_project(name)
    if meant:
        former = FORMER_ALIASES.get(name)
        if former and made_here:
            meant += f"; up to 0.1.0 it stood for {former}: write that if the file is as old"
        return f"unknown block {name!r}, {meant}; {migrate_command(file)} translates forks' rows"
    return (
        f"unknown block {name!r}{did_you_mean(name, known_names()) or ','} neither Ultralytics "
        f"{host_version()} nor yolo_attn has it (`yolo-attn blocks` lists ours){failed_imports()}"
    )
