"""Blocks inside the units of a stage, as a row ``C2f+inside`` asks for.

The mark and its mapping are taken out before Ultralytics' ``parse_model`` sees the row, and the
stage that it built is operated on: width, repeats and what a release does with a name are its own.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.location import INSIDE, MARK, Location
from yolo_attn.overlay.modules import stock_module
from yolo_attn.registry import BlockInfo, find_block
from yolo_attn.seam.stage_units import Unit, find_units

Marks = dict[int, list[Any]]
# Options by which a layer is told what the convolution was whose place it takes.
KERNEL, STRIDE = ("kernel_size", "k"), ("stride", "s")


def without_marks(d: dict[str, Any], where: Location) -> tuple[dict[str, Any], Marks]:
    """A model dictionary without the marks of its rows, and what they say.

    Args:
        d: A plain model dictionary; not changed.
        where: Names its rows in messages.

    Returns:
        The dictionary that Ultralytics builds, and row -> ``[[place, module, args], ...]``.

    Raises:
        YoloAttnError: A mark is malformed.
    """
    marks: Marks = {}
    plain = dict(d)
    i = 0
    for section in ("backbone", "head"):
        rows = []
        for row in d[section]:
            if isinstance(row, (list, tuple)) and len(row) == 4 and MARK in str(row[2]):
                row, marks[i] = _split(row, where.of_layer(i))
            rows.append(row)
            i += 1
        plain[section] = rows
    return (plain, marks) if marks else (d, {})


def _split(row: Any, where: str) -> tuple[list[Any], list[Any]]:
    f, n, name, args = row
    stage, _, word = name.partition(MARK)
    last = args[-1] if isinstance(args, (list, tuple)) and args else None
    chosen = last.get(INSIDE) if isinstance(last, dict) and set(last) == {INSIDE} else None
    good = isinstance(chosen, (list, tuple)) and all(
        isinstance(choice, (list, tuple))
        and len(choice) == 3
        and isinstance(choice[0], str)
        and isinstance(choice[1], str)
        and isinstance(choice[2], (list, tuple))
        for choice in chosen
    )
    if word != INSIDE or not good or not chosen:
        raise YoloAttnError(
            f"{where}: {name} with args={args!r} (accepted: {stage}{MARK}{INSIDE} with a last "
            f"argument {{{INSIDE}: [[place, module, args], ...]}}; `yolo-attn expand` writes it)"
        )
    return [f, n, stage, list(args[:-1])], list(chosen)


def operate(layers: nn.Sequential, marks: Marks, d: dict[str, Any], where: Location) -> None:
    """Put the blocks into the stages that were built.

    Args:
        layers: The rows; changed in place.
        marks: Row -> what its mark says.
        d: The model's dictionary, for its width multiple.
        where: Names its rows in messages.

    Raises:
        YoloAttnError: A stage has no such place, or a block does not fit it. A marked row is never
            left as the base's.
    """
    for i, chosen in marks.items():
        row: Any = layers[i]
        for place, module, args in chosen:
            units = find_units(row)
            has = {p for unit in units for p in unit.places}
            stage = str(row.type).rsplit(".", 1)[-1]
            if place not in has:
                order = [p for p in ("branch", "unit", "conv1", "conv2") if p in has]
                there = f"it has {', '.join(order)}" if order else "it has no units"
                raise YoloAttnError(
                    f"{where.of_layer(i)}: {stage} has no place {place} at scale "
                    f"{d.get('scale') or 'of this model'} ({there})"
                )
            for unit in units:
                try:
                    _put(row, unit, place, module, list(args), d, where)
                except YoloAttnError as error:
                    at = f"{where.of_layer(i)} {place} of {unit.path or stage}"
                    raise YoloAttnError(f"{at}: {error}") from None
        row.np = sum(p.numel() for p in row.parameters())


def _put(
    row: nn.Module,
    unit: Unit,
    place: str,
    module: str,
    args: list[Any],
    d: dict[str, Any],
    where: Location,
) -> None:
    from yolo_attn.seam.inside_convs import in_width, kernel_of, out_width, put_after

    if place == "branch":
        conv = row.get_submodule(unit.convs[place])
        width = out_width(conv)
        if width is None:
            raise YoloAttnError(f"{type(conv).__name__} ends the branch, which no block can follow")
        block, out = _block(module, width, None, args, {}, d, where)
        if out != width:
            raise YoloAttnError(
                f"{module} gives {out} channels for {width}; the sum with the shortcut needs as "
                "many"
            )
        if not put_after(conv, block):
            raise YoloAttnError(f"{type(conv).__name__} is not known, so no block can follow it")
        return
    path = unit.path if place == "unit" else unit.convs[place]
    old: Any = row.get_submodule(path)
    asked: dict[tuple[str, ...], Any] = {}
    if place == "unit":
        width, wanted = _widths(row, unit, old)
    else:
        width, wanted = in_width(old), out_width(old)
        kernel = kernel_of(old)
        asked = {KERNEL: kernel[0] if len(set(kernel)) == 1 else list(kernel)}
    if width is None or wanted is None:
        raise YoloAttnError(f"the widths of {type(old).__name__} are not known")
    block, out = _block(module, width, wanted, args, asked, d, where)
    if out != wanted:
        raise YoloAttnError(
            f"{module} gives {out} channels where {wanted} are needed (it reads {width})"
        )
    parent, _, name = path.rpartition(".")
    holder = row.get_submodule(parent) if parent else row
    setattr(holder, name, block) if name else None
    if not name:
        raise YoloAttnError("the row itself is the unit; `replace` gives it another module")


def _widths(row: nn.Module, unit: Unit, old: Any) -> tuple[int | None, int | None]:
    """Input and output channels of a unit."""
    from yolo_attn.seam.inside_convs import in_width, out_width

    if "conv1" in unit.convs:
        first, last = (row.get_submodule(unit.convs[p]) for p in ("conv1", "branch"))
        return in_width(first), out_width(last)
    for conv in old.modules():  # CIB, RepConv, PSABlock, ABlock: as wide behind as before
        if isinstance(conv, nn.Conv2d):
            return conv.in_channels, conv.in_channels
    return None, None


def _block(
    module: str,
    width: int,
    wanted: int | None,
    args: list[Any],
    asked: dict[tuple[str, ...], Any],
    d: dict[str, Any],
    where: Location,
) -> tuple[nn.Module, int]:
    """Build a module for one input width.

    Args:
        module: Its name.
        width: Channels that it reads.
        wanted: Channels that it has to give; None for as many.
        args: Its args in the YAML.
        asked: Further options, by the names that they may have, where the YAML does not say them.
        d: The model's dictionary.
        where: The model's file.

    Returns:
        The module and its output channels.
    """
    from ultralytics.nn import tasks

    info = find_block(module)
    if info is None:
        if not stock_module(module, vars(tasks)):
            raise YoloAttnError(f"unknown module {module!r}")
        built = getattr(tasks, module, None)
        if built is None:
            raise YoloAttnError(f"{module} cannot stand inside a stage (accepted: a block)")
        try:
            kernel = [v for names, v in asked.items() if names == KERNEL and not args]
            return built(width, wanted or width, *(args or kernel)), wanted or width
        except Exception as error:
            raise YoloAttnError(f"{module}: {type(error).__name__}: {error}") from None
    return _ours(info, width, wanted, args, asked, d, where)


def _ours(
    info: BlockInfo,
    width: int,
    wanted: int | None,
    args: list[Any],
    asked: dict[tuple[str, ...], Any],
    d: dict[str, Any],
    where: Location,
) -> tuple[nn.Module, int]:
    from yolo_attn.seam.block_rows import build_block

    names = list(info.options)
    keywords = dict(args.pop()) if args and isinstance(args[-1], dict) else {}
    own: dict[str, Any] = {}
    # The widths that a row would give by position are those of the place.
    out = names[0] if names and names[0] in info.width_options else None
    if out and wanted is not None and (wanted != width or info.layer):
        own[out] = wanted
        names = names[1:]
    given = {**dict(zip(names, args)), **keywords}
    if len(args) > len(names):
        raise YoloAttnError(f"{info.name} takes at most {len(names)} options here, got {args}")
    for options, value in asked.items():
        name = next((n for n in options if n in info.options), None)
        if name and name not in given:
            given[name] = value
    return build_block(info, width, {**given}, own, d, where.source)
