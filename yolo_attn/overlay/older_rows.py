"""Rows of a checkpoint of ours that today's rules of rows would refuse, written as they want them.

What was built is in the file, so nothing is guessed: a row is touched only where its layer is an
instance of our class. A fork's row of the same name is left as it is, to be refused.
"""

from __future__ import annotations

from typing import Any

from yolo_attn.overlay.row_guards import LEAST_WIDTH
from yolo_attn.registry import find_block
from yolo_attn.versions import FORMER_ALIASES


def spell_out(d: dict[str, Any], model: Any) -> None:
    """Write former aliases as names, and a leading number that may be a width as a keyword.

    Args:
        d: The model's YAML, changed in place.
        model: The model that was built from it.
    """
    sections = [d.get(k) for k in ("backbone", "head")]
    rows = [row for section in sections if isinstance(section, list) for row in section]
    for i, (row, layer) in enumerate(zip(rows, _layers(model))):
        if not isinstance(row, list) or len(row) != 4:
            continue
        info = find_block(FORMER_ALIASES.get(str(row[2]), row[2]))
        if info is None or not any(type(part) is info.cls for part in layer.modules()):
            continue
        if row[2] in FORMER_ALIASES:
            from ultralytics.utils import LOGGER

            LOGGER.info(
                f"{d.get('yaml_file') or 'model'} row {i}: {row[2]} is {info.name} (no name of "
                "ours since 0.2.0, forks mean other blocks by it)"
            )
            row[2] = info.name
        args, names = row[3], list(info.options)
        args = args if isinstance(args, list) else [args]
        keywords = args[-1] if args and isinstance(args[-1], dict) else None
        positional = args if keywords is None else args[:-1]
        if (
            0 < len(positional) <= len(names)
            and names[0] not in info.width_options
            and _may_be_width(positional[0])
        ):
            row[3] = [{**dict(zip(names, positional)), **(keywords or {})}]


def _layers(model: Any) -> list[Any]:
    try:
        return list(model.model)
    except (AttributeError, TypeError):
        return []


def _may_be_width(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= LEAST_WIDTH
