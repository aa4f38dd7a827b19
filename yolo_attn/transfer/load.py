"""Pretrained weights reach the layers that they belong to, whatever rows were put in between.

Ultralytics copies tensors by name, and a name counts rows: behind an inserted row they are lost or
land in a wrong layer. ``BaseModel.load``, which every loading path ends in, here gets a view of
the source whose rows stand where the target's corresponding rows are; the rest is stock code.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.location import PROVENANCE
from yolo_attn.transfer.report import Transfer
from yolo_attn.transfer.row_alignment import (
    Alignment,
    LayerRow,
    Rows,
    align,
    fitting,
    head_levels,
    is_per_level,
    variant,
    with_head_levels,
)

PARTIAL_ENV = "YOLO_ATTN_PARTIAL"
# Part of a source's layers that must fit where neither provenance nor a whole backbone or head says
# that it is of the family. Nearest strangers: YOLO11 and YOLO26, 14 of 18.
SAME_FAMILY = 0.8

_PARTIAL: ContextVar[bool] = ContextVar("partial", default=False)


def transfer(model: Any, weights: Any, partial: bool = False) -> Any:
    """``model.load(weights)`` with a choice that Ultralytics' own signature has no place for.

    Args:
        model: ``YOLO(...)`` or its ``.model``.
        weights: What ``load`` takes: a checkpoint file for the former, a module for the latter.
        partial: Whether weights of another family or scale are welcome, as far as they fit. For
            the stock command, set ``YOLO_ATTN_PARTIAL=1``.

    Returns:
        What ``load`` returns.

    Raises:
        YoloAttnError: The weights are of another family or scale, and `partial` is false.
    """
    token = _PARTIAL.set(partial)
    try:
        return model.load(weights)
    finally:
        _PARTIAL.reset(token)


def load(original: FunctionType, model: nn.Module, weights: Any, verbose: bool = True) -> Any:
    """``BaseModel.load``: row by row where either model has blocks of ours, else untouched."""
    checkpoint = weights if isinstance(weights, dict) else {"model": weights}
    source: Any = checkpoint.get("ema") or checkpoint.get("model")
    if not (_has_rows(source) and _has_rows(model)) or not (_is_ours(source) or _is_ours(model)):
        return original(model, weights, verbose)

    rows, own = rows_of(source), rows_of(model)
    pairs = align(rows, own)
    levels = head_levels(rows, own)
    rows = with_head_levels(rows, own)
    check_design(source, model, rows, own, pairs)

    source.float()  # as the original does, also to rows that find no place
    placed = {
        key: _view(value, model, own, pairs, levels) if key in ("ema", "model") and value else value
        for key, value in checkpoint.items()
    }
    before = _misfits(model, rows, own, pairs)
    with _without_stock_summary():
        result = original(model, placed if isinstance(weights, dict) else placed["model"], verbose)
    if verbose:
        from ultralytics.utils import LOGGER

        # Newer releases rebuild the class branch of the head at the source's width: read again.
        own = rows_of(model)
        report = Transfer.of(rows, own, pairs, _changed(model, before))
        LOGGER.info(report.text(classes(source), classes(model)))
    return result


def rows_of(model: Any) -> Rows:
    """The rows of a built model, with the provenance that its YAML holds."""
    ours = _block_classes()
    rows = [_row(layer, ours) for layer in model.model]
    stride = getattr(model.model[-1], "stride", None)
    strides = stride.flatten().tolist() if isinstance(stride, Tensor) else ()
    d = getattr(model, "yaml", None)
    provenance = d.get(PROVENANCE) if isinstance(d, dict) else None
    if not isinstance(provenance, dict) or len(provenance.get("rows") or ()) != len(rows):
        return Rows(rows, strides=strides)
    from yolo_attn.overlay.model_files import without_scale

    return Rows(
        rows,
        base=without_scale(Path(str(provenance.get("base"))).name),
        origin=list(provenance["rows"]),
        replaced=frozenset(provenance.get("replaced") or ()),
        strides=strides,
    )


def check_design(source: Any, model: Any, rows: Rows, own: Rows, pairs: Alignment) -> None:
    """Refuse weights of another family or scale.

    Raises:
        YoloAttnError: They are, and a partial transfer was not asked for.
    """
    if _PARTIAL.get() or _flag(os.environ.get(PARTIAL_ENV, "")):
        return
    row_of = {i: j for j, i in pairs.source_of.items()}
    counted = [i for i, row in enumerate(rows.rows) if row.shapes and not row.ours]
    said, says = _written(source), _written(model)
    same_scale = multiples(source.yaml) == multiples(model.yaml)

    def whole(i: int) -> bool:
        j = row_of.get(i)
        if j is None:
            return False
        if i == len(rows) - 1 and classes(source) != classes(model):
            return True
        one, other = rows.rows[i], own.rows[j]
        # A subclass may have more tensors than the layer that it varies, on either side.
        few = min(len(one.shapes), len(other.shapes)) if variant(one, other) else len(one.shapes)
        return len(fitting(one, other)) == few

    def explained(i: int) -> bool:
        # Another width in one place (a replaced row) changes the shapes of its readers, whose rows
        # say what they said before; in another family they say something else.
        return whole(i) or (i in row_of and same_scale and said[i] == says[row_of[i]])

    def replaced(i: int) -> bool:
        return i in rows.replaced or row_of[i] in own.replaced

    if pairs.by_origin:
        if all(map(explained, (i for i in counted if i in row_of and not replaced(i)))):
            return
    else:
        split = len(source.yaml["backbone"])
        for part in ([i for i in counted if i < split], [i for i in counted if i >= split]):
            if part and all(map(whole, part)):
                return
    if sum(map(explained, counted)) >= SAME_FAMILY * len(counted):
        return
    fits = sum(map(whole, counted))
    raise YoloAttnError(
        f"pretrained weights {_name(source)} are of another family or scale than {_name(model)}: "
        f"{fits} of their {len(counted)} layers with weights fit; take weights of its base at its "
        f"scale, or accept only what fits with {PARTIAL_ENV}=1 (in Python: "
        "yolo_attn.transfer.load.transfer(model, weights, partial=True))"
    )


def _written(model: Any) -> list[str]:
    """Repeats, module and args of each row of a model's YAML."""
    return [str(row[1:]) for row in (*model.yaml["backbone"], *model.yaml["head"])]


def classes(model: Any) -> Any:
    """Number of classes of a model's head."""
    return getattr(model.model[-1], "nc", None)


def multiples(d: dict[str, Any]) -> tuple[float, float]:
    """Depth and width multiple of a model, by Ultralytics' rule."""
    scales = d.get("scales")
    if isinstance(scales, dict) and scales:
        depth, width, *_ = scales.get(d.get("scale")) or next(iter(scales.values()))
        return float(depth), float(width)
    return float(d.get("depth_multiple", 1.0)), float(d.get("width_multiple", 1.0))


def _has_rows(model: Any) -> bool:
    return (
        isinstance(model, nn.Module)
        and isinstance(getattr(model, "model", None), nn.Sequential)
        and isinstance(rows := getattr(model, "yaml", None), dict)
        and {"backbone", "head"} <= rows.keys()
    )


def _is_ours(model: Any) -> bool:
    ours = _block_classes()
    return PROVENANCE in model.yaml or any(isinstance(m, ours) for m in model.modules())


def _block_classes() -> tuple[type[nn.Module], ...]:
    from yolo_attn.blocks.identity_start import IdentityStart
    from yolo_attn.registry import block_info, list_blocks

    return (IdentityStart, *(block_info(name).cls for name in list_blocks()))


def _row(layer: Any, ours: tuple[type[nn.Module], ...]) -> LayerRow:
    # Rows with repeats are a Sequential; `type` names what is repeated.
    name = str(getattr(layer, "type", type(layer).__name__)).rsplit(".", 1)[-1]
    first = layer[0] if isinstance(layer, nn.Sequential) and len(layer) else layer
    f = getattr(layer, "f", -1)
    i = getattr(layer, "i", 0)
    kinds = _kinds(type(first))
    if isinstance(getattr(first, "block", None), ours):  # identity_start
        name = f"{name}({type(first.block).__name__})"
        kinds = frozenset(f"{type(first).__name__}({kind})" for kind in _kinds(type(first.block)))
    tensors = layer.state_dict()
    parameters = dict(layer.named_parameters(remove_duplicate=False))
    return LayerRow(
        module=name,
        shapes={key: tuple(value.shape) for key, value in tensors.items()},
        parameters={key: parameters[key].numel() if key in parameters else 0 for key in tensors},
        sources=tuple(s if s >= 0 else i + s for s in (f if isinstance(f, (list, tuple)) else [f])),
        ours=isinstance(first, ours) and not _varies_stock(type(first)),
        kinds=kinds,
    )


# What layers derive from without being one another's variants.
_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _kinds(cls: type) -> frozenset[str]:
    """Names of a layer's class and of the layers that it derives from."""
    return frozenset(
        c.__name__
        for c in cls.__mro__
        if issubclass(c, nn.Module) and c not in _CONTAINERS and not c.__name__.startswith("_")
    )


def _varies_stock(cls: type) -> bool:
    """Whether a registered class is a variant of an Ultralytics layer, not a block beside them."""
    return any(c.__module__.startswith("ultralytics.") for c in cls.__mro__)


def _view(
    source: Any, model: Any, own: Rows, pairs: Alignment, levels: dict[int, int]
) -> nn.Module:
    """The source with its rows at the places of the target's; modules and attributes are shared.

    A new block of ours stands for itself: it does not count as missing when Ultralytics decides
    whether the names of the classes come along. So does a new first row, which releases up to
    8.4.60 read without asking.
    """
    layers: list[nn.Module] = []
    for j, row in enumerate(own.rows):
        i = pairs.source_of.get(j)
        if i is not None:
            layers.append(source.model[i])
        else:
            layers.append(model.model[j] if row.ours or j == 0 else nn.Identity())
    same_levels = levels == {k: k for k in range(len(own.strides))}
    if len(own) - 1 in pairs.source_of and not same_levels:
        layers[-1] = _head_view(layers[-1], model.model[-1], levels)
    return _shallow(source, model=nn.Sequential(*layers))


def _head_view(head: Any, own: nn.Module, levels: dict[int, int]) -> nn.Module:
    """The source's head with its branches at the target's levels, whose new ones stay."""
    count = len(head.f)
    names = list(head.state_dict())
    branches = {}
    for name, child in head.named_children():
        theirs = getattr(own, name, None)
        if isinstance(theirs, nn.ModuleList) and is_per_level(names, name, count):
            branches[name] = nn.ModuleList(
                child[levels[k]] if k in levels else theirs[k] for k in range(len(theirs))
            )
    return _shallow(head, **branches)


def _shallow(module: nn.Module, **children: nn.Module) -> nn.Module:
    copy = object.__new__(type(module))
    copy.__dict__ = {**module.__dict__, "_modules": {**module._modules, **children}}
    return copy


def _misfits(model: Any, rows: Rows, own: Rows, pairs: Alignment) -> dict[str, Tensor]:
    """Copies of the tensors that have a counterpart of another shape in the source."""
    tensors = model.model.state_dict()
    return {
        f"{j}.{name}": tensors[f"{j}.{name}"].clone()
        for j, i in pairs.source_of.items()
        for name, shape in own.rows[j].shapes.items()
        if rows.rows[i].shapes.get(name, shape) != shape
    }


def _changed(model: Any, before: dict[str, Tensor]) -> set[str]:
    """Those of them that the original filled in part: image channels, classes of equal names."""
    now = model.model.state_dict()
    return {
        name
        for name, value in before.items()
        if name in now and now[name].shape == value.shape and not torch.equal(now[name], value)
    }


@contextmanager
def _without_stock_summary() -> Iterator[None]:
    """Hold back Ultralytics' own count, which ours takes the place of; other lines pass."""
    from ultralytics.utils import LOGGER

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Transferred ")

    LOGGER.addFilter(keep)
    try:
        yield
    finally:
        LOGGER.removeFilter(keep)


def _name(model: Any) -> str:
    d = model.yaml
    path = getattr(model, "pt_path", None) or d.get("yaml_file") or type(model).__name__
    base = (d.get(PROVENANCE) or {}).get("base") or d.get("yaml_file") or path
    name, design = (Path(str(p)).name for p in (path, base))
    facts = [design] if design != name else []
    facts += [f"scale {d['scale']}"] if d.get("scale") else []
    return f"{name} ({', '.join(facts)})" if facts else name


def _flag(value: str) -> bool:
    return value.strip().lower() not in ("", "0", "false", "no")
