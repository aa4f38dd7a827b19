"""``remove: [9]``: rows that go; their readers read what they read."""

from __future__ import annotations

from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.graph import Graph
from yolo_attn.overlay.places import Places


def remove_rows(graph: Graph, places: Places, entries: list[Any], name: str) -> None:
    """Take rows out of a graph.

    Args:
        graph: The rows; changed in place.
        places: What the entries may name.
        entries: Places, one row each.
        name: Of the overlay, for messages.

    Raises:
        YoloAttnError: A row cannot go: it joins several, or changes the stride, or all is gone.
    """
    for k, entry in enumerate(entries, 1):
        label = f"remove {k}"
        where = f"{name} {label}"
        for (node,) in map(_one(where), places.find_each(entry, where, "index")):
            module = node.rest[1]
            if len(node.sources) != 1 or node.sources[0] is None:
                what = "joins several rows" if len(node.sources) > 1 else "reads the image"
                raise YoloAttnError(
                    f"{where}: {module} at {entry} {what}, so nothing stands for it (accepted: a "
                    "row that reads one other and keeps its stride; `replace` gives it another "
                    "module)"
                )
            source = node.sources[0]
            before, after = places.level_of.get(source, 0), places.level_of.get(node, 0)
            if before != after or not after:
                way = f"P{before} to P{after}" if before and after else "one map to others"
                raise YoloAttnError(
                    f"{where}: {module} at {entry} leads from {way}, its readers need that "
                    "(accepted: a row that keeps the stride; `levels` drops a level of the head, "
                    "`replace` gives the row another module)"
                )
            for reader in graph.nodes:
                reader.sources = [source if s is node else s for s in reader.sources]
            graph.nodes.remove(node)
            places.removed[node] = label


def _one(where: str):
    def check(nodes):
        if len(nodes) != 1:
            raise YoloAttnError(f"{where}: one place an entry (accepted: an index or a tap)")
        return nodes

    return check
