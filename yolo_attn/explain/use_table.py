"""What is known of a block's use, and how it reads: one row, a table of 80 columns, words.

Measured by explain/use.py; standard library only, for reports that need no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

HARDLY = 0.01  # a block that changes its input by less hardly counts
NAME = 28  # characters of a block's name in the table


@dataclass(frozen=True)
class BlockUse:
    """One row of a model.

    Attributes:
        layer: Index of the row.
        block: The block's name, without `identity_start` around it.
        where: ``P5`` in the backbone, ``N4`` where the head reads the row, else ``stride 16``.
        gate: Mean gate (10 |g|); None without `identity_start`.
        gamma: Mean |gamma|; None for a block that does not start as the identity.
        change: Share of the input's L2 norm, mean over images; None where output and (first) input
            differ in shape.
    """

    layer: int
    block: str
    where: str
    gate: float | None
    gamma: float | None
    change: float | None

    @property
    def hardly(self) -> bool:
        """Whether it changes its input by less than 1 %."""
        return self.change is not None and self.change < HARDLY

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which knows no numbers that are not finite."""
        values = {"gate": self.gate, "gamma": self.gamma, "change": self.change}
        known = {k: v if v is not None and math.isfinite(v) else None for k, v in values.items()}
        return {"layer": self.layer, "block": self.block, "where": self.where, **known}


def table(blocks: Sequence[BlockUse], of: str) -> list[str]:
    """The answer as lines of at most 80 characters.

    Args:
        blocks: At least one.
        of: What the mean is over, e.g. ``8 images``.
    """
    names = [b.block if len(b.block) <= NAME else f"{b.block[: NAME - 3]}..." for b in blocks]
    width = max(len("block"), *map(len, names))
    lines = [f"layer  {'block':{width}}  {'where':9}  {'|g|':>8}  {'|gamma|':>8}  {'change':>10}"]
    lines += [
        f"{b.layer:5}  {name:{width}}  {b.where:9}  {number(b.gate):>8}  {number(b.gamma):>8}  "
        f"{percent(b.change):>10}"
        for name, b in zip(names, blocks)
    ]
    lines.append(f"change: |block(x) - x| / |x|, mean of {of}; < 1 %: hardly used")
    return lines


def number(value: float | None) -> str:
    """Three digits; "-" for None."""
    return "-" if value is None else f"{value:.3g}"


def percent(share: float | None) -> str:
    """``0.123 %``, ``1050 %``; "-" for None."""
    if share is None:
        return "-"
    return f"{100 * share:.{'0f' if 10 <= share < 1000 else '3g'}} %"
