"""``fusion: [[all, WeightedConcat, []]]``: what stands in the place of a fusion Concat."""

from __future__ import annotations

from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.entries import read_args, split_options
from yolo_attn.overlay.graph import Graph, Node
from yolo_attn.overlay.places import Places
from yolo_attn.overlay.pyramid import find_fusions
from yolo_attn.registry import find_block

OPTIONS = {"also": "{also: [P4]}"}


def change_fusions(graph: Graph, places: Places, entries: list[Any], name: str) -> None:
    """Give fusion Concats another module, and further inputs.

    Args:
        graph: The rows; changed in place.
        places: What the entries may name.
        entries: ``[where, module, args]`` or ``[where, module, args, {also: [...]}]``.
        name: Of the overlay, for messages.

    Raises:
        YoloAttnError: An entry is malformed, its place is no fusion, or an input is of another
            stride.
    """
    fusions = find_fusions(graph, places.level_of) if entries else {}
    for k, entry in enumerate(entries, 1):
        label = f"fusion {k}"
        where = f"{name} {label}"
        entry, options = split_options(entry, 3, OPTIONS, where)
        if not isinstance(entry, (list, tuple)) or len(entry) != 3:
            raise YoloAttnError(f"{where}: {entry!r} (accepted: [where, module, args])")
        at, module, args = entry
        args = read_args(module, args, name, label)
        for node in _fusions_at(at, places, fusions, where):
            for further in _further(options, where):
                _add_input(graph, places, node, further, name, label)
            _check_inputs(module, node, where)
            default = node.rest[2] if module == node.rest[1] and not args else args
            graph.replace(node, [1, module, list(default)], f"{label}: {module} at {at}")


def _fusions_at(at: Any, places: Places, fusions: dict[Node, bool], where: str) -> list[Node]:
    if at == "all":
        return places.group("fusion", where)
    if isinstance(at, str) and f"{at}.fusion" in places.names:
        at = f"{at}.fusion"  # N4 and T4 name the fusion that feeds them
    found = []
    for nodes in places.find_each(at, where, "where"):
        for node in nodes:
            if node not in fusions:
                lists = ", ".join(n for n in places.names if n.endswith(".fusion"))
                raise YoloAttnError(
                    f"{where}: {node.rest[1]} at {at} is no fusion of two ways (accepted: all, "
                    f"{lists or 'the index of one'}, or a tap that one feeds)"
                )
            found.append(node)
    return found


def _further(options: dict[str, Any], where: str) -> list[Any]:
    further = options.get("also", [])
    if not isinstance(further, list) or (options and not further):
        raise YoloAttnError(
            f"{where}: also={further!r} (accepted: a list of taps, or of {{tap: [module, args]}} "
            "for a row on the way)"
        )
    return further


def _add_input(
    graph: Graph, places: Places, node: Node, further: Any, name: str, label: str
) -> None:
    """One more source for a fusion, through a row of its own where the entry has one."""
    where = f"{name} {label}"
    row = None
    if isinstance(further, dict):
        if len(further) != 1 or not isinstance(next(iter(further.values())), list):
            raise YoloAttnError(
                f"{where}: also={further!r} (accepted: {{P3: [Conv, [256, 3, 2]]}})"
            )
        further, row = next(iter(further.items()))
        if len(row) != 2:
            raise YoloAttnError(f"{where}: also={row!r} (accepted: [module, args])")
    (source,) = places.find(further, where, "also")[:1]
    if graph.nodes.index(source) > graph.nodes.index(node):
        raise YoloAttnError(
            f"{where}: also={further} comes later than the fusion that would read it (accepted: an "
            "earlier row)"
        )
    if row is not None:
        module, args = row
        new = Node([source], True, [False], [1, module, read_args(module, args, name, label)])
        new.label, new.in_head = f"{label}: {module} from {further}", True
        graph.nodes.insert(graph.nodes.index(node), new)
        source = new
    elif places.level_of.get(source) != places.level_of.get(node):
        raise YoloAttnError(
            f"{where}: also={further} is at P{places.level_of.get(source)}, the fusion at "
            f"P{places.level_of.get(node)}; bring it there by a row of its own: {{also: "
            f"[{{{further}: [Conv, [256, 3, 2]]}}]}}"
        )
    if source in node.sources:
        raise YoloAttnError(f"{where}: also={further} is read there already")
    node.sources.append(source)
    node.implicit.append(False)


def _check_inputs(module: str, node: Node, where: str) -> None:
    info = find_block(module)
    count = len(node.sources)
    if info is None:
        if module != "Concat":
            raise YoloAttnError(
                f"{where}: {module} does not join several maps (accepted: Concat or a block with "
                "several inputs, such as WeightedConcat)"
            )
    elif not info.min_inputs <= count <= info.max_inputs or info.max_inputs < 2:
        low, high = info.min_inputs, info.max_inputs
        wanted = str(low) if low == high else f"{low} to {high}"
        raise YoloAttnError(f"{where}: {module} takes {wanted} inputs, this fusion has {count}")
