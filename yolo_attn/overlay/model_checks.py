"""Checks of a whole model YAML before any of it is built: shape, sizes, and nothing to execute."""

from __future__ import annotations

import ast
import math
from typing import Any

from torch import nn

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.location import PROVENANCE, Location, check_rows
from yolo_attn.overlay.meaning import BUILT, is_ours, kept_rows, rows_of
from yolo_attn.versions import parse

MOST_VALUES = 50_000  # the largest model of Ultralytics and of the zoo has under 1,000
MOST_REPEATS = 500  # of all rows together, scaled by depth; the largest models have under 100
DEEPEST = 20


def names_ours(d: Any) -> bool:
    """Whether a loaded model YAML is ours to explain: expanded by us, or with a row of ours.

    A plain row whose name Ultralytics has too is Ultralytics'.
    """
    if not isinstance(d, dict):
        return False
    if PROVENANCE in d:
        return True
    from ultralytics.nn import tasks

    kept = kept_rows(d)
    return any(
        isinstance(row, list) and any(is_ours(i, m, kept, vars(tasks)) for m in row[2:3])
        for i, row in enumerate(rows_of(d))
    )


def check_model(d: dict[str, Any], where: Location) -> None:
    """Check what needs neither channels nor modules.

    Raises:
        YoloAttnError: The YAML is malformed or too large, or holds code; names file and row.
    """
    check_size(d, where.file)
    for section in ("backbone", "head"):
        if not isinstance(d.get(section), list) or not d[section]:
            raise YoloAttnError(
                f"{where.file}: {section}={d.get(section)!r} (accepted: a list of [from, repeats, "
                "module, args])"
            )
    for i, row in enumerate([*d["backbone"], *d["head"]]):
        if not isinstance(row, (list, tuple)) or len(row) != 4:
            raise YoloAttnError(
                f"{where.of_layer(i)}: {row!r} (accepted: [from, repeats, module, args])"
            )
        if not isinstance(row[2], str):
            raise YoloAttnError(f"{where.of_layer(i)}: module={row[2]!r} (accepted: a name)")
    check_rows(d, where)
    _check_scales(d, where)
    _check_repeats(d, where)
    _check_activation(d.get("activation"), where)
    _check_provenance(d, where)


def check_size(d: Any, file: str) -> None:
    """Refuse a document that aliases blow up (``[*a, *a, *a]`` ten times over) or never end.

    Raises:
        YoloAttnError: More values, or deeper nesting, than any model has.
    """
    count, stack = 0, [(d, 0)]
    while stack:
        value, depth = stack.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise YoloAttnError(
                f"{file}: more than {MOST_VALUES} values or {DEEPEST} levels (are there aliases "
                "`*name` of lists that hold aliases? write the rows out)"
            )
        if isinstance(value, dict):
            stack.extend((part, depth + 1) for part in value.values())
        elif isinstance(value, (list, tuple, set)):
            stack.extend((part, depth + 1) for part in value)


def _check_scales(d: dict[str, Any], where: Location) -> None:
    scales = d.get("scales")
    if not scales:
        return
    good = isinstance(scales, dict) and all(
        isinstance(s, (list, tuple)) and len(s) == 3 and all(_is_positive(v) for v in s)
        for s in scales.values()
    )
    if not good:
        raise YoloAttnError(
            f"{where.file}: scales={scales!r} (accepted: letter: [depth, width, max_channels] with "
            "numbers above 0)"
        )
    if d.get("scale") and str(d["scale"]) not in map(str, scales):
        raise YoloAttnError(
            f"{where.file}: scale={d['scale']!r} (accepted: {', '.join(map(str, scales))})"
        )


def _check_repeats(d: dict[str, Any], where: Location) -> None:
    depths = [s[0] for s in (d.get("scales") or {}).values()] or [d.get("depth_multiple", 1.0)]
    if not all(_is_positive(depth) for depth in depths):
        raise YoloAttnError(
            f"{where.file}: depth_multiple={depths[0]!r} (accepted: a number above 0)"
        )
    total = 0.0
    for i, (_, n, m, _args) in enumerate([*d["backbone"], *d["head"]]):
        total += n * max(depths) if n > 1 else 1
        if total > MOST_REPEATS + len(d["backbone"]) + len(d["head"]):
            raise YoloAttnError(
                f"{where.of_layer(i)}: {m} has repeats={n} at depth {max(depths)}: more than "
                f"{MOST_REPEATS} repeated layers (accepted: fewer repeats or a smaller depth)"
            )


def _is_positive(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 < value < 1e6
        and math.isfinite(value)
    )


def _check_activation(spec: Any, where: Location) -> None:
    """Ultralytics evaluates this string as Python; YAMLs come from strangers."""
    if not spec:
        return
    try:
        call = ast.parse(spec.strip(), mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        assert ast.unparse(call.func.value) in ("nn", "torch.nn")
        found = getattr(nn, call.func.attr)
        assert isinstance(found, type) and issubclass(found, nn.Module)
        for argument in [*call.args, *(k.value for k in call.keywords)]:
            ast.literal_eval(argument)
    except Exception:
        raise YoloAttnError(
            f"{where.file}: activation={spec!r} (accepted: a module of torch.nn with literal "
            "arguments, such as nn.ReLU() or nn.LeakyReLU(0.1))"
        ) from None


def _check_provenance(d: dict[str, Any], where: Location) -> None:
    """What `yolo-attn expand` writes about the base; weight transfer and messages read it."""
    if PROVENANCE not in d:
        return
    provenance, count = d[PROVENANCE], len(d["backbone"]) + len(d["head"])
    # Of a model whose rows were written by hand only the version is known.
    if isinstance(provenance, dict) and provenance.keys() - {BUILT} == {"version"}:
        provenance = {**provenance, "base": "", "rows": [-1] * count}
    good = (
        isinstance(provenance, dict)
        and (
            "version" not in provenance
            or (isinstance(provenance["version"], str) and bool(parse(provenance["version"])))
        )
        and isinstance(provenance.get("base"), str)
        and _are_ints(provenance.get("rows"))
        and len(provenance["rows"]) == count
        and _are_ints(provenance.get("replaced") or [])
        and _are_ints(provenance.get(BUILT) or [])
        and isinstance(provenance.get("labels") or [], (list, tuple))
        and all(
            isinstance(label, (list, tuple)) and len(label) == 2 and _are_ints(label[:1])
            for label in provenance.get("labels") or []
        )
    )
    if not good:
        raise YoloAttnError(
            f"{where.file}: {PROVENANCE}={d[PROVENANCE]!r} does not describe these {count} rows "
            "(accepted: what `yolo-attn expand` wrote; after editing rows, delete this entry)"
        )


def _are_ints(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(
        isinstance(v, int) and not isinstance(v, bool) for v in values
    )
