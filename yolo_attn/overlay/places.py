"""Which rows an entry of an overlay names.

An index counts rows of the base. Taps mean the model after ``levels``: ``P2 ..`` backbone,
``T2 ..`` top-down outputs, ``N2 ..`` what the head reads; ``T3.up``, ``T3.fusion``, ``N4.down``,
``N4.fusion`` are rows of a step of the neck. A branch is an inserted row with a name, which only
later inserts read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.graph import Graph, Node
from yolo_attn.overlay.pyramid import Pyramid, find_fusions, read_pyramid
from yolo_attn.overlay.taps import find_levels, find_taps

TAP = re.compile(r"[A-Z]\d+(\.\w+)?")
GROUPS = ("down", "up", "fusion")


class Places:
    """What the entries of one overlay may name.

    Args:
        base: The plain model dictionary of the base.
        graph: Its rows.
    """

    def __init__(self, base: dict[str, Any], graph: Graph):
        self.base, self.graph = base, graph
        self.file = Path(str(base["yaml_file"])).name
        self.by_index = list(graph.nodes)
        self.branches: dict[str, Node] = {}
        self.removed: dict[Node, str] = {}
        self.leveled = False
        self._taps: dict[str, Node] = {}
        self._level_of: dict[Node, int] = {}
        self._names: dict[str, Node] = {}
        self._groups: dict[str, list[Node]] = {}

    @property
    def level_of(self) -> dict[Node, int]:
        """Level (log2 of the stride) of each row's output; 0 where it is not one map."""
        if not self._level_of:
            self._level_of.update(zip(self.by_index, find_levels(self.base)))
        return self._level_of

    @property
    def taps(self) -> dict[str, Node]:
        """The taps of the base, P and N."""
        if not self._taps:
            self._taps.update((tap, self.by_index[i]) for tap, i in find_taps(self.base).items())
        return self._taps

    def pyramid(self) -> Pyramid:
        """The steps of the neck as it is now.

        Raises:
            YoloAttnError: The neck has no such steps.
        """
        backbone = {int(tap[1:]): node for tap, node in self.taps.items() if tap[0] == "P"}
        return read_pyramid(self.graph, self.level_of, backbone, self.file)

    def settle(self) -> None:
        """Read all names now: what they mean does not change when rows go or change."""
        self._groups["fusion"] = list(find_fusions(self.graph, self.level_of))
        try:
            pyramid = self.pyramid()
        except YoloAttnError:
            return
        for kind, steps in (("down", pyramid.downs), ("up", pyramid.ups)):
            self._groups[kind] = [n for step in steps for n in step.resamplers(self.level_of)]
        self._names = self._find_names()

    @property
    def names(self) -> dict[str, Node]:
        """Every name, and its row."""
        if not self._names:
            self._names = self._find_names()
        return self._names

    def _find_names(self) -> dict[str, Node]:
        if not self.leveled:
            names = dict(self.taps)
        else:
            names = {tap: node for tap, node in self.taps.items() if tap[0] == "P"}
            for source in self.graph.nodes[-1].sources:
                if source is not None and self.level_of.get(source):
                    names[f"N{self.level_of[source]}"] = source
        try:
            pyramid = self.pyramid()
        except YoloAttnError:
            return names
        steps: dict[str, Node] = {pyramid_top(pyramid): pyramid.ups[0].source}
        for step in (*pyramid.ups, *pyramid.downs):
            letter, way = ("T", "up") if step.up else ("N", "down")
            resamplers = step.resamplers(self.level_of)
            if len(resamplers) == 1:
                steps[f"{letter}{step.level}.{way}"] = resamplers[0]
            steps[f"{letter}{step.level}.fusion"] = step.fusion
            if step.up:
                steps[f"T{step.level}"] = step.output
        return {**names, **steps}

    def find(self, at: Any, where: str, key: str = "after") -> list[Node]:
        """Rows that an entry names: of the base, of its new levels, or branches.

        Args:
            at: A name, a layer index, or a list of them.
            where: File and entry, for messages.
            key: What the entry's first value is called.

        Raises:
            YoloAttnError: There is no such row; names what there is.
        """
        places = at if isinstance(at, (list, tuple)) else [at]
        if not places:
            raise YoloAttnError(
                f"{where}: {key}=[] (accepted: a tap, a layer index, or a list of them)"
            )
        nodes = [self._find_one(place, where, key) for place in places]
        if len({id(n) for n in nodes}) != len(nodes):
            raise YoloAttnError(f"{where}: {key}={listed(at)} names the same layer twice")
        return nodes

    def find_each(self, at: Any, where: str, key: str) -> list[list[Node]]:
        """The same for an entry that may stand for several: ``{each: [N3, N4]}``, ``{each: down}``.

        Returns:
            For each of them the rows that it names.
        """
        if not isinstance(at, dict):
            return [self.find(at, where, key)]
        wanted = at.get("each")
        if set(at) != {"each"} or not (isinstance(wanted, list) or wanted in GROUPS):
            raise YoloAttnError(
                f"{where}: {key}={at!r} (accepted: {{each: [N3, N4]}} with a list of places, or "
                f"{{each: {'}, {each: '.join(GROUPS)}}} for all such rows of the neck)"
            )
        if isinstance(wanted, list):
            if not wanted:
                raise YoloAttnError(f"{where}: {{each: []}} names nothing (accepted: places)")
            return [self.find(place, where, key) for place in wanted]
        nodes = self.group(wanted, where)
        return [[node] for node in nodes]

    def group(self, kind: str, where: str) -> list[Node]:
        """All down-samplers, up-samplers or fusions of the neck.

        Raises:
            YoloAttnError: There are none.
        """
        found = self._groups.get(kind, [])
        found = [n for n in found if n not in self.removed]
        if not found:
            raise YoloAttnError(f"{where}: {self.file} has no {kind} in its neck")
        return found

    def _find_one(self, place: Any, where: str, key: str) -> Node:
        if isinstance(place, bool) or not isinstance(place, (int, str)):
            raise YoloAttnError(
                f"{where}: {key}={place!r} (accepted: a tap such as P5, or a layer index)"
            )
        if place in self.branches:
            return self.branches[place]  # type: ignore[index]  # then it is a name
        if isinstance(place, str):
            if place not in self.names:
                raise YoloAttnError(f"{where}: {self._unknown(place)}")
            node = self.names[place]
        else:
            last = len(self.by_index) - 1
            if not 0 <= place < last:
                what = "the head itself" if place == last else "out of range"
                raise YoloAttnError(
                    f"{where}: layer {place} of {self.file} is {what} (accepted: 0 to {last - 1}, "
                    "counted in the base)"
                )
            node = self.by_index[place]
        if node in self.removed or node not in self.graph.nodes:
            why = self.removed.get(node, "levels")
            raise YoloAttnError(f"{where}: {key}={place} was removed by `{why}`")
        return node

    def _unknown(self, place: str) -> str:
        index = {node: i for i, node in enumerate(self.by_index)}
        known = [f"{n}={index[node]}" if node in index else n for n, node in self.names.items()]
        plain = [k for k in known if "." not in k] if "." not in place else known
        base = "the base" if not self.leveled else "with these levels"
        has = ", ".join([*plain, *self.branches])
        return f"{base} {self.file} has no tap {place!r} (it has {has})"


def pyramid_top(pyramid: Pyramid) -> str:
    """Name of the top-down output of the coarsest level, from which the way up starts."""
    return f"T{pyramid.ups[0].level + 1}"


def listed(after: Any) -> str:
    """``after`` as it was written."""
    return f"[{', '.join(map(str, after))}]" if isinstance(after, (list, tuple)) else str(after)
