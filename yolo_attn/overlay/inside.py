"""``inside: [[P4, branch, EMA, []]]``: blocks inside the units of a stage.

The choice travels as a mark in the stage's own row, ``[-1, 3, C2f+inside, [128, True, {inside:
[[branch, EMA, []]]}]]``: without this project such a row is an error and never silently the base.
"""

from __future__ import annotations

from typing import Any

from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.overlay.entries import read_args, with_identity
from yolo_attn.overlay.graph import Graph, Node
from yolo_attn.overlay.location import INSIDE, MARK
from yolo_attn.overlay.places import Places
from yolo_attn.registry import find_block

PLACES = ("branch", "unit", "conv1", "conv2")
ALL = PLACES
# Stage -> the places that it has at some scale; seam/stage_surgery.py knows the units.
STAGES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("C2f", "C3", "C3x", "C3k2", "C3k", "RepNCSPELAN4", "C3Ghost", "BottleneckCSP", "C2"), ALL
    ),
    **dict.fromkeys(("C2fAttn", "Bottleneck", "A2C2f"), ALL),
    "C2fCIB": ("branch", "unit"),
    "C1": ("branch",),
    "RepC3": ("unit",),
    "HGBlock": ("branch",),
    "C2PSA": ("unit",),
    "C2fPSA": ("unit",),
    "ResNetLayer": ("branch", "unit"),
}


def put_inside(
    graph: Graph, places: Places, entries: list[Any], identity_start: bool, name: str
) -> None:
    """Mark stages of a graph.

    Args:
        graph: The rows; changed in place.
        places: What the entries may name.
        entries: ``[where, place, module, args]``.
        identity_start: The overlay's own.
        name: Of the overlay, for messages.

    Raises:
        YoloAttnError: An entry is malformed, or its row has no such place.
    """
    for k, entry in enumerate(entries, 1):
        label = f"inside {k}"
        where = f"{name} {label}"
        if not isinstance(entry, (list, tuple)) or len(entry) != 4:
            raise YoloAttnError(f"{where}: {entry!r} (accepted: [where, place, module, args])")
        at, place, module, args = entry
        if place not in PLACES:
            raise YoloAttnError(
                f"{where}: place={place!r}{did_you_mean(place, PLACES)} (accepted: "
                f"{', '.join(PLACES)})"
            )
        args = with_identity(module, read_args(module, args, name, label), identity_start)
        info = find_block(module)
        if info is not None and info.takes_list:
            raise YoloAttnError(
                f"{where}: {module} takes several maps, a place in a stage has one (accepted: a "
                "block with one input)"
            )
        many = at if isinstance(at, list) else [at]
        groups = [g for one in many for g in places.find_each(one, where, "where")]
        for nodes in groups:
            for node in nodes:
                stage = _stage(node, graph, places, at)
                _check_place(stage, place, at, where)
                _mark(stage, [place, module, args], f"{label}: {module} {place} of {at}")


def _stage(node: Node, graph: Graph, places: Places, at: Any) -> Node:
    """The row itself, or for a tap the last row of its stride that has units (SPPF has none)."""
    if isinstance(at, int) or node.rest[1].partition(MARK)[0] in STAGES:
        return node
    level, section = places.level_of.get(node), node.in_head
    for other in reversed(graph.nodes[: graph.nodes.index(node)]):
        if places.level_of.get(other) != level or other.in_head != section:
            break
        if other.rest[1].partition(MARK)[0] in STAGES:
            return other
    return node


def _check_place(node: Node, place: str, at: Any, where: str) -> None:
    stage = node.rest[1].partition(MARK)[0]
    has = STAGES.get(stage)
    if has is None:
        raise YoloAttnError(
            f"{where}: {stage} at {at} has no units inside (accepted: a stage such as C2f or C3k2; "
            "`insert` puts a block behind any row, `replace` in its place)"
        )
    if place not in has:
        raise YoloAttnError(
            f"{where}: {stage} at {at} has no place {place} (it has {', '.join(has)})"
        )


def _mark(node: Node, choice: list[Any], label: str) -> None:
    repeats, module, args = node.rest
    name, mark, _ = module.partition(MARK)
    if mark:
        *args, options = args
        chosen = [*options[INSIDE], choice]
        if any(other[0] == choice[0] != "branch" for other in options[INSIDE]):
            raise YoloAttnError(f"{label}: the place {choice[0]} of {name} is taken already")
    else:
        chosen = [choice]
    node.rest = [repeats, f"{name}{MARK}{INSIDE}", [*args, {INSIDE: chosen}]]
    node.label = f"{node.label}; {label}" if node.label else label
