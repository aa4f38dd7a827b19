"""What a transfer of weights kept, left new and dropped, for a person to read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from yolo_attn.transfer.row_alignment import Alignment, LayerRow, Rows, of_a_kind

MOST_LINES = 12  # of each kind
SHAPE = "another shape"


@dataclass(frozen=True)
class Count:
    """A number of tensors, and of parameters in them (buffers hold none)."""

    tensors: int = 0
    parameters: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.tensors + other.tensors, self.parameters + other.parameters)

    def __str__(self) -> str:
        plural = "" if self.tensors == 1 else "s"
        return f"{self.tensors} tensor{plural}, {self.parameters:,} parameters"


@dataclass
class Transfer:
    """One transfer.

    Attributes:
        kept: Tensors of the model that came from the source.
        total: All tensors of the model.
        source: All tensors of the source.
        new: What starts fresh, by layer.
        dropped: What of the source found no place, by layer and reason.
        adapted: Tensors of another shape that were filled in part.
    """

    kept: Count = field(default_factory=Count)
    total: Count = field(default_factory=Count)
    source: Count = field(default_factory=Count)
    new: dict[_Place, Count] = field(default_factory=dict)
    dropped: dict[_Place, Count] = field(default_factory=dict)
    adapted: dict[_Place, Count] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Rows, target: Rows, pairs: Alignment, adapted: set[str]) -> Transfer:
        """Count a transfer that has been done.

        Args:
            source: Rows of the model that weights came from.
            target: Rows of the model that has them now.
            pairs: Which belong together.
            adapted: Names (``"0.conv.weight"``) of tensors that were filled in part.
        """
        report = cls()
        row_of = {i: j for j, i in pairs.source_of.items()}
        for j, row in enumerate(target.rows):
            i = pairs.source_of.get(j)
            theirs = source.rows[i].shapes if i is not None else {}
            for name, shape in row.shapes.items():
                one = Count(1, row.parameters[name])
                report.total += one
                if theirs.get(name) == shape:
                    report.kept += one
                    continue
                into = report.adapted if f"{j}.{name}" in adapted else report.new
                why = SHAPE if name in theirs else ""
                _count(into, _Place(j, row.module, why, j == len(target) - 1), one)
        for i, row in enumerate(source.rows):
            into_row = row_of.get(i)
            now = target.rows[into_row].shapes if into_row is not None else {}
            for name, shape in row.shapes.items():
                one = Count(1, row.parameters[name])
                report.source += one
                if now.get(name) == shape or f"{into_row}.{name}" in adapted:
                    continue
                if into_row is None:
                    why = _absent(i, source, target, pairs)
                else:
                    why = _unfit(row, target.rows[into_row], name)
                _count(report.dropped, _Place(i, row.module, why, i == len(source) - 1), one)
        return report

    def text(self, classes_before: Any = None, classes: Any = None) -> str:
        """The summary: one line, and one for each kind of exception.

        Args:
            classes_before: Number of classes of the source.
            classes: Number of classes of the model.
        """
        count = self.source.tensors
        whole = f"all {count}" if self.kept == self.source else f"{self.kept.tensors} of {count}"
        lines = [
            f"Transferred {self.kept.tensors}/{self.total.tensors} items from pretrained weights "
            f"({self.kept.parameters:,} of {self.total.parameters:,} parameters; {whole} tensors "
            "of the source kept)"
        ]
        for title, found in (
            ("new", self.new),
            ("filled in part", self.adapted),
            ("dropped", self.dropped),
        ):
            entries = []
            for place, n in found.items():
                why = place.why
                if why == SHAPE and place.head and classes_before != classes:
                    why = f"class branch, {classes_before} -> {classes} classes"
                entries.append(
                    f"  {title}: layer {place.layer} {place.module}{why and f' ({why})'}: {n}"
                )
            if len(entries) > MOST_LINES:
                rest = sum(list(found.values())[MOST_LINES - 1 :], Count())
                more = len(entries) - MOST_LINES + 1
                entries[MOST_LINES - 1 :] = [f"  {title}: {more} more layers: {rest}"]
            lines += entries
        return "\n".join(lines)


@dataclass(frozen=True)
class _Place:
    layer: int
    module: str
    why: str
    head: bool


def _count(into: dict[_Place, Count], key: _Place, one: Count) -> None:
    into[key] = into.get(key, Count()) + one


def _unfit(row: LayerRow, now: LayerRow, name: str) -> str:
    """Why a tensor of the source does not fit the row that its row became."""
    if not of_a_kind(row, now):
        return f"replaced by {now.module}"
    return SHAPE if name in now.shapes else "has no place in this model"


def _absent(i: int, source: Rows, target: Rows, pairs: Alignment) -> str:
    """Why a row of the source has no partner."""
    origin = source.origin[i] if source.origin else i
    if pairs.by_origin and origin >= 0:
        origins = target.origin or range(len(target))
        if origin in origins:
            return f"replaced by {target.rows[list(origins).index(origin)].module}"
    return "this model has no such layer"
