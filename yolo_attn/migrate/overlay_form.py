"""A translated model as an overlay of a known base: the base's name and what differs from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.migrate.arguments import plain
from yolo_attn.migrate.rows import Translation, row_text
from yolo_attn.migrate.widths import scales_of
from yolo_attn.migrate.written import entry

MOST_REPLACED = 4  # rows; with more of them a model is no variant of that base
KEPT = ("nc", "activation", "kpt_shape", "ch", "channels")


@dataclass(frozen=True)
class _Row:
    """A row with its sources as indices of layers."""

    sources: tuple[int, ...]
    is_list: bool
    repeats: int
    module: str
    args: str

    @property
    def what(self) -> tuple[int, str, str]:
        return self.repeats, self.module, self.args


def as_overlay(translation: Translation, source: str) -> tuple[str | None, str]:
    """Write a translation as an overlay.

    Args:
        translation: Without refusals.
        source: Name of the file that it comes from.

    Returns:
        The overlay's text and "", or None and why there is none, in one line.
    """
    rows = _absolute([*translation.model["backbone"], *translation.model["head"]])
    blocks = [i for i, row in enumerate(rows) if _is_block(row)]
    if not blocks:
        return None, "no row of it is a block of this project"
    base = _nearest(rows, blocks)
    if base is None:
        return None, "without its attention rows it is none of the known bases"
    name, replaced = base
    overlay = _overlay(translation, rows, blocks, name, replaced)
    try:
        expanded = _expanded(overlay, translation.scale)
    except YoloAttnError as error:
        return None, f"as an overlay of {name} it does not expand ({error})"
    found = _absolute([*expanded["backbone"], *expanded["head"]])
    if _meaning(found) != _meaning(rows):
        return None, (
            f"it is {name} with rows that are read in another way than an overlay's: some rows "
            "behind a block still read what stands before it"
        )
    return _text(overlay, name, source), ""


def _absolute(rows: Sequence[Sequence[Any]]) -> list[_Row]:
    found = []
    for i, (f, n, m, args) in enumerate(rows):
        sources = tuple(
            s if s >= 0 else i + s for s in (f if isinstance(f, (list, tuple)) else [f])
        )
        found.append(
            _Row(sources, isinstance(f, (list, tuple)), n, m, repr([plain(a) for a in args]))
        )
    return found


def _is_block(row: _Row) -> bool:
    from yolo_attn.registry import find_block

    info = find_block(row.module)
    return info is not None and not info.layer and not row.is_list


def _without(rows: list[_Row], blocks: list[int]) -> list[_Row]:
    """The rows without the blocks: who reads a block reads what the block reads."""
    place: dict[int, int] = {}
    kept: list[_Row] = []
    for i, row in enumerate(rows):
        sources = tuple(place.get(s, s) for s in row.sources)
        if i in blocks:
            place[i] = sources[0]
            continue
        place[i] = len(kept)
        kept.append(_Row(sources, row.is_list, *row.what))
    return kept


def _nearest(rows: list[_Row], blocks: list[int]) -> tuple[str, list[int]] | None:
    """The base with the fewest rows that differ, and which; None if all differ in too many."""
    kept = _without(rows, blocks)
    best: tuple[str, list[int]] | None = None
    for name in known_bases():
        base = _rows_of_base(name)
        if len(base) != len(kept) or any(
            (a.sources, a.is_list) != (b.sources, b.is_list) for a, b in zip(base, kept)
        ):
            continue
        differ = [i for i, (a, b) in enumerate(zip(base, kept)) if a.what != b.what]
        if len(differ) <= MOST_REPLACED and (best is None or len(differ) < len(best[1])):
            best = name, differ
    return best


def known_bases() -> list[str]:
    """Model YAMLs of the installed Ultralytics and the zoo's bases."""
    from yolo_attn.overlay.host_rows import host_models
    from yolo_attn.paths import zoo_dir

    return [*host_models(), *sorted(p.name for p in (zoo_dir() / "bases").glob("*.yaml"))]


def _rows_of_base(name: str) -> list[_Row]:
    from yolo_attn.overlay.dry_run import load_model_yaml

    try:
        base = load_model_yaml(name)
        return _absolute([*base["backbone"], *base["head"]])
    except (YoloAttnError, TypeError, ValueError):
        return []


def _overlay(
    translation: Translation, rows: list[_Row], blocks: list[int], name: str, replaced: list[int]
) -> dict[str, Any]:
    model = translation.model
    written = [*model["backbone"], *model["head"]]
    kept = [i for i in range(len(rows)) if i not in blocks]
    place = {i: new for new, i in enumerate(kept)}
    inserts = []
    for i in blocks:
        after = rows[i].sources[0]
        while after in blocks:  # a block behind a block: both after the same layer, in order
            after = rows[after].sources[0]
        inserts.append([place[after], *written[i][1:]])
    overlay: dict[str, Any] = {"base": name}
    overlay.update({k: model[k] for k in KEPT if k in model})
    overlay.update(_scaling(model, name))
    overlay["insert"] = inserts
    if replaced:
        overlay["replace"] = [[i, *written[kept[i]][1:]] for i in replaced]
    return overlay


def _scaling(model: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The keys that give the overlay the model's depth and width."""
    from yolo_attn.overlay.dry_run import load_model_yaml

    base = load_model_yaml(name)
    if model.get("scales"):
        return {} if model["scales"] == base.get("scales") else {"scales": model["scales"]}
    depth = float(model.get("depth_multiple") or 1.0)
    width = scales_of(model)[0].width
    if not base.get("scales"):
        return (
            {} if (depth, width) == (1, 1) else {"depth_multiple": depth, "width_multiple": width}
        )
    letter = next((k for k, v in base["scales"].items() if v[:2] == [depth, width]), "n")
    most = max(
        (row[3][0] for s in ("backbone", "head") for row in model[s] if _starts_with_width(row)),
        default=1024,
    )
    return {"scales": {letter: [depth, width, max(1024, most)]}}


def _starts_with_width(row: Sequence[Any]) -> bool:
    return bool(row[3]) and isinstance(row[3][0], int) and not isinstance(row[3][0], bool)


def _expanded(overlay: Mapping[str, Any], scale: str) -> dict[str, Any]:
    from yolo_attn.overlay.expand import expand

    first = next(iter(overlay.get("scales") or {}), "")
    return expand(dict(overlay), Path("overlay.yaml"), "overlay.yaml", scale or first)


def _meaning(rows: list[_Row]) -> Any:
    """What a model computes, whatever the order of its rows: each row with all that it reads."""
    found: list[int] = []
    for row in rows:
        read = tuple(found[s] if 0 <= s < len(found) else -1 for s in row.sources)
        found.append(hash((row.what, read)))
    return sorted(found)


def _text(overlay: Mapping[str, Any], name: str, source: str) -> str:
    lines = [f"# {source} as an overlay of {name}, by `yolo-attn migrate --overlay`."]
    for key, value in overlay.items():
        if key in ("insert", "replace"):
            first = "after" if key == "insert" else "index"
            lines.append(f"{key}: # [{first}, repeats, module, args]")
            lines += [f"  - {row_text(row)}" for row in value]
        else:
            lines.append(entry(key, value))
    return "\n".join(lines) + "\n"
