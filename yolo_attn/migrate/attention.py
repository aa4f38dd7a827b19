"""One attention row of a fork: the block, options and parameters that it means here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.migrate.arguments import Arguments, plain, read_arguments
from yolo_attn.migrate.designs import Design, Family, family_of
from yolo_attn.migrate.names import FIELD_NAMES, LATER_NAMES
from yolo_attn.migrate.widths import Scale

# The hidden width as a share of C that our blocks take where a row says nothing.
OUR_NARROWEST = 8


class CannotMeanError(Exception):
    """A row that cannot be meant here; its text is why."""


@dataclass(frozen=True)
class Meaning:
    """What a row means.

    Attributes:
        block: Our block.
        options: Options that it is built with at this scale.
        parameters: Of one such block.
        why: What was changed, and what the YAML cannot tell.
        floor: Smallest hidden width of the fork's class; None where it has no bottleneck.
    """

    block: str
    options: dict[str, Any]
    parameters: int
    why: str
    floor: int | None = None


def meaning_of(
    module: str,
    args: Sequence[Any],
    channels: Any,
    scale: Scale,
    designs: Mapping[str, str],
) -> Meaning | None:
    """What an attention row of a fork means.

    Args:
        module: The row's module.
        args: Its arguments.
        channels: C of what it reads; a list for several inputs, None where unknown.
        scale: The scale at which C holds.
        designs: Choices of the user, module name -> design.

    Returns:
        The meaning; None for a module that is no attention row of ours or of the field.

    Raises:
        CannotMeanError: The row cannot be meant.
    """
    from yolo_attn.overlay.host_rows import host_has
    from yolo_attn.registry import block_info, find_block

    family = family_of(module)
    info = find_block(module)
    if args and isinstance(args[-1], Mapping):
        # Keywords are how rows of this project are written; a fork's parser knows none.
        return _as_written(module, args, channels) if info else None
    if family is None:
        later = LATER_NAMES.get(module)
        if info is not None:
            if later and args:
                raise CannotMeanError(
                    f"{module} {list(args)}: what forks' arguments of it mean is not known here "
                    f"(accepted: {module} [], or options by name: `yolo-attn blocks {info.name}`)"
                )
            return None if info.layer else _ours(module, args, channels, scale)
        if host_has(module):
            return None
        if (note := later) is not None:
            raise CannotMeanError(f"{module}: {note}")
        if (field := FIELD_NAMES.get(module)) is not None:
            raise CannotMeanError(
                f"{module}: its design is not known here (nearest: {', '.join(field.blocks)})"
            )
        return None
    design = _chosen(module, family, designs, args, info is not None)
    several = block_info(design.block).takes_list
    if not (isinstance(channels, list) if several else isinstance(channels, int)):
        raise CannotMeanError(
            f"{module} reads {channels if channels else 'a row of unknown width'} (accepted: "
            f"{'several maps' if several else 'one map'} of known width)"
        )
    read = read_arguments(args, design.takes, None if several else channels, scale)
    if read.unknown and info is not None and _only_ours(args):
        return _as_written(module, args, channels)
    if read.unknown:
        raise CannotMeanError(
            f"{module} {list(args)}: cannot tell what {read.unknown[0]!r} is (accepted after the "
            f"width: {_takes(design)})"
        )
    options = options_of(design, read.values, channels)
    parameters = count(design.block, channels, options)
    why = [
        *_what_changed(module, design, read, channels, options),
        *_doubt(module, family, design, read, channels),
    ]
    return Meaning(design.block, options, parameters, "; ".join(why), design.floor)


def _chosen(
    module: str, family: Family, designs: Mapping[str, str], args: Sequence[Any], ours: bool
) -> Design:
    wanted = next((d for name, d in designs.items() if name.lower() == module.lower()), None)
    if wanted is not None:
        return next(d for d in family.designs if d.name == wanted)
    # `DoubleAttention []` is a row of this project as well; with numbers it is a fork's.
    if family.sure or (ours and not args):
        return family.designs[0]
    first = family.designs[0]
    raise CannotMeanError(
        f"{module}: {family.why_not}; --design {module}={first.name} takes {first.block} "
        f"({first.what})"
    )


def _only_ours(args: Sequence[Any]) -> bool:
    """Whether a row begins with what is an option here and no argument of any fork's class."""
    first = plain(args[0])
    return isinstance(first, (float, str, list))


def _takes(design: Design) -> str:
    return ", ".join(a.name for a in design.takes) or "nothing"


def options_of(design: Design, values: Mapping[str, Any], channels: Any) -> dict[str, Any]:
    """Options of our block for what a row of this design says.

    Args:
        design: The design.
        values: What the row says, by the names of ``arguments.py``.
        channels: C.

    Returns:
        Only what differs from our defaults, or what the row says itself.

    Raises:
        CannotMeanError: The fork's own class cannot be built with these values at this width.
    """
    from yolo_attn.registry import block_info

    given = values.get("reduction")
    values = {**design.defaults, **values}
    known = block_info(design.block).options
    options = dict(design.options)
    reduction = values.pop("reduction", None)
    if "grouped" in values and given:
        options["groups"] = given  # that class divides the width and its convolutions by one number
    if values.pop("grouped", True) is False:
        options["groups"] = 1
    for name, value in values.items():
        options.setdefault(name, value)
    if reduction is not None:
        ratio = 1 / reduction
        if ratio != known["rd_ratio"]:
            options["rd_ratio"] = ratio
        hidden = max(channels // reduction, design.floor or 1)
        if channels // reduction < 1 and not (design.floor or 0) > 1:
            raise CannotMeanError(
                f"{design.block}: {channels} channels divided by {reduction} leave none"
            )
        if hidden != max(int(channels * ratio + 1e-9), OUR_NARROWEST):
            options["rd_channels"] = hidden
    _check_groups(design.block, options, channels)
    said = {"kernel_size", *design.defaults}
    return {k: v for k, v in options.items() if k in said or v != known.get(k)}


def _check_groups(block: str, options: Mapping[str, Any], channels: Any) -> None:
    """Forks' classes fail where groups do not divide a width; our blocks take fewer groups there.

    Raises:
        CannotMeanError: They do not.
    """
    name = "factor" if block == "EMA" else "groups"
    groups = options.get(name)
    if groups is None or not isinstance(channels, int):
        return
    widths = [channels]
    if block == "GAM":
        widths.append(options.get("rd_channels") or int(channels * options.get("rd_ratio", 0.25)))
    bad = next((w for w in widths if w < groups or w % groups), None)
    if bad is not None:
        raise CannotMeanError(
            f"{block}: {bad} channels are no multiple of {groups} groups, and the fork's class "
            "does not run then (accepted: a number of groups that divides them)"
        )


def count(block: str, channels: Any, options: Mapping[str, Any]) -> int:
    """Parameters of a block, built without storage.

    Raises:
        CannotMeanError: It cannot be built.
    """
    import torch

    from yolo_attn.registry import create

    try:
        with torch.device("meta"):
            module = create(block, channels, **options)
    except YoloAttnError as error:
        raise CannotMeanError(str(error)) from None
    return sum(p.numel() for p in module.parameters())


def _what_changed(
    module: str, design: Design, read: Arguments, channels: Any, options: Mapping[str, Any]
) -> list[str]:
    said = []
    if module != design.block:
        said.append(f"{module} is {design.block} here: {design.what}")
    if read.odd_widths:
        said.append(
            f"{', '.join(map(str, read.odd_widths))} dropped: a channel count (the layer that it "
            f"reads has {channels})"
        )
    straight = [w for w in read.widths if w not in read.odd_widths]
    if straight:
        said.append(f"width {', '.join(map(str, straight))} dropped")
    if "reduction" in read.values:
        r = read.values["reduction"]
        said.append(f"reduction {r} is rd_ratio 1/{r}")
    if "rd_channels" in options:
        said.append(
            f"{options['rd_channels']} hidden channels, of which this project's default has "
            f"{OUR_NARROWEST}"
        )
    theirs = {k: v for k, v in options.items() if k not in ("rd_channels", "rd_ratio")}
    unsaid = [f"{k} {v}" for k, v in theirs.items() if k not in read.values]
    if unsaid:
        said.append(f"{', '.join(unsaid)}: as the fork's class has it")
    return said or ["the same here"]


def _doubt(
    module: str, family: Family, design: Design, read: Arguments, channels: Any
) -> list[str]:
    """What the YAML cannot tell: every design with its parameters."""
    if len(family.designs) < 2:
        return []
    counted = []
    for other in family.designs:
        fitting = {a.name for a in other.takes}
        values = {k: v for k, v in read.values.items() if k in fitting}
        try:
            number = f"{count(other.block, channels, options_of(other, values, channels)):,}"
        except CannotMeanError:
            continue
        taken = " (taken)" if other is design else ""
        counted.append(f"{other.name}{taken} {number}")
    return [
        f"the YAML cannot tell which design: {', '.join(counted)} parameters (--design "
        f"{module}=NAME)"
    ]


def _as_written(module: str, args: Sequence[Any], channels: Any) -> Meaning:
    """A row in this project's own words."""
    from yolo_attn.registry import block_info

    info = block_info(module)
    try:
        bound = dict(zip(info.options, info.bind(list(args))))
    except YoloAttnError as error:
        raise CannotMeanError(str(error)) from None
    given = {k: v for k, v in bound.items() if v != info.options[k]}
    return Meaning(info.name, given, count(info.name, channels, given), "the same here")


def _ours(module: str, args: Sequence[Any], channels: Any, scale: Scale) -> Meaning:
    """A row with the name of a block of ours whose forks' designs are not known."""
    from yolo_attn.registry import block_info

    info = block_info(module)
    rest = [plain(a) for a in args]
    dropped: list[Any] = []
    takes_width = next(iter(info.options), "") == "out_channels"
    while (
        rest
        and not takes_width
        and isinstance(rest[0], int)
        and not isinstance(rest[0], bool)
        and isinstance(channels, int)
        and channels in (rest[0], scale.channels(rest[0]))
    ):
        dropped.append(rest.pop(0))
    if dropped and rest:
        raise CannotMeanError(
            f"{module} {list(args)}: what follows the width is not known (accepted: {module} [] "
            f"with options of `yolo-attn blocks {info.name}`)"
        )
    if not dropped:
        return _as_written(module, rest, channels)
    why = f"width {', '.join(map(str, dropped))} dropped"
    return Meaning(info.name, {}, count(info.name, channels, {}), why)
