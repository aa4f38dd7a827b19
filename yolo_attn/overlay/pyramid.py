"""The neck of a base as steps: what leads up to each level, and down from it to the next.

``T_k`` is the top-down output of level k, ``N_k`` what the head's branch of level k is made from;
at the lowest level both are one row. A step is its resampling rows, a fusion Concat and the stage
behind it. Pure functions of the graph and the levels of its rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.graph import Graph, Node

# Heads with one branch a level, in lists by level, for any number of levels.
LEVEL_HEADS = (
    "Detect", "v10Detect", "Segment", "Segment26", "Pose", "Pose26", "OBB", "OBB26",
)  # fmt: skip


@dataclass
class Step:
    """One way from a level to the next.

    Attributes:
        level: Where it leads.
        up: Whether to a finer level.
        rows: In order: laterals and resampling, the fusion, the stage.
        fusion: The Concat that joins both ways.
        source: The row that the resampled way starts from.
    """

    level: int
    up: bool
    rows: list[Node]
    fusion: Node
    source: Node

    @property
    def before(self) -> list[Node]:
        """Rows before the fusion."""
        return self.rows[: self.rows.index(self.fusion)]

    @property
    def stage(self) -> list[Node]:
        """Rows behind the fusion."""
        return self.rows[self.rows.index(self.fusion) + 1 :]

    @property
    def output(self) -> Node:
        """The last row."""
        return self.rows[-1]

    def resamplers(self, level_of: dict[Node, int]) -> list[Node]:
        """Rows of it that change the stride."""
        return [n for n in self.before if _changes_stride(n, level_of)]


@dataclass
class Pyramid:
    """The way up and the way down of a neck.

    Attributes:
        ups: Steps to finer levels, in order.
        downs: Steps to coarser levels, in order.
        head: The last row.
        tails: Level -> the row between N and the head, where there is one.
        taps: Level -> the last backbone row of its stride.
        level_of: Level of each row's output, 0 for what is not one map.
    """

    ups: list[Step]
    downs: list[Step]
    head: Node
    tails: dict[int, Node]
    taps: dict[int, Node]
    level_of: dict[Node, int] = field(repr=False)

    @property
    def levels(self) -> list[int]:
        """Levels of the head, finest first."""
        return [self.level_of[s] for s in self.head.sources if s is not None]

    def stage_output(self, level: int) -> Node:
        """``N_level`` without its tail."""
        if level == self.ups[-1].level:
            return self.ups[-1].output
        return next(step.output for step in self.downs if step.level == level)


def read_pyramid(
    graph: Graph, level_of: dict[Node, int], taps: dict[int, Node], base: str
) -> Pyramid:
    """Read the steps of a neck.

    Args:
        graph: The rows of a base.
        level_of: Level (log2 of the stride) of each row's output; 0 where it is not one map.
        taps: Level -> the last backbone row of its stride.
        base: Its name, for messages.

    Raises:
        YoloAttnError: The neck is not a way up followed by a way down, or the head has no branch
            for each level.
    """
    head = graph.nodes[-1]
    if head.rest[1] not in LEVEL_HEADS:
        raise YoloAttnError(
            f"{base} ends in {head.rest[1]}, whose levels cannot be changed (accepted: a base "
            f"that ends in {', '.join(LEVEL_HEADS)})"
        )
    fusions = find_fusions(graph, level_of)
    ups = [n for n, up in fusions.items() if up]
    downs = [n for n, up in fusions.items() if not up]
    levels_up, levels_down = ([level_of[n] for n in nodes] for nodes in (ups, downs))
    head_levels = [level_of[s] if s is not None else 0 for s in head.sources]
    regular = (
        bool(ups)
        and levels_up == list(range(levels_up[0], levels_up[-1] - 1, -1))
        and levels_down == list(range(levels_up[-1] + 1, levels_up[-1] + 1 + len(downs)))
        and head_levels == sorted(set(head_levels))
        and all(k == levels_up[-1] or k in levels_down for k in head_levels)
    )
    if not regular:
        raise YoloAttnError(
            f"the neck of {base} is not one way up the levels and one way down (its fusions lead "
            f"up to {_named(levels_up)} and down to {_named(levels_down)}, its head reads "
            f"{_named(head_levels)}), so its levels cannot be changed; write its rows out, or "
            "take a base such as yolov8.yaml"
        )
    starts = [_start_up(graph, n, level_of) for n in ups]
    starts += [graph.nodes.index(_source_down(n, level_of)) + 1 for n in downs]
    end = min([graph.nodes.index(head), *(graph.nodes.index(t) for t in _tails(graph, head))])
    steps = []
    for fusion, start, stop in zip([*ups, *downs], starts, [*starts[1:], end]):
        rows = graph.nodes[start:stop]
        up = fusions[fusion]
        source = _source_up(rows, fusion, level_of) if up else _source_down(fusion, level_of)
        steps.append(Step(level_of[fusion], up, rows, fusion, source))
    return Pyramid(
        steps[: len(ups)],
        steps[len(ups) :],
        head,
        {level_of[t]: t for t in _tails(graph, head)},
        taps,
        level_of,
    )


def find_fusions(graph: Graph, level_of: dict[Node, int]) -> dict[Node, bool]:
    """Concats of the neck that join two ways, in order; whether each lies on the way up.

    One of their inputs comes, through rows of the neck with one source, from a row that changes the
    stride. Concats inside stages and pyramid poolings have none.
    """
    found = {}
    for node in graph.nodes:
        if node.in_head and node.rest[1] == "Concat":
            for source in node.sources:
                change = _change_before(source, level_of)
                if change:
                    found[node] = change < 0
    return found


def _change_before(node: Node | None, level_of: dict[Node, int]) -> int:
    """Change of the level on the way to `node` through rows of the neck with one source."""
    while node is not None and node.in_head and len(node.sources) == 1:
        if _changes_stride(node, level_of):
            source = node.sources[0]
            return level_of[node] - (level_of[source] if source is not None else 0)
        node = node.sources[0]
    return 0


def _changes_stride(node: Node, level_of: dict[Node, int]) -> bool:
    source = node.sources[0]
    return (
        len(node.sources) == 1
        and source is not None
        and 0 < level_of.get(node, 0) != level_of.get(source, 0) > 0
    )


def _start_up(graph: Graph, fusion: Node, level_of: dict[Node, int]) -> int:
    """Position of the first row of a way up: laterals, up-sampler, a convolution of the tap."""
    at = graph.nodes.index(fusion) - 1
    while at > 0 and (node := graph.nodes[at]).in_head:
        source = node.sources[0]
        beside = len(node.sources) == 1 and source is not None and not source.in_head
        lateral = _is_lateral(node) and _is_up(graph.nodes[at + 1], level_of)
        if not (_is_up(node, level_of) or beside or lateral):
            break
        at -= 1
    # A row that reads the backbone belongs to the step only beside its up-sampler.
    while not any(_is_up(n, level_of) for n in graph.nodes[at + 1 : at + 3]):
        at += 1
    return at + 1


def _is_up(node: Node, level_of: dict[Node, int]) -> bool:
    return _changes_stride(node, level_of) and level_of[node] < level_of[node.sources[0]]  # type: ignore[index]


def _is_lateral(node: Node) -> bool:
    """A 1 x 1 convolution of stride 1 whose source is no Concat."""
    _, module, args = node.rest
    source = node.sources[0]
    return (
        module == "Conv"
        and len(node.sources) == 1
        and source is not None
        and source.rest[1] != "Concat"
        and list(args[1:2]) in ([], [1])
        and list(args[2:3]) in ([], [1])
    )


def _source_up(rows: list[Node], fusion: Node, level_of: dict[Node, int]) -> Node:
    """The row outside of the step from which its up-sampled way comes."""
    node = next(n for n in rows if _is_up(n, level_of))
    while node in rows:
        node = node.sources[0]  # type: ignore[assignment]
    return node


def _source_down(fusion: Node, level_of: dict[Node, int]) -> Node:
    """The row from which the way down to a fusion starts; with two ways, the last before both."""
    ways = []
    for source in fusion.sources:
        if _change_before(source, level_of) <= 0:
            continue
        way, node = [], source
        while node is not None:
            way.append(node)
            node = node.sources[0] if node.in_head and len(node.sources) == 1 else None
        down = next(i for i, n in enumerate(way) if _changes_stride(n, level_of))
        ways.append(way[down + 1 :])
    return next(n for n in ways[0] if all(n in way for way in ways))


def _tails(graph: Graph, head: Node) -> list[Node]:
    """Rows that the head reads and that do not read the row before them."""
    found = []
    for node in head.sources:
        if node is not None and node.in_head and len(node.sources) == 1:
            if node.sources[0] is not graph.nodes[graph.nodes.index(node) - 1]:
                found.append(node)
    if not found:
        return []
    # The last of them may stand right behind its source.
    first = min(graph.nodes.index(n) for n in found)
    return [n for n in head.sources if n is not None and graph.nodes.index(n) >= first]


def _named(levels: list[int]) -> str:
    return ", ".join(f"P{k}" if k else "?" for k in levels) or "nothing"
