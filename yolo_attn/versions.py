"""What older versions built by default: a model that they made is rebuilt as it was trained.

A model YAML carries the version that read it first (its provenance; absent before 0.2.0). While
such a model is built, :func:`made_by` names that version, and whoever changed a default asks
:func:`made_before`. A changed default needs an entry here, or its place asks by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

FIRST = "0.1.0"  # wrote no version

# version that changed it -> block -> option -> what it was before.
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "0.2.0": {
        "NonLocal": {"init_std": 0.01},
        "EMA": {"factor": 32},
        "MDCR": {"stats": "shared"},
        "BiFormer": {"init_std": 0.02},
        "CrissCross": {"gamma_step": 1.0},
        "PositionAttention": {"gamma_step": 1.0},
        "ChannelGram": {"gamma_step": 1.0},
        "DANet": {"gamma_step": 1.0},
    },
}
# Names that were aliases of ours; the field means other things by them.
FORMER_ALIASES = {"CA": "ContextAggregation", "CAM": "ChannelGram"}
# Smallest hidden width that a ratio could give, by block, before one rule held for all (0.2.0).
FLOORS_BEFORE_0_2 = {
    "AFNB": 8,
    "CoordAtt": 8,
    "CrissCrossHead": 8,
    "DANet": 8,
    "FcaNet": 8,
    "GlobalContext": 4,
    "RevColAttnFusion": 8,
    "SK": 32,
}

_MADE_BY: ContextVar[tuple[int, ...] | None] = ContextVar("made_by", default=None)


def parse(version: str) -> tuple[int, ...]:
    """``"0.2.0rc1" -> (0, 2, 0)``: the numbers that a version begins with."""
    numbers = re.match(r"\d+(\.\d+)*", str(version).strip())
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


@contextmanager
def made_by(version: str) -> Iterator[None]:
    """Build with the defaults of this version."""
    token = _MADE_BY.set(parse(version))
    try:
        yield
    finally:
        _MADE_BY.reset(token)


def made_before(version: str) -> bool:
    """Whether the model that is being built was made before this version."""
    made = _MADE_BY.get()
    return made is not None and made < parse(version)


def earlier_defaults(block: str) -> dict[str, Any]:
    """Options whose default was another one when the model that is being built was made."""
    earlier: dict[str, Any] = {}
    # The oldest change that came after the model says what held when it was made.
    for version in sorted(DEFAULTS, key=parse, reverse=True):
        if made_before(version):
            earlier.update(DEFAULTS[version].get(block, {}))
    return earlier
