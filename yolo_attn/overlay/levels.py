"""``levels: [P2, P3, P4]``: the head of a base with a finer level, or without some of its own.

A finer level is made of copies of the base's own rows, with half their widths, so that the result
has the rows of the model that its authors would have written (yolov8-p2, yolo26-p2). A level that
goes takes its way down and its head branch along; the backbone stays whole.
"""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.graph import Graph, Node
from yolo_attn.overlay.pyramid import Pyramid, Step, read_pyramid
from yolo_attn.registry import find_block

GATE = "LevelGate"
# How many leading arguments are widths; most layers have one.
WIDTHS = {"RepNCSPELAN4": 3, "ELAN1": 3, "Concat": 0, "nn.Upsample": 0, "nn.MaxPool2d": 0}
TAP = re.compile(r"P(\d)")


def read_levels(value: Any, where: str) -> tuple[list[int], bool | None]:
    """Levels of the key, finest first, and its ``identity_start`` (None: not said).

    Raises:
        YoloAttnError: Not a list of consecutive taps.
    """
    accepted = "(accepted: consecutive levels such as [P2, P3, P4], finest first)"
    if not isinstance(value, (list, tuple)):
        raise YoloAttnError(f"{where}: {value!r} {accepted}")
    names, gate = list(value), None
    if names and isinstance(names[-1], dict):
        options = names.pop()
        if set(options) != {"identity_start"} or not isinstance(options["identity_start"], bool):
            raise YoloAttnError(
                f"{where}: {options!r} (accepted as last entry: {{identity_start: true}})"
            )
        gate = options["identity_start"]
    found = [TAP.fullmatch(name) if isinstance(name, str) else None for name in names]
    levels = [int(match[1]) for match in found if match]
    if len(levels) != len(names) or not levels:
        wrong = next((n for n, match in zip(names, found) if not match), value)
        raise YoloAttnError(f"{where}: {wrong!r} {accepted}")
    if levels != list(range(levels[0], levels[0] + len(levels))):
        raise YoloAttnError(f"{where}: [{', '.join(names)}] leaves a hole {accepted}")
    return levels, gate


def with_levels(
    graph: Graph, pyramid: Pyramid, wanted: list[int], gate: bool, base: str, where: str
) -> Pyramid:
    """Give the head of a graph other levels.

    Args:
        graph: The rows; changed in place.
        pyramid: Its steps.
        wanted: Levels, finest first.
        gate: Whether an added level leaves what the others get as it was, by a row
            ``T + g (N - T)`` with g = 0 at the start behind each new stage of an old level.
        base: Name of the base, for messages.
        where: File and key, for messages.

    Returns:
        The steps of the result.

    Raises:
        YoloAttnError: The base has no such level.
    """
    own = pyramid.levels
    if wanted[-1] > own[-1]:
        raise YoloAttnError(
            f"{where}: the head of {base} has no P{wanted[-1]} (it ends at P{own[-1]}; a coarser "
            "level needs another backbone: take a base that has it, such as yolov8-p6.yaml)"
        )
    coarsest_kept = max(wanted[0], own[0])
    if wanted[-1] < own[0] and wanted[-1] < coarsest_kept:
        raise YoloAttnError(
            f"{where}: none of the head's own levels stays (accepted: one of "
            f"{', '.join(f'P{k}' for k in own)} at least)"
        )
    while pyramid.ups[-1].level > wanted[0]:
        level = pyramid.ups[-1].level - 1
        if level not in pyramid.taps:
            raise YoloAttnError(
                f"{where}: the backbone of {base} has no P{level} (it has "
                f"{', '.join(f'P{k}' for k in sorted(pyramid.taps))})"
            )
        pyramid = _finer(graph, pyramid, gate, base)
    gone = [k for k in own if k not in wanted]
    for level in sorted(gone, reverse=True):  # each at an end of what is left
        pyramid = _without(graph, pyramid, level, base)
    return pyramid


def _finer(graph: Graph, pyramid: Pyramid, gate: bool, base: str) -> Pyramid:
    """One level finer."""
    up, level_of = pyramid.ups[-1], pyramid.level_of
    down = pyramid.downs[0] if pyramid.downs else None
    if down is None:
        raise YoloAttnError(f"{base} has no way down from P{up.level} to copy")
    level = up.level
    label = f"levels: P{level - 1}"
    new: list[Node] = []

    def copy(rows: list[Node], replaced: dict[Node, Node], finer: bool) -> None:
        for node in rows:
            twin = _copy(node, finer, f"{label} {node.rest[1]}")
            twin.sources = [s if s is None else replaced.get(s, s) for s in node.sources]
            level_of[twin], replaced[node] = level_of[node] - finer, twin
            new.append(twin)

    # 1. Up from the lowest level, as the base goes up to it.
    above: dict[Node, Node] = {up.source: up.output}
    tap = pyramid.taps[level]
    above[tap] = pyramid.taps[level - 1]
    above |= {n: above[tap] for n in _twins(up, tap, level_of)}
    copy(up.rows, above, finer=True)
    lowest = new[-1]
    # 2. Down again to the level, as the base goes down from it.
    skip = _skip(down)
    back = {**above, up.output: lowest}
    if skip not in back:
        back[skip] = up.output
    copy([*down.before, down.fusion], back, finer=True)
    # 3. The stage of the level, with its own arguments.
    behind = {up.fusion: back[down.fusion]}
    copy(up.stage, behind, finer=False)
    for node in up.stage:
        behind[node].starts = node
    stage = new[-1]
    if gate:
        row = Node([up.output, stage], False, [False, False], [1, GATE, []], label=f"{label} gate")
        row.in_head, level_of[row] = True, level
        new.append(row)
    output = new[-1]
    at = graph.nodes.index(up.output) + 1
    graph.nodes[at:at] = new
    # 4. The way down and the head read the new stage.
    tail = pyramid.tails.get(level)
    for node in [*down.rows, pyramid.head, *([tail] if tail else [])]:
        node.sources = [output if s is up.output else s for s in node.sources]
    branch = lowest
    if tail is not None:
        branch = _copy(tail, True, f"{label} {tail.rest[1]}")
        branch.sources, level_of[branch] = [lowest], level - 1
        graph.nodes.insert(graph.nodes.index(tail), branch)
    head = pyramid.head
    head.sources, head.implicit = [branch, *head.sources], [False, *head.implicit]
    return read_pyramid(graph, level_of, pyramid.taps, base)


def _twins(up: Step, tap: Node, level_of: dict[Node, int]) -> list[Node]:
    """Backbone rows that a step reads beside what it comes from: its tap, by whatever name."""
    return [
        s
        for n in up.rows
        for s in n.sources
        if s is not None and s not in up.rows and s is not up.source and s is not tap
        if level_of.get(s) == level_of[tap]
    ]


def _skip(down: Step) -> Node:
    """What a fusion on the way down joins from the way up."""
    return next(
        s
        for s in reversed(down.fusion.sources)
        if s is not None and s not in down.before and s is not down.source
    )


def _copy(node: Node, halve: bool, label: str) -> Node:
    """A row like another one, with half its widths if asked, before it has sources."""
    repeats, module, args = deepcopy(node.rest)
    if halve and module == "A2C2f":
        # Its attention wants 64 channels at least, so half of the narrowest does not build at
        # scale n; without attention it is C3k2's stage.
        module, args = "C3k2", [_half(args[0]), True]
    elif halve:
        args = _halved(module, args)
    return Node([], node.single, list(node.implicit), [repeats, module, args], -1, label, True)


def _halved(module: str, args: list[Any]) -> list[Any]:
    info = find_block(module)
    if info is not None:
        names = list(info.options)
        return [
            {k: _half(v) if k in info.width_options else v for k, v in arg.items()}
            if isinstance(arg, dict)
            else _half(arg)
            if i < len(names) and names[i] in info.width_options
            else arg
            for i, arg in enumerate(args)
        ]
    count = WIDTHS.get(module, 1)
    return [_half(arg) if i < count else arg for i, arg in enumerate(args)]


def _half(width: Any) -> Any:
    whole = isinstance(width, int) and not isinstance(width, bool)
    return max(width // 2, 1) if whole else width


def _without(graph: Graph, pyramid: Pyramid, level: int, base: str) -> Pyramid:
    """The head without a level at one of its ends."""
    head = pyramid.head
    gone = {pyramid.tails[level]} if level in pyramid.tails else set()
    at = pyramid.levels.index(level)
    if level == pyramid.levels[-1] and level != pyramid.ups[-1].level:
        # What is coarser than the head's last level feeds nothing any more.
        gone |= {n for step in pyramid.downs if step.level == level for n in step.rows}
    head.sources = [s for i, s in enumerate(head.sources) if i != at]
    head.implicit = [s for i, s in enumerate(head.implicit) if i != at]
    graph.nodes[:] = [n for n in graph.nodes if n not in gone]
    return read_pyramid(graph, pyramid.level_of, pyramid.taps, base)
