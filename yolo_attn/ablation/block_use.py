"""The use of an arm's blocks over its seeds, and what it adds to a verdict.

A block that changes its input by less than 1 % can hardly be why an arm is better, worse or the
same: the verdict says so in the same sentence. Trials of older releases have no such numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from yolo_attn.explain.use_table import BlockUse, percent


def mean_use(records: Iterable[Mapping[str, Any]]) -> list[BlockUse]:
    """Each block's numbers, means over the trials of an arm that have them.

    Args:
        records: trial.json of the finished trials.
    """
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        for entry in record.get("blocks") or ():
            key = (entry["layer"], entry["block"], entry["where"])
            found.setdefault(key, []).append(entry)
    return [
        BlockUse(*key, *(_mean(entries, name) for name in ("gate", "gamma", "change")))
        for key, entries in sorted(found.items())
    ]


def largest_change(blocks: Sequence[BlockUse]) -> float | None:
    """Of an arm's blocks; None if no change is known."""
    return max((b.change for b in blocks if b.change is not None), default=None)


def remark(arm: Sequence[BlockUse], baseline: Sequence[BlockUse]) -> str:
    """What a verdict must add: ``, with NonLocal at P5 changing its input by 0.3 % only``, or "".

    Args:
        arm: blocks of the arm.
        baseline: blocks of the arm that it is compared with.
    """
    parts = [part for part in (_remark(arm, ""), _remark(baseline, "the baseline's ")) if part]
    return f", with {' and '.join(parts)}" if parts else ""


def _remark(blocks: Sequence[BlockUse], whose: str) -> str:
    hardly = [b for b in blocks if b.hardly]
    if len(hardly) == 1:
        (b,) = hardly
        return f"{whose}{b.block} at {b.where} changing its input by {percent(b.change)} only"
    if hardly:
        most = percent(largest_change(hardly))
        known = sum(b.change is not None for b in blocks)
        return f"{len(hardly)} of {whose}{known} blocks changing their input by {most} at most"
    return ""


def _mean(entries: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [entry[name] for entry in entries if entry[name] is not None]
    return sum(known) / len(known) if known else None
