"""Which row of one model corresponds to which row of another.

Pure functions of what rows are (module, tensor shapes, wiring, provenance); knows neither
Ultralytics nor torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

WIRING_ROUNDS = 4  # how many rows up and down the graph a row's neighbourhood reaches
LINK_ROUNDS = 4  # how often pairs are looked for again with what the last ones say of the wiring
IMAGE = -1
# Scores of pairs: one more tensor outweighs all agreement in wiring, a known pair all tensors.
TENSOR = 10**4
SURE = 10**10
LINK = 8  # one more link to a paired row: more than all that neighbourhoods alone say


@dataclass(frozen=True)
class LayerRow:
    """One row of a built model.

    Attributes:
        module: Name of its module.
        shapes: Tensor name within the row -> shape.
        parameters: Tensor name -> number of parameters; 0 for a buffer.
        sources: Rows that it reads; -1 is the image.
        ours: Whether it is a block of ours, which refines its first source.
        kinds: Names of the module's class and of the layers that it derives from.
    """

    module: str
    shapes: Mapping[str, tuple[int, ...]]
    parameters: Mapping[str, int]
    sources: tuple[int, ...]
    ours: bool = False
    kinds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rows:
    """The rows of a model, and where an overlay took them from.

    Attributes:
        rows: In order.
        base: File name of the base of an overlay, without scale letter; "" if unknown.
        origin: For each row its index in the base, -1 for an inserted one; empty if unknown.
        replaced: Rows to which an overlay gave another module than the base's.
        strides: Of the levels of the head.
    """

    rows: Sequence[LayerRow]
    base: str = ""
    origin: Sequence[int] = ()
    replaced: frozenset[int] = frozenset()
    strides: Sequence[float] = ()

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Alignment:
    """Pairs of rows.

    Attributes:
        source_of: Row of the target -> row of the source; a row without partner is absent.
        by_origin: Whether the pairs are known (from provenance or equality) rather than found.
    """

    source_of: Mapping[int, int] = field(default_factory=dict)
    by_origin: bool = False


def align(source: Rows, target: Rows) -> Alignment:
    """Pair the rows of two models, keeping their order.

    Equal sequences pair one to one. Else provenance decides where both models descend from one
    base. Else the best alignment is found: it keeps most tensors (rows of a kind, same names and
    shapes), and of several such the one whose wiring agrees best. What then stands between the same
    neighbours is paired as far as names and shapes are equal, whatever the modules are called.
    """
    if _equal(source, target):
        return Alignment({i: i for i in range(len(target))}, by_origin=True)
    origins = _common_origins(source, target)
    if origins is not None:
        return Alignment(
            _best_pairs(source, target, _origin_scores(source, target, *origins)), True
        )
    graphs = _Graph.of(source), _Graph.of(target)
    scores = _kind_scores(source, target, *graphs)
    pairs: dict[int, int] = {}
    for _ in range(LINK_ROUNDS):
        before, pairs = pairs, _best_pairs(source, target, _with_links(scores, pairs, *graphs))
        if pairs == before:
            break
    scores = _place_scores(source, target, pairs)
    return Alignment(_best_pairs(source, target, _with_links(scores, pairs, *graphs)))


def of_a_kind(one: LayerRow, other: LayerRow) -> bool:
    """Whether two rows are the same layer or variants of one: subclasses of it, or it itself."""
    return one.module == other.module or not one.kinds.isdisjoint(other.kinds)


def variant(one: LayerRow, other: LayerRow) -> bool:
    """Whether two rows are of a kind, and different classes."""
    return one.module != other.module and of_a_kind(one, other)


def fitting(source: LayerRow, target: LayerRow) -> list[str]:
    """Names of the tensors that two rows have in common, with equal shapes."""
    return [name for name, shape in source.shapes.items() if target.shapes.get(name) == shape]


def head_levels(source: Rows, target: Rows) -> dict[int, int]:
    """Which level of the source's head has the stride of a level of the target's head.

    A head keeps one branch a level; a model with other levels counts them differently.

    Returns:
        Target level -> source level; the identity where both heads have the same strides.
    """
    theirs, own = (
        [(stride, list(strides[:k]).count(stride)) for k, stride in enumerate(strides)]
        for strides in (source.strides, target.strides)
    )
    return {k: theirs.index(level) for k, level in enumerate(own) if level in theirs}


def is_per_level(names: Sequence[str], prefix: str, levels: int) -> bool:
    """Whether a head's tensors ``prefix.0. ...`` are branches, one a level.

    A head without levels (classification) has none.
    """
    found = {re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in names}
    return levels > 0 and {int(match[1]) for match in found if match} == set(range(levels))


def with_head_levels(source: Rows, target: Rows) -> Rows:
    """The source with the branches of its head numbered as the target numbers them.

    Branches of levels that the target does not have get numbers that it does not use.
    """
    head = source.rows[-1]
    count = len(source.strides)
    new = {old: k for k, old in head_levels(source, target).items()}
    for old in range(count):
        new.setdefault(old, len(target.strides) + old)
    own = list(head.shapes)
    prefixes = {name.partition(".")[0] for name in own}
    branches = {prefix for prefix in prefixes if is_per_level(own, prefix, count)}
    names = {}
    for name in own:
        prefix, _, rest = name.partition(".")
        level, _, within = rest.partition(".")
        names[name] = f"{prefix}.{new[int(level)]}.{within}" if prefix in branches else name
    head = replace(
        head,
        shapes={names[name]: shape for name, shape in head.shapes.items()},
        parameters={names[name]: n for name, n in head.parameters.items()},
    )
    return replace(source, rows=[*source.rows[:-1], head])


def _equal(source: Rows, target: Rows) -> bool:
    """Whether the sequences are equal, but for shapes in the head (another number of classes)."""
    return len(source) == len(target) and all(
        of_a_kind(s, t) and (s.shapes == t.shapes or i == len(target) - 1)
        for i, (s, t) in enumerate(zip(source.rows, target.rows))
    )


def _common_origins(source: Rows, target: Rows) -> tuple[Sequence[int], Sequence[int]] | None:
    """Origins of the rows of both models in one base, or None if none is known to be common."""
    a, b = source.origin, target.origin
    if a and b:
        if source.base != target.base:
            return None
    elif b and len(source) == 1 + max(b):  # the source is the plain base
        a = range(len(source))
    elif a and len(target) == 1 + max(a):
        b = range(len(target))
    else:
        return None
    # A YAML edited by hand may carry a provenance that is no longer true.
    row_of = {origin: i for i, origin in enumerate(a) if origin >= 0}
    for j, origin in enumerate(b):
        i = row_of.get(origin)
        if i is None or i in source.replaced or j in target.replaced:
            continue
        if not of_a_kind(source.rows[i], target.rows[j]):
            return None
    return a, b


Scores = Mapping[tuple[int, int], int]


def _origin_scores(
    source: Rows, target: Rows, origin: Sequence[int], target_origin: Sequence[int]
) -> Scores:
    """Rows of one origin pair, and inserted rows between them by what they have in common."""
    scores = {}
    for i, s in enumerate(source.rows):
        for j, t in enumerate(target.rows):
            if origin[i] != target_origin[j]:
                continue
            kind, kept = of_a_kind(s, t), len(fitting(s, t))
            if kind or kept:
                scores[i, j] = (SURE if origin[i] >= 0 else 0) + kept * TENSOR + kind
    return scores


def _kind_scores(source: Rows, target: Rows, graph: _Graph, target_graph: _Graph) -> Scores:
    """Tensors kept; where that is equal, how far the neighbourhoods in the graphs are."""
    ids: dict[object, int] = {}
    a, b = _neighbourhoods(source, graph, ids), _neighbourhoods(target, target_graph, ids)
    scores = {}
    for i, s in enumerate(source.rows):
        for j, t in enumerate(target.rows):
            if not of_a_kind(s, t):
                continue
            # Counters of batches, which every norm has, say nothing about what a row is.
            kept = sum(s.shapes[name] != () for name in fitting(s, t))
            whole = s.shapes == t.shapes
            if kept or whole:
                agreement = sum(x == y for x, y in zip(a[i], b[j]))
                scores[i, j] = kept * TENSOR + agreement + (2 if whole else 1)
    return scores


def _place_scores(source: Rows, target: Rows, pairs: Mapping[int, int]) -> Scores:
    """Rows that are paired stay so; between two such pairs, rows by what they have in common."""
    ends = [(-1, -1), *sorted((i, j) for j, i in pairs.items()), (len(source), len(target))]
    scores = {(i, j): SURE for i, j in ends[1:-1]}
    for (i0, j0), (i1, j1) in zip(ends, ends[1:]):
        aligned = i1 - i0 == j1 - j0  # no row was put in or taken out here
        for i in range(i0 + 1, i1):
            for j in range(j0 + 1, j1):
                s, t = source.rows[i], target.rows[j]
                kept = len(fitting(s, t))
                if kept and (s.ours == t.ours or aligned):
                    same_place = aligned and i - i0 == j - j0
                    scores[i, j] = kept * TENSOR + same_place + of_a_kind(s, t)
    return scores


def _with_links(
    scores: Scores, pairs: Mapping[int, int], graph: _Graph, target_graph: _Graph
) -> Scores:
    """More for rows that read, and are read by, rows that are paired with each other."""

    def links(rows: Sequence[int], target_rows: Sequence[int]) -> int:
        return len({pairs.get(j, j if j < 0 else None) for j in target_rows} & {*rows})

    return {
        (i, j): score
        + LINK * links(graph.sources[i], target_graph.sources[j])
        + LINK * links(graph.readers[i], target_graph.readers[j])
        for (i, j), score in scores.items()
    }


@dataclass(frozen=True)
class _Graph:
    """Who reads whom, as if blocks of ours were not there: one stands for the row it refines.

    Attributes:
        sources: For each row those that it reads; negative is the image.
        readers: For each row those that read it; blocks of ours are none.
    """

    sources: Sequence[Sequence[int]]
    readers: Sequence[Sequence[int]]

    @classmethod
    def of(cls, model: Rows) -> _Graph:
        refined: list[int] = []
        for i, row in enumerate(model.rows):
            first = row.sources[0] if row.sources else IMAGE
            refined.append((refined[first] if first >= 0 else IMAGE) if row.ours else i)
        sources = [[refined[s] if s >= 0 else s for s in row.sources] for row in model.rows]
        readers: list[list[int]] = [[] for _ in model.rows]
        for i, row in enumerate(model.rows):
            for s in sources[i] if not row.ours else ():
                if s >= 0:
                    readers[s].append(i)
        return cls(sources, readers)


def _neighbourhoods(model: Rows, graph: _Graph, ids: dict[object, int]) -> list[list[int]]:
    """For each row, labels of its neighbourhood in the graph, at growing distance.

    Equal labels mean equal neighbourhoods (Weisfeiler and Lehman's refinement). A block of ours
    counts as the row that it refines, so inserting one changes no label.
    """

    def label(*key: object) -> int:
        return ids.setdefault(key, len(ids))

    last = len(model) - 1
    labels = [
        # Shapes of the head depend on the number of classes.
        [label(row.module, () if i == last else tuple(sorted(row.shapes.items())))]
        for i, row in enumerate(model.rows)
    ]
    for _ in range(WIRING_ROUNDS):
        now = [known[-1] for known in labels]
        for i, known in enumerate(labels):
            above = tuple(now[s] if s >= 0 else IMAGE for s in graph.sources[i])
            known.append(label(now[i], above, tuple(sorted(now[r] for r in graph.readers[i]))))
    return labels


def _best_pairs(source: Rows, target: Rows, scores: Scores) -> dict[int, int]:
    """The order-keeping pairs of largest total score: target row -> source row."""
    n, m = len(source), len(target)
    best = [[0] * (m + 1) for _ in range(n + 1)]
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            pair = scores.get((i - 1, j - 1), 0)
            both = best[i - 1][j - 1] + pair if pair else 0
            best[i][j] = max(best[i - 1][j], best[i][j - 1], both)
    pairs: dict[int, int] = {}
    i, j = n, m
    while i and j:
        pair = scores.get((i - 1, j - 1), 0)
        if pair and best[i][j] == best[i - 1][j - 1] + pair:
            i, j = i - 1, j - 1
            pairs[j] = i
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            j -= 1
    return pairs
