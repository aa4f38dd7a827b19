"""``yolo-attn losses``: what the YAML key ``loss`` may name, for a terminal and for programs."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any

from yolo_attn.losses.catalogue import GROUPS, Entry
from yolo_attn.losses.described import describe
from yolo_attn.losses.options import expand

WIDTH = 80
NAME, FORMULA = 16, 51  # columns
TITLES = {
    "box": "Box losses: `loss: NAME`, or `box: NAME` in the mapping",
    "modifier": "Modifiers: `inner-NAME` and so on, or a key of the mapping",
    "cls": "Class losses: `cls: NAME`, or `cls: {cls: NAME, option: ..}`",
}
NOTES = (
    "S is the IoU or what inner or focaler make of it; rho the distance of the centres, c the "
    "diagonal and C the area of the enclosing box, U the union, w h the predicted and wg hg the "
    "target's sides, P the mean distance of the edges over the target's sides; p = sigmoid(logit), "
    "t the target. Short names: [wise-][inner-|focaler-][focal-][alpha-]NAME in any order, "
    "wiou-v1|v2|v3."
)


def as_dicts() -> list[dict[str, Any]]:
    """Every entry for programs."""
    return [{"kind": kind, **asdict(e)} for kind, entries in GROUPS.items() for e in entries]


def expanded(name: str) -> dict[str, Any]:
    """What a short name stands for.

    Raises:
        YoloAttnError: It is refused.
    """
    found = expand(name)
    return {"name": name, "loss": found.spec, "warnings": found.warnings}


def expanded_lines(one: dict[str, Any]) -> list[str]:
    """The same for a terminal."""
    said = f"{one['name']}: {describe(one['loss'])}"
    return [said, *(f"{one['name']}: warning: {text}" for text in one["warnings"])]


def as_text() -> str:
    """The list for a terminal of 80 columns."""
    lines = []
    for kind, entries in GROUPS.items():
        lines += [TITLES[kind], *(line for e in entries for line in _lines(e)), ""]
    return "\n".join([*lines, *textwrap.wrap(NOTES, WIDTH)])


def _lines(entry: Entry) -> list[str]:
    more = [text for text in (entry.paper, entry.options) if text]
    said = "; ".join(more)
    rest = [said] if said and len(said) <= WIDTH - NAME else more
    return [
        f"  {entry.name:<{NAME - 2}}{entry.formula:<{FORMULA}}{entry.span}".rstrip(),
        *(" " * NAME + line for line in rest),
    ]
