"""A design of a fork's module, as one of our blocks with options; the names that share designs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yolo_attn.migrate.arguments import Argument


@dataclass(frozen=True)
class Design:
    """One design of a module.

    Attributes:
        name: What ``--design`` calls it.
        block: Our block that computes it.
        what: What tells it from the family's others, in half a sentence.
        options: Options of ours that it always has.
        defaults: What the fork's class takes for an argument that the row leaves out.
        floor: Smallest hidden width that its division by the reduction gives; None: it has none.
        takes: Its arguments after the widths, in order; each may be left out.
    """

    name: str
    block: str
    what: str
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    floor: int | None = None
    takes: tuple[Argument, ...] = ()


@dataclass(frozen=True)
class Family:
    """Names of forks that mean one module.

    Attributes:
        names: Module names in forks' YAMLs.
        designs: What they may mean, the usual one first.
        sure: Whether the first is taken where ``--design`` says nothing. False: the usual class of
            that name is another design than any block here.
        why_not: What that class is, where it is not `sure`.
    """

    names: tuple[str, ...]
    designs: tuple[Design, ...]
    sure: bool = True
    why_not: str = ""
