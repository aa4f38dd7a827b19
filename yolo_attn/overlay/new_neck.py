"""An overlay's ``neck:``: other rows between the backbone of a base and its head."""

from __future__ import annotations

import re
from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.entries import read_row, split_options
from yolo_attn.overlay.graph import Graph, Node
from yolo_attn.overlay.places import Places

OPTIONS = {"name": "{name: NAME}"}


def with_neck(graph: Graph, places: Places, entries: list[Any], name: str) -> None:
    """Put other rows in place of a base's neck.

    Args:
        graph: The rows; changed in place.
        places: What a row's ``from`` may name; the taps of the backbone.
        entries: Rows ``[from, repeats, module, args]``, ``from`` a tap, an index of the backbone,
            -1 or the name of an earlier row (its fifth entry ``{name: NAME}``); the last entry
            lists what the head reads, finest first.
        name: Of the overlay, for messages.

    Raises:
        YoloAttnError: A row is malformed, or reads what is not there.
    """
    if len(entries) < 2 or not isinstance(entries[-1], (list, tuple)):
        raise YoloAttnError(
            f"{name} neck: {entries!r} (accepted: rows [from, repeats, module, args], then one "
            "list of what the head reads, such as [N3, N4, N5])"
        )
    head = graph.nodes[-1]
    backbone = [n for n in graph.nodes if not n.in_head]
    named: dict[str, Node] = {}
    rows: list[Node] = []

    def source(at: Any, where: str) -> Node:
        if at == -1:
            return (rows or backbone)[-1]
        if at in named:
            return named[at]
        (node,) = places.find([at], where, "from")
        if node.in_head:
            raise YoloAttnError(
                f"{where}: from={at} is a row of the neck that goes (accepted: -1, P2 .. of the "
                f"backbone, {', '.join(named) or 'the name of an earlier row'})"
            )
        return node

    for k, entry in enumerate(entries[:-1], 1):
        label = f"neck {k}"
        where = f"{name} {label}"
        entry, options = split_options(entry, 4, OPTIONS, where)
        at, rest = read_row(entry, name, label, "from")
        single = not isinstance(at, (list, tuple))
        sources: list[Node | None] = [source(one, where) for one in ([at] if single else at)]
        implicit = [s is (rows or backbone)[-1] for s in sources]
        node = Node(sources, single, implicit, rest, label=f"{label}: {rest[1]}", in_head=True)
        rows.append(node)
        if options:
            known = options["name"]
            word = isinstance(known, str) and known.isidentifier()
            if not word or known in named or re.fullmatch(r"P\d+", known):
                raise YoloAttnError(
                    f"{where}: name={known!r} (accepted: a word that no row has yet)"
                )
            named[known] = node
    where = f"{name} neck {len(entries)}"
    reads = [source(at, where) for at in entries[-1]]
    if not reads or any(node not in rows and node not in backbone for node in reads):
        raise YoloAttnError(f"{where}: the head reads nothing (accepted: names of rows)")
    head.sources = list(reads)
    head.single, head.implicit = False, [False] * len(reads)
    places.removed.update((n, "neck") for n in graph.nodes if n.in_head and n is not head)
    graph.nodes[:] = [*backbone, *rows, head]
    places.branches.update(named)
