"""Which row of one model corresponds to which row of another.

Pure functions of what rows are (module, tensor shapes, wiring, provenance); knows neither
Ultralytics nor torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

WIRING_ROUNDS = 4  # how many rows up and down the graph a row's neighbourhood reaches
IMAGE = -1


@dataclass(frozen=True)
class LayerRow:
    """One row of a built model.

    Attributes:
        module: Name of its module.
        shapes: Tensor name within the row -> shape.
        parameters: Tensor name -> number of parameters; 0 for a buffer.
        sources: Rows that it reads; -1 is the image.
        ours: Whether it is a block of ours, which refines its first source.
        kinds: Names of the module's class and of the classes that it derives from.
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
    base. Else the best alignment is found: it keeps most tensors (same module, same names and
    shapes), and of several such the one whose wiring agrees best.
    """
    if _equal(source, target):
        return Alignment({i: i for i in range(len(target))}, by_origin=True)
    origins = _common_origins(source, target)
    if origins is not None:
        return Alignment(
            _best_pairs(source, target, _origin_scores(source, target, *origins)), True
        )
    return Alignment(_best_pairs(source, target, _wiring_scores(source, target)))


def fitting(source: LayerRow, target: LayerRow) -> list[str]:
    """Names of the tensors that two rows have in common, with equal shapes."""
    return [name for name, shape in source.shapes.items() if target.shapes.get(name) == shape]


def head_levels(source: Rows, target: Rows) -> dict[int, int]:
    """Which level of the source's head has the stride of a level of the target's head.

    A head keeps one branch a level; a model with one level more counts them differently.

    Returns:
        Target level -> source level; the identity where both heads have as many levels.
    """
    theirs, own = source.strides, target.strides
    if len(theirs) == len(own):
        return {k: k for k in range(len(own))}
    return {k: theirs.index(stride) for k, stride in enumerate(own) if stride in theirs}


def is_per_level(names: Sequence[str], prefix: str, levels: int) -> bool:
    """Whether a head's tensors ``prefix.0. ...`` are branches, one a level."""
    found = {re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in names}
    return {int(match[1]) for match in found if match} == set(range(levels))


def with_head_levels(source: Rows, target: Rows) -> Rows:
    """The source with the branches of its head numbered as the target numbers them.

    Branches of levels that the target does not have get numbers that it does not use.
    """
    head = source.rows[-1]
    count = len(source.strides)
    new = {old: k for k, old in head_levels(source, target).items()}
    for old in range(count):
        new.setdefault(old, len(target.strides) + old)
    names = {}
    for name in head.shapes:
        match = re.match(r"(\w+)\.(\d+)\.(.+)", name)
        branch = match and is_per_level(list(head.shapes), match[1], count)
        names[name] = f"{match[1]}.{new[int(match[2])]}.{match[3]}" if match and branch else name
    head = replace(
        head,
        shapes={names[name]: shape for name, shape in head.shapes.items()},
        parameters={names[name]: n for name, n in head.parameters.items()},
    )
    return replace(source, rows=[*source.rows[:-1], head])


def _equal(source: Rows, target: Rows) -> bool:
    """Whether the sequences are equal, but for shapes in the head (another number of classes)."""
    return len(source) == len(target) and all(
        s.module == t.module and s.ours == t.ours and (s.shapes == t.shapes or i == len(target) - 1)
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
        if not _same_module(source, i, target, j):
            return None
    return a, b


def _same_module(source: Rows, i: int, target: Rows, j: int) -> bool:
    s, t = source.rows[i], target.rows[j]
    if s.module == t.module:
        return s.ours == t.ours
    # Heads of other tasks extend Detect and share its tensors.
    heads = i == len(source) - 1 and j == len(target) - 1
    return heads and (s.module in t.kinds or t.module in s.kinds)


Scores = Mapping[tuple[int, int], float]


def _origin_scores(
    source: Rows, target: Rows, origin: Sequence[int], target_origin: Sequence[int]
) -> Scores:
    """Rows of one origin pair, and inserted rows between them if they are the same block."""
    rows = len(source) + len(target)
    largest = 1 + max((len(row.shapes) for row in source.rows), default=0)
    certain = float(rows * largest)  # more than all inserted rows together
    scores = {}
    for i, j in _candidates(source, target):
        if origin[i] == target_origin[j]:
            kept = 1 + len(fitting(source.rows[i], target.rows[j]))
            scores[i, j] = certain if origin[i] >= 0 else float(kept)
    return scores


def _wiring_scores(source: Rows, target: Rows) -> Scores:
    """Tensors kept, up to twice as much where the neighbourhoods in the graphs are equal."""
    ids: dict[object, int] = {}
    a, b = _neighbourhoods(source, ids), _neighbourhoods(target, ids)
    scores = {}
    for i, j in _candidates(source, target):
        s, t = source.rows[i], target.rows[j]
        kept = len(fitting(s, t))
        whole = s.shapes == t.shapes
        if not (kept or whole):
            continue
        agreement = sum(x == y for x, y in zip(a[i], b[j])) / (1 + WIRING_ROUNDS)
        scores[i, j] = (1 + kept) * (1.0 if whole else 0.5) * (1 + agreement)
    return scores


def _candidates(source: Rows, target: Rows) -> list[tuple[int, int]]:
    return [
        (i, j)
        for i in range(len(source))
        for j in range(len(target))
        if _same_module(source, i, target, j)
    ]


def _refined(model: Rows) -> list[int]:
    """For each row the row that it stands for: itself, or what a block of ours refines."""
    refined: list[int] = []
    for i, row in enumerate(model.rows):
        first = row.sources[0] if row.sources else IMAGE
        refined.append((refined[first] if first >= 0 else IMAGE) if row.ours else i)
    return refined


def _neighbourhoods(model: Rows, ids: dict[object, int]) -> list[list[int]]:
    """For each row, labels of its neighbourhood in the graph, at growing distance.

    Equal labels mean equal neighbourhoods (Weisfeiler and Lehman's refinement). A block of ours
    counts as the row that it refines, so inserting one changes no label.
    """
    refined = _refined(model)
    sources = [[refined[s] if s >= 0 else s for s in row.sources] for row in model.rows]
    readers: list[list[int]] = [[] for _ in model.rows]
    for i, row in enumerate(model.rows):
        for s in sources[i] if not row.ours else ():
            if s >= 0:
                readers[s].append(i)

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
            above = tuple(now[s] if s >= 0 else IMAGE for s in sources[i])
            known.append(label(now[i], above, tuple(sorted(now[r] for r in readers[i]))))
    return labels


def _best_pairs(source: Rows, target: Rows, scores: Scores) -> dict[int, int]:
    """The order-keeping pairs of largest total score: target row -> source row."""
    n, m = len(source), len(target)
    best = [[0.0] * (m + 1) for _ in range(n + 1)]
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            pair = scores.get((i - 1, j - 1), 0.0)
            both = best[i - 1][j - 1] + pair if pair else 0.0
            best[i][j] = max(best[i - 1][j], best[i][j - 1], both)
    pairs: dict[int, int] = {}
    i, j = n, m
    while i and j:
        pair = scores.get((i - 1, j - 1), 0.0)
        if pair and best[i][j] == best[i - 1][j - 1] + pair:
            i, j = i - 1, j - 1
            pairs[j] = i
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            j -= 1
    return pairs
