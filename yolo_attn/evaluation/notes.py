"""Odd input that an evaluation goes on with: counted, with the places of the first few."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 3  # places named for each warning


@dataclass
class Warnings:
    """Odd input that an evaluation went on with: how often, and where first."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def count(self, what: str, where: str, times: int = 1) -> None:
        """Add `times` cases of `what`; the first few places are kept."""
        self.counts[what] += times
        known = self.places.setdefault(what, [])
        if len(known) < EXAMPLES:
            known.append(where)

    def lines(self) -> list[str]:
        """For a person, one line a kind."""
        out = []
        for what, n in self.counts.most_common():
            more = ", ..." if n > len(self.places[what]) else ""
            out.append(f"{n} x {what} ({', '.join(self.places[what])}{more})")
        return out

    def as_dict(self) -> dict[str, Any]:
        """For a program (JSON types only)."""
        return {what: {"count": n, "places": self.places[what]} for what, n in self.counts.items()}
