"""Whose block a row means, where Ultralytics came to have a class of a name of ours.

A plain row then means Ultralytics' class. What an overlay inserted keeps meaning ours, and so does
what was expanded from one or built by us: the provenance of a model says which rows those are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolo_attn.overlay.location import PROVENANCE
from yolo_attn.overlay.modules import host_version, stock_module
from yolo_attn.paths import find_shipped
from yolo_attn.registry import find_block

# In a provenance: rows that were built as ours although nothing else says so.
BUILT = "ours"
_SAID: set[str] = set()


def rows_of(d: dict[str, Any]) -> list[Any]:
    """All rows of a model dictionary, as far as it has lists of them."""
    sections = [d.get(k) for k in ("backbone", "head")]
    return [row for section in sections if isinstance(section, list) for row in section]


def kept_rows(d: dict[str, Any]) -> set[int]:
    """Indices of the rows that mean ours, whatever names Ultralytics has.

    Args:
        d: A plain model dictionary.
    """
    provenance = d.get(PROVENANCE)
    provenance = provenance if isinstance(provenance, dict) else {}
    base = provenance.get("base")
    # A file of the zoo was written for our names.
    if find_shipped(Path(str(base or d.get("yaml_file"))).name) is not None:
        return set(range(len(rows_of(d))))
    kept = set(_ints(provenance.get(BUILT)))
    if base is not None:
        kept |= {i for i, row in enumerate(_ints(provenance.get("rows"))) if row < 0}
        kept |= set(_ints(provenance.get("replaced")))
    return kept


def is_ours(i: int, name: Any, kept: set[int], tasks_globals: dict[str, Any]) -> bool:
    """Whether row `i` names a block of ours and means it."""
    return find_block(name) is not None and (i in kept or not stock_module(name, tasks_globals))


def note_built(d: dict[str, Any], model: Any, tasks_globals: dict[str, Any]) -> None:
    """Write into a checkpoint's YAML which rows of a name that Ultralytics has were built as ours.

    Args:
        d: The model's YAML, changed in place.
        model: The model that was built from it.
        tasks_globals: Names that ``parse_model`` sees.
    """
    try:
        layers = list(model.model)
    except (AttributeError, TypeError):
        return
    built = []
    for i, (row, layer) in enumerate(zip(rows_of(d), layers)):
        name = row[2] if isinstance(row, (list, tuple)) and len(row) == 4 else None
        info = find_block(name)
        if info is not None and stock_module(name, tasks_globals):
            built += [i] * any(type(part) is info.cls for part in layer.modules())
    if built and isinstance(d.setdefault(PROVENANCE, {}), dict):
        d[PROVENANCE][BUILT] = built


def say_whose(d: dict[str, Any], kept: set[int], tasks_globals: dict[str, Any]) -> None:
    """One line, once for a name, where a row means ours although Ultralytics has that name."""
    from ultralytics.utils import LOGGER

    for i, row in enumerate(rows_of(d)):
        name = row[2]
        if name in _SAID or find_block(name) is None or not stock_module(name, tasks_globals):
            continue
        _SAID.add(name)
        whose = "yolo_attn's" if i in kept else "Ultralytics'"
        LOGGER.warning(
            f"{d.get('yaml_file') or 'model'} row {i}: {name} is {whose} block here; Ultralytics "
            f"{host_version()} and yolo_attn both have one, overlays mean yolo_attn's and plain "
            "rows Ultralytics'"
        )


def _ints(values: Any) -> list[int]:
    values = values if isinstance(values, (list, tuple)) else []
    return [v for v in values if isinstance(v, int)]
