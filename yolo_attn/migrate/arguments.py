"""The arguments of a fork's row: leading widths apart, the others by what they can mean."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from yolo_attn.migrate.widths import LEAST_WIDTH, Scale

# A whole number from here on is no reduction, kernel size or number of groups of any module here.
CERTAINLY_WIDTH = 48


@dataclass(frozen=True)
class Argument:
    """An argument that a module of a fork takes after its widths.

    Attributes:
        name: What it is called here.
        accepts: Whether a value can be it.
    """

    name: str
    accepts: Callable[[Any], bool]


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high


def _odd(low: int, high: int) -> Callable[[Any], bool]:
    whole = _whole(low, high)
    return lambda v: whole(v) and v % 2 == 1


def _even(low: int, high: int) -> Callable[[Any], bool]:
    whole = _whole(low, high)
    return lambda v: whole(v) and v % 2 == 0


def _small_number(v: Any) -> bool:
    return isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v <= 1


REDUCTION = Argument("reduction", _whole(2, 64))
# CBAM's two options: a bottleneck is divided by an even number, a kernel has an odd side.
EVEN_REDUCTION = Argument("reduction", _even(2, 64))
KERNEL_SIZE = Argument("kernel_size", _odd(3, 31))
FACTOR = Argument("factor", _whole(2, 64))
LAMBDA = Argument("e_lambda", _small_number)
LOCAL_SIZE = Argument("local_size", _whole(2, 20))
GROUPED = Argument("grouped", lambda v: isinstance(v, bool))
HEADS = Argument("num_heads", _whole(1, 32))
WINDOWS = Argument("n_win", _whole(1, 32))


@dataclass(frozen=True)
class Arguments:
    """What the arguments of a row mean.

    Attributes:
        widths: The numbers that are channel counts, in order.
        odd_widths: Those of them that are not the width of what the row reads.
        values: The others by name.
        unknown: Those that fit nothing.
    """

    widths: tuple[int, ...]
    odd_widths: tuple[int, ...]
    values: dict[str, Any]
    unknown: tuple[Any, ...]


def plain(value: Any) -> Any:
    """A value as ``parse_model`` reads it: ``"1e-4"`` and ``"None"`` are strings in YAML."""
    if isinstance(value, str):
        try:
            return ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return value


def _only_a_width(value: int, accepted: Sequence[Argument]) -> bool:
    """Whether a number can be nothing but a channel count, although it is not this layer's."""
    if value >= CERTAINLY_WIDTH:
        return True
    return value >= LEAST_WIDTH and not any(a.accepts(value) for a in accepted)


def read_arguments(
    args: Sequence[Any], accepted: Sequence[Argument], channels: int | None, scale: Scale
) -> Arguments:
    """Tell the channel counts of a row from its options.

    A leading whole number is a channel count if it is the width of what the row reads, declared or
    scaled, or if it is too large to be anything else.

    Args:
        args: The row's arguments.
        accepted: What the module takes after its widths, in order; each may be left out.
        channels: C of what the row reads; None where it is unknown.
        scale: The scale at which C holds.
    """
    rest = [plain(a) for a in args]
    widths: list[int] = []
    odd: list[int] = []
    while rest and isinstance(rest[0], int) and not isinstance(rest[0], bool):
        value = rest[0]
        is_width = channels is not None and channels in (value, scale.channels(value))
        # Behind a width, only a number that nothing else can be is another one.
        if is_width and widths and any(a.accepts(value) for a in accepted):
            is_width = value >= CERTAINLY_WIDTH
        if not is_width and not _only_a_width(value, accepted):
            break
        widths.append(rest.pop(0))
        if not is_width:
            odd.append(value)
    values: dict[str, Any] = {}
    left = list(accepted)
    unknown = []
    for value in rest:
        fits = next((a for a in left if a.accepts(value)), None)
        if fits is None:
            unknown.append(value)
        else:
            values[fits.name] = value
            left = left[left.index(fits) + 1 :]
    return Arguments(tuple(widths), tuple(odd), values, tuple(unknown))
