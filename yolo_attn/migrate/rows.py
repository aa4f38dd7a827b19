"""A fork's model YAML as one that means here what it meant there: rows translated or refused."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.migrate.attention import CannotMeanError, Meaning, meaning_of
from yolo_attn.migrate.designs import all_names, check_designs, family_of
from yolo_attn.migrate.heads import (
    common_activation,
    rewrite,
    without_activation,
    without_unread_rows,
)
from yolo_attn.migrate.widths import Scale, Widths, scales_of


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
    check_designs(designs or {})
    translated = deepcopy(dict(model))
    rows = _rows_of(translated)
    scales = scales_of(translated)
    at = _scale(scales, scale or translated.get("scale"))
    result = Translation(model=translated, scale=scales[at].name)
    image = translated.get("channels", translated.get("ch", 3))
    widths = [Widths(s, image if isinstance(image, int) else 3) for s in scales]
    if (activation := common_activation(rows)) is not None:
        translated["activation"] = activation
    for i, row in enumerate(rows):
        before = row_text(row)
        try:
            meaning, why = _translate_row(row, widths, at, designs or {}, activation)
        except CannotMeanError as reason:
            result.refused.append(Refusal(i, str(reason)))
            meaning, why = None, ""
        for followed in widths:
            followed.add(row[0], row[2], row[3], _stated_width(row, followed.scale))
        if meaning is not None:
            result.rows.append(
                RowChange(
                    i,
                    before,
                    row_text(row),
                    meaning.block,
                    meaning.options,
                    meaning.parameters,
                    meaning.why,
                )
            )
        elif why:
            result.rows.append(RowChange(i, before, row_text(row), row[2], {}, 0, why))
    _cut_auxiliary(translated, rows, result)
    if translated.pop("anchors", None) is not None and result.rows:
        last = len(rows) - 1
        result.rows = [
            replace(r, why=f"{r.why}; the key anchors is dropped") if r.row == last else r
            for r in result.rows
        ]
    if not result.refused:
        _build(result)
    return result


def _rows_of(model: Mapping[str, Any]) -> list[list[Any]]:
    """The rows of both sections, the same lists that stand in the model."""
    file = str(model.get("yaml_file") or "model")
    sections = [model.get(k) for k in ("backbone", "head")]
    if not all(isinstance(s, list) and s for s in sections):
        raise YoloAttnError(f"{file}: no model YAML (accepted: the lists backbone and head)")
    rows: list[Any] = [row for section in sections for row in section or ()]
    for i, row in enumerate(rows):
        good = isinstance(row, list) and len(row) == 4 and isinstance(row[2], str)
        if not good or not isinstance(row[3], list):
            raise YoloAttnError(
                f"{file} row {i}: {row!r} (accepted: [from, repeats, module, args])"
            )
    return rows


def _scale(scales: list[Scale], wanted: Any) -> int:
    names = [s.name for s in scales]
    if not wanted:
        return 0
    if wanted not in names:
        known = ", ".join(filter(None, names)) or "none, the model has no scales"
        raise YoloAttnError(f"scale {wanted!r} (accepted: {known})")
    return names.index(wanted)


def _translate_row(
    row: list[Any],
    widths: list[Widths],
    at: int,
    designs: Mapping[str, str],
    activation: str | None,
) -> tuple[Meaning | None, str]:
    """Rewrite one row in place.

    Returns:
        What an attention row means, or why another row was rewritten ("" for one that was not).

    Raises:
        CannotMeanError: It cannot be meant.
    """
    from yolo_attn.overlay.host_rows import host_has
    from yolo_attn.registry import find_block, known_names

    if isinstance(row[0], list) and len(row[0]) == 1 and _is_attention(row[2]):
        row[0] = row[0][0]  # a block with one input reads a layer, not a list of one
    source, _, module, args = row
    here = widths[at]
    meaning = meaning_of(module, args, here.read_by(source), here.scale, designs)
    if meaning is not None:
        if not (args and isinstance(args[-1], Mapping)):
            options = _at_every_scale(row, meaning, widths, designs)
            row[2], row[3] = meaning.block, [options] if options else []
        return meaning, ""
    found = (
        without_activation(args, activation) if module == "Conv" else rewrite(module, args, source)
    )
    if isinstance(found, str):
        raise CannotMeanError(found)
    if found is not None:
        row[2], row[3] = found.module, found.args
        row[0] = source if found.source is None else found.source
        return None, found.why
    if not host_has(module) and find_block(module) is None:
        near = did_you_mean(module, [*known_names(), *all_names()])
        raise CannotMeanError(
            f"{module}: neither Ultralytics nor this project has it, and its meaning is not known"
            f"{near}"
        )
    return None, ""


def _is_attention(module: str) -> bool:
    from yolo_attn.registry import find_block

    info = find_block(module)
    return family_of(module) is not None or (info is not None and not info.takes_list)


def _at_every_scale(
    row: list[Any], meaning: Meaning, widths: list[Widths], designs: Mapping[str, str]
) -> dict[str, Any]:
    """The options to write: a hidden width that holds at one scale alone is written as a rule."""
    hidden = set()
    for followed in widths:
        try:
            other = meaning_of(row[2], row[3], followed.read_by(row[0]), followed.scale, designs)
        except CannotMeanError:
            continue  # nor does the fork build it at that scale
        hidden.add(other.options.get("rd_channels") if other else None)
    if len(hidden) < 2:
        return dict(meaning.options)
    options = {k: v for k, v in meaning.options.items() if k != "rd_channels"}
    return {**options, "rd_min": 1}


def _stated_width(row: list[Any], scale: Scale) -> int | None:
    """Output channels that a row of ours states by name."""
    options = row[3][-1] if row[3] else None
    width = options.get("out_channels") if isinstance(options, Mapping) else None
    return scale.channels(width) if isinstance(width, int) else None


def _cut_auxiliary(model: dict[str, Any], rows: list[list[Any]], result: Translation) -> None:
    """Take out what fed the auxiliary levels alone; only the head stands behind it."""
    if not any("auxiliary" in r.why for r in result.rows):
        return
    count = without_unread_rows(rows)
    first = len(rows) - 1 - count
    if count and len(model["head"]) > count:
        del model["head"][-1 - count : -1]
        result.rows = [r for r in result.rows if not first <= r.row < first + count]


def _build(result: Translation) -> None:
    """Count the translated model and its rows; what does not build is a refusal."""
    from yolo_attn.overlay.dry_run import run

    try:
        layers, _ = run(result.model, result.scale or None)
    except YoloAttnError as error:
        result.refused.append(Refusal(None, f"the translated model does not build: {error}"))
        return
    counts = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    result.parameters = sum(counts)
    last = len(counts) - 1
    result.rows = [replace(r, parameters=counts[min(r.row, last)]) for r in result.rows]


def row_text(row: Any) -> str:
    """A row on one line, as YAML."""
    return str(yaml.safe_dump(row, default_flow_style=True, width=10_000)).strip()
