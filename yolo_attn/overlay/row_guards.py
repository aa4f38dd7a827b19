"""Arguments of our rows: channel counts are scaled, and those of forks never taken for options.

Half of the forks put a channel count first in a row's arguments (``CBAM [1024]``); here the first
argument is the first option, and 1024 a ratio that no paper has.
"""

from __future__ import annotations

import inspect
from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.location import migrate_command
from yolo_attn.registry import BlockInfo
from yolo_attn.versions import made_before

# Under these a number is a genuine option of some block (heads, a kernel's side), and scaling
# rounds everything up to 8.
LEAST_WIDTH = 8
LEAST_DECLARED = 16
MOST_WIDTH = 10**6


def scaled(info: BlockInfo, options: list[Any], local: dict[str, Any]) -> list[Any]:
    """Channel options scaled with the model's width, as Ultralytics scales its own.

    Args:
        info: The row's block.
        options: Its options in order.
        local: Variables of ``parse_model``: `width` and `max_channels` count.
    """

    def one(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [one(v) for v in value]
        return (
            value if isinstance(value, bool) or not isinstance(value, int) else _scale(value, local)
        )

    def is_scaled(name: str, value: Any) -> bool:
        # Scaling rounds up to a multiple of 8: a bottleneck under 8 could not be asked for.
        narrow = name == "rd_channels" and isinstance(value, int) and value < LEAST_WIDTH
        return name in info.width_options and (not narrow or made_before("0.2.0"))

    return [
        one(value) if is_scaled(name, value) else value
        for name, value in zip(info.options, options)
    ]


def refuse_width(
    info: BlockInfo, args: list[Any], channels: int | list[int], local: dict[str, Any], file: str
) -> None:
    """Refuse a first argument that is the width of a layer that the row reads.

    Args:
        info: The row's block.
        args: The row's arguments.
        channels: Width of what the row reads, or a list of them.
        local: Variables of ``parse_model``: `width` and `max_channels` count.
        file: What `yolo-attn migrate` would be called with.

    Raises:
        YoloAttnError: It is, and the first option is no channel count.
    """
    value = args[0] if args else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if 0 < value < LEAST_WIDTH and list(info.options)[:1] == ["out_channels"]:
        # Scaling would make 8 channels of a fork's scale (DySample [2, lp]) or dummy (SPDConv [1]).
        raise YoloAttnError(
            f"{info.name} {args!r}: {value!r} is no width (accepted: at least {LEAST_WIDTH}, or "
            f"null; the options in order are {', '.join(list(info.options)[:4])} ...); a fork's "
            f"row? {migrate_command(file)} translates it"
        )
    if not LEAST_WIDTH <= value <= MOST_WIDTH or value != int(value):
        return
    names = list(info.options)
    if names and names[0] in info.width_options:
        return
    widths = [channels] if isinstance(channels, int) else channels
    found = value if value in widths else None
    if found is None and value >= LEAST_DECLARED and _scale(int(value), local) in widths:
        found = _scale(int(value), local)
    if found is None:
        return
    here = "" if found == value else f", {found} at this scale"
    meaning = f"would mean {names[0]}={value!r}" if names else "has no meaning"
    raise YoloAttnError(
        f"{info.name} {args!r}: {value!r} is the width of the layer that the row reads{here}; "
        f"forks put it first, here it {meaning}: {migrate_command(file)} writes what was meant"
        + _as_keyword(info, value)
    )


def _as_keyword(info: BlockInfo, value: Any) -> str:
    """How to write the option all the same, where such a number can be a value of it."""
    for name, parameter in list(inspect.signature(info.cls.__init__).parameters.items())[2:3]:
        if "float" not in str(parameter.annotation) and "str" not in str(parameter.annotation):
            return f" (if the option is meant, write {{{name}: {value!r}}})"
    return ""


def point_to_migrate(error: YoloAttnError, args: list[Any], file: str) -> YoloAttnError:
    """The error of a row that was refused; with the way out for a fork's, if it gives numbers."""
    positional = args[:-1] if args and isinstance(args[-1], dict) else args
    numbers = [v for a in positional for v in (a if isinstance(a, (list, tuple)) else [a])]
    if not any(isinstance(v, (int, float)) and not isinstance(v, bool) for v in numbers):
        return error
    return YoloAttnError(f"{error}; a fork's row? {migrate_command(file)} translates it")


def _scale(value: int, local: dict[str, Any]) -> int:
    from ultralytics.utils.ops import make_divisible

    width, max_channels = local.get("width", 1.0), local.get("max_channels", float("inf"))
    return int(make_divisible(min(value, max_channels) * width, 8))
