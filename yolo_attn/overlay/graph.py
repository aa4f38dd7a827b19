"""A model's rows as a graph: insert and replace rows without counting lines.

Pure functions of rows ``[from, repeats, module, args]``; knows neither Ultralytics nor torch.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Node:
    """One row; `sources` are nodes (None is the image)."""

    sources: list[Node | None]
    single: bool  # whether `from` was one index rather than a list
    implicit: list[bool]  # whether a source was written -1
    rest: list[Any]  # repeats, module, args
    base: int = -1  # index in the base, -1 for an inserted row
    label: str = ""  # how the overlay counts this row, for error messages
    in_head: bool = False
    replaced: bool = False
    refines: Node | None = None  # the row whose later readers an inserted row took over


@dataclass
class Graph:
    """Rows in order, backbone first."""

    nodes: list[Node] = field(default_factory=list)

    @classmethod
    def of(cls, backbone: list[Any], head: list[Any]) -> Graph:
        """Read rows whose ``from`` indices are in range (see location.check_rows)."""
        graph = cls()
        for i, row in enumerate([*backbone, *head]):
            f, *rest = deepcopy(list(row))
            sources = f if isinstance(f, (list, tuple)) else [f]
            graph.nodes.append(
                Node(
                    sources=[
                        None if i == 0 else graph.nodes[s if s >= 0 else i + s] for s in sources
                    ],
                    single=not isinstance(f, (list, tuple)),
                    implicit=[s == -1 for s in sources],
                    rest=rest,
                    base=i,
                    in_head=i >= len(backbone),
                )
            )
        return graph

    def insert(self, after: list[Node], rest: list[Any], label: str, branch: bool = False) -> Node:
        """Put a row behind the last of the rows `after`, refining the first with the others.

        Rows that come later and read the first one (or what refined it before) read the new row
        instead.

        Args:
            after: Rows of the base, or branches; one makes a single-input row.
            rest: ``[repeats, module, args]``.
            label: How the overlay counts the row.
            branch: Whether nothing reads the row but what is inserted after it.

        Returns:
            The new row.
        """
        anchor = max(after, key=self.nodes.index)
        position = self._behind(anchor)
        sources: list[Node | None] = [self._as_seen_at(node, position) for node in after]
        refined = sources[0]
        new = Node(
            sources=sources,
            single=len(after) == 1,
            implicit=[len(after) == 1] * len(after),
            rest=rest,
            label=label,
            in_head=anchor.in_head,
            refines=None if branch else after[0],
        )
        self.nodes.insert(position, new)
        if branch:
            return new
        for node in self.nodes[position + 1 :]:
            node.sources = [new if s is refined else s for s in node.sources]
        return new

    def _behind(self, anchor: Node) -> int:
        """Position behind the row `anchor` and the rows inserted behind it before."""
        position = self.nodes.index(anchor) + 1
        while position < len(self.nodes) and self.nodes[position].base < 0:
            position += 1
        return position

    def _as_seen_at(self, node: Node, position: int) -> Node:
        """What a reader at `position` gets for a row: the last one that refines it."""
        seen = node
        for candidate in self.nodes[:position]:
            if candidate.refines is node:
                seen = candidate
        return seen

    def replace(self, node: Node, rest: list[Any], label: str) -> None:
        """Give a base row another module; what it reads stays."""
        node.rest, node.label, node.replaced = rest, label, True

    def rows(self) -> tuple[list[Any], list[Any]]:
        """Backbone and head rows with indices; -1 stays where it still means the row before."""
        index = {node: i for i, node in enumerate(self.nodes)}
        backbone: list[Any] = []
        head: list[Any] = []
        for i, node in enumerate(self.nodes):
            numbers = []
            for source, implicit in zip(node.sources, node.implicit):
                at = -1 if source is None else index[source]
                numbers.append(-1 if source is None or (implicit and at == i - 1) else at)
            row = [numbers[0] if node.single else numbers, *node.rest]
            (head if node.in_head else backbone).append(row)
        return backbone, head
