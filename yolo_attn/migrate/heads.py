"""Rows of YOLOv5 and YOLOv7 that Ultralytics writes otherwise: heads, pools, RepConv."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

ANCHOR_FREE = (
    "the anchor-free head of Ultralytics in place of the anchor head: other outputs, another loss, "
    "no weights of the old head"
)
DETECT = ("Detect", "IDetect", "IAuxDetect", "IBin", "DetectX", "Decoupled_Detect")
SEGMENT = ("Segment", "ISegment")
OTHER_HEADS = {
    "ASFF_Detect": "a head with ASFF in it",
    "IKeypoint": "a head for key points",
    "MT": "a head of several tasks",
}


@dataclass(frozen=True)
class Rewritten:
    """A row in Ultralytics' or our words.

    Attributes:
        module: Its module.
        args: Its arguments.
        why: What was changed.
        source: Its ``from`` where that changes, too.
    """

    module: str
    args: list[Any]
    why: str
    source: Any = None


def rewrite(module: str, args: Sequence[Any], source: Any) -> Rewritten | str | None:
    """A row of a v5 or v7 family.

    Args:
        module: The row's module.
        args: Its arguments.
        source: Its ``from``.

    Returns:
        The row rewritten; why it cannot be; None where it stays as it is.
    """
    args = list(args)
    if module in DETECT and (module != "Detect" or _has_anchors(args)):
        return _detect(module, args, source)
    if module in SEGMENT and _has_anchors(args):
        return Rewritten("Segment", [args[0], *args[2:]], ANCHOR_FREE)
    if module in OTHER_HEADS:
        return (
            f"{module} ({OTHER_HEADS[module]}) is no head here (accepted: Detect, IDetect, DetectX "
            "and others with one prediction a level)"
        )
    rule = _RULES.get(module)
    return rule(args) if rule else None


def _has_anchors(args: Sequence[Any]) -> bool:
    """Whether the second argument is the anchors: their name, or a list of them."""
    return len(args) > 1 and (args[1] == "anchors" or isinstance(args[1], (list, tuple)))


def _detect(module: str, args: list[Any], source: Any) -> Rewritten:
    if module == "IAuxDetect" and isinstance(source, (list, tuple)):
        lead = list(source[: len(source) // 2])
        return Rewritten(
            "Detect", args[:1] or ["nc"], f"{ANCHOR_FREE}; without the auxiliary levels", lead
        )
    return Rewritten("Detect", args[:1] or ["nc"], ANCHOR_FREE)


def _max_pool(args: list[Any]) -> Rewritten | str:
    if len(args) > 1 or not all(isinstance(a, int) for a in args):
        return f"MP has {args} (accepted: nothing, or its window)"
    k = args[0] if args else 2
    return Rewritten("nn.MaxPool2d", [k, k], f"maximum over {k} x {k} windows")


def _same_pool(args: list[Any]) -> Rewritten | str:
    if not 0 <= len(args) <= 2 or not all(isinstance(a, int) for a in args):
        return f"SP has {args} (accepted: its window, its stride)"
    k, s = args[0] if args else 3, args[1] if len(args) > 1 else 1
    return Rewritten("nn.MaxPool2d", [k, s, k // 2], f"maximum over {k} x {k} neighbours")


def _rep_conv(args: list[Any]) -> Rewritten | str:
    given = args[1:]
    kernel = given[0] if given else 3
    stride = given[1] if len(given) > 1 else 1
    rest = given[2:]
    if not args or kernel != 3 or any(r not in (None, "None", 1, True) for r in rest):
        return f"RepConv has {args} (accepted: width, 3, stride)"
    return Rewritten(
        "RepConv3x3",
        args[:1] if stride == 1 else [args[0], stride],
        "a RepConv row of Ultralytics does not read its input's width; the same convolutions",
    )


def _without_dimension(args: list[Any]) -> Rewritten | str | None:
    if not args:
        return None
    return Rewritten("Shortcut", [], "the sum of two maps needs no dimension")


def _first_only(name: str, default: Sequence[Any]) -> Callable[[list[Any]], Rewritten | str | None]:
    """A layer of ours that takes its width alone; further arguments only at their defaults."""

    def rule(args: list[Any]) -> Rewritten | str | None:
        if len(args) < 2:
            return None
        rest = args[1:]
        if rest != list(default[: len(rest)]):
            return f"{name} has {args} (accepted: its width)"
        return Rewritten(name, args[:1], f"{name} is here as these arguments make it")

    return rule


_RULES: dict[str, Callable[[list[Any]], Rewritten | str | None]] = {
    "MP": _max_pool,
    "SP": _same_pool,
    "RepConv": _rep_conv,
    "Shortcut": _without_dimension,
    "SPPCSPC": _first_only("SPPCSPC", (1, False, 1, 0.5, [5, 9, 13])),
    "DownC": _first_only("DownC", (1, 2)),
}


def without_unread_rows(rows: list[list[Any]]) -> int:
    """How many rows before the head nobody reads: what fed the auxiliary levels.

    Args:
        rows: All rows; the last is the head.
    """
    read = set()
    for i, row in enumerate(rows):
        for source in row[0] if isinstance(row[0], (list, tuple)) else [row[0]]:
            if isinstance(source, int):
                read.add(source if source >= 0 else i + source)
    count = 0
    while len(rows) - 2 - count >= 0 and len(rows) - 2 - count not in read:
        count += 1
    return count


def activation_of(args: Sequence[Any]) -> str | None:
    """The activation at the end of a ``Conv`` row's arguments, as YOLOv5 and v7 write it."""
    last = args[-1] if len(args) in (6, 7) else None
    if not isinstance(last, str) or not last.startswith(("nn.", "torch.nn.")):
        return None
    return last if last.startswith("torch.") else f"torch.{last}"


def common_activation(rows: Sequence[Sequence[Any]]) -> str | None:
    """The activation that every ``Conv`` row names; None where they differ or name none."""
    found = {activation_of(row[3]) for row in rows if row[2] == "Conv"}
    return found.pop() if len(found) == 1 else None


def without_activation(args: Sequence[Any], activation: str | None) -> Rewritten | str | None:
    """A ``Conv`` row of YOLOv5 or v7 that names its activation.

    Args:
        args: Its arguments: width, kernel, stride, padding, groups, (dilation,) activation.
        activation: What all of the model's rows name; it becomes the model's key `activation`.

    Returns:
        The row rewritten; why it cannot be; None where it names no activation.
    """
    own = activation_of(args)
    if own is None:
        return None
    if activation is None:
        return f"Conv with {own}: a model has one activation here, its Conv rows have several"
    kept = list(args[:-1])
    while len(kept) > 3 and kept[-1] in (None, "None", 1):
        kept.pop()
    return Rewritten("Conv", kept, f"{own} is the model's key activation")
