"""Overlays: YAMLs that say how they differ from a base, expanded to what they stand for.

```yaml
base: yolov8.yaml
insert:                      # [after, repeats, module, args]
  - [P5, 1, NonLocal, []]
replace:                     # [index, repeats, module, args]
  - [9, 1, SPP, [1024]]
```
A fifth entry of an insert, ``{name: NAME}``, makes a branch: no row of the base reads it, later
inserts do, as ``after: NAME``.
``backbone: [[from, repeats, module, args], ...]`` puts other rows in place of the base's backbone;
taps and indices of the entries above then count in the result.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from yolo_attn import __version__
from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.overlay.graph import Graph, Node
from yolo_attn.overlay.location import PROVENANCE, Location
from yolo_attn.overlay.model_checks import check_model, check_size
from yolo_attn.overlay.model_files import (
    find_model_yaml,
    is_overlay,
    model_names,
    read_yaml,
    refuse_lost_scale,
    scale_of,
)
from yolo_attn.overlay.modules import known_module, unknown
from yolo_attn.overlay.new_backbone import with_backbone
from yolo_attn.overlay.places import find_places, listed, split_branch
from yolo_attn.overlay.row_guards import point_to_migrate
from yolo_attn.registry import find_block

OWN_KEYS = ("base", "backbone", "insert", "replace", "identity_start")
# What else parse_model and the model classes read from a model YAML.
MODEL_KEYS = (
    "nc", "scales", "scale", "activation", "depth_multiple", "width_multiple", "max_channels",
    "kpt_shape", "channels", "ch", "reg_max", "end2end", "names", "task", "stride", "text_model",
    "loss",
)  # fmt: skip


def expand(overlay: dict[str, Any], path: Path, requested: Any, scale: str = "") -> dict[str, Any]:
    """Expand an overlay.

    Args:
        overlay: The loaded YAML.
        path: Where it was found; bases are looked up beside it first.
        requested: The name that the user gave (with the scale letter), for messages and the result.
        scale: The scale letter of that name, or "".

    Returns:
        A plain model dictionary; `yolo_attn` holds its provenance: the base's name, and for each
        row the index that it had in the base (-1 for an inserted row).

    Raises:
        YoloAttnError: The overlay is at fault; names file and entry.
    """
    return _expand(overlay, path, str(requested), scale, chain=[path.resolve()])


def _expand(
    overlay: dict[str, Any], path: Path, name: str, scale: str, chain: list[Path]
) -> dict[str, Any]:
    check_size(overlay, name)
    base = _load_base(overlay, path, scale, chain)
    _check_keys(overlay, base, name)
    identity_start = _flag(overlay.get("identity_start", False), f"{name} identity_start")
    labelled_by = f"{Path(base['yaml_file']).name} "
    if "backbone" in overlay:
        base, labelled_by = with_backbone(base, _backbone(overlay, name), name), ""
    taps: dict[str, int] = {}
    branches: dict[str, Node] = {}
    graph = Graph.of(base["backbone"], base["head"])
    by_index = list(graph.nodes)

    for k, entry in enumerate(_entries(overlay, "replace", name), 1):
        label = f"replace {k}"
        at, rest = _row(entry, name, label, "index")
        nodes = find_places(at, base, by_index, taps, {}, f"{name} {label}")
        if len(nodes) != 1:
            raise YoloAttnError(f"{name} {label}: index={at!r} (accepted: one layer index or tap)")
        graph.replace(nodes[0], _with_identity(rest, identity_start), f"{label}: {rest[1]}")
    for k, entry in enumerate(_entries(overlay, "insert", name), 1):
        label = f"insert {k}"
        entry, branch = split_branch(entry, branches, f"{name} {label}")
        after, rest = _row(entry, name, label, "after")
        nodes = find_places(after, base, by_index, taps, branches, f"{name} {label}")
        _check_inputs(rest[1], after, nodes, f"{name} {label}")
        text = f"{label}: {rest[1]} after {listed(after)}"
        starts = _with_identity(rest, identity_start) if branch is None else rest
        node = graph.insert(nodes, starts, text, branch is not None)
        if branch is not None:
            branches[branch] = node
    for branch, node in branches.items():
        if not any(node in reader.sources for reader in graph.nodes):
            raise YoloAttnError(
                f"{name} {node.label}: no later insert reads {branch!r} (accepted: one that has "
                f"{branch!r} in its `after`; without `name` the rows of the base read it)"
            )

    backbone, head = graph.rows()
    own = {k: deepcopy(v) for k, v in overlay.items() if k not in OWN_KEYS}
    # A base that an older version expanded keeps that version's defaults, and so does what stands
    # in it.
    before = base.pop(PROVENANCE, None) or {"version": __version__}
    earlier = before.get("rows")
    for i, text in before.get("labels", ()):
        if not by_index[i].label:
            by_index[i].label = f"{labelled_by}{text}"
    return {
        **base,
        **own,
        "backbone": backbone,
        "head": head,
        "scale": scale or base.get("scale", ""),
        "yaml_file": name,
        PROVENANCE: {
            **({"version": before["version"]} if "version" in before else {}),
            "base": before.get("base") or Path(str(base["yaml_file"])).name,
            "rows": [
                n.base if n.base < 0 or earlier is None else earlier[n.base] for n in graph.nodes
            ],
            "replaced": [
                i
                for i, n in enumerate(graph.nodes)
                if n.replaced or n.base in before.get("replaced", ())
            ],
            "labels": [[i, n.label] for i, n in enumerate(graph.nodes) if n.label],
        },
    }


def _load_base(
    overlay: dict[str, Any], path: Path, scale: str, chain: list[Path]
) -> dict[str, Any]:
    """The base as a plain model dictionary, with overlays below it expanded."""
    wanted = overlay["base"]
    if not isinstance(wanted, str) or not wanted.strip():
        raise YoloAttnError(
            f"{path}: base={wanted!r} (accepted: the name of a model YAML, e.g. yolov8.yaml)"
        )
    found = find_model_yaml(wanted, beside=path.parent)
    if found is None:
        raise YoloAttnError(
            f"{path}: base {wanted!r} does not exist{did_you_mean(wanted, model_names())} (looked "
            "beside the "
            "overlay, in the zoo and among Ultralytics' models)"
        )
    if found.resolve() in chain:
        names = " -> ".join(p.name for p in [*chain, found])
        raise YoloAttnError(f"{path}: base {wanted!r} leads back to itself ({names})")
    d = read_yaml(found)
    own_scale = scale or scale_of(wanted)
    if is_overlay(d):
        base = _expand(d, found, str(found), own_scale, [*chain, found.resolve()])
        refuse_lost_scale(wanted, found, base, where=f"{path}: base ")
        return base
    if not isinstance(d, dict) or not all(
        isinstance(d.get(k), list) and d[k] for k in ("backbone", "head")
    ):
        raise YoloAttnError(
            f"{path}: base {found} is not a model YAML (it has no backbone and head lists)"
        )
    d["yaml_file"], d["scale"] = str(found), own_scale
    check_model(d, Location(d))
    refuse_lost_scale(wanted, found, d, where=f"{path}: base ")
    return d


def _check_keys(overlay: dict[str, Any], base: dict[str, Any], name: str) -> None:
    for key in overlay:
        if key == "head":
            raise YoloAttnError(
                f"{name}: 'head' beside `base` (an overlay inserts into or replaces rows of its "
                "base, or replaces its backbone; drop `base` to write all rows yourself)"
            )
        if key not in OWN_KEYS and key not in MODEL_KEYS and key not in base:
            accepted = [*OWN_KEYS, *MODEL_KEYS]
            raise YoloAttnError(
                f"{name}: unknown key {key!r}{did_you_mean(key, accepted)} (an overlay has "
                f"{', '.join(OWN_KEYS)} "
                "and keys of its base such as nc, scales, activation)"
            )


def _backbone(overlay: dict[str, Any], name: str) -> list[list[Any]]:
    """Rows of ``backbone:``, checked one by one."""
    entries = _entries(overlay, "backbone", name)
    if not entries:
        raise YoloAttnError(
            f"{name} backbone: no rows (accepted: a list of [from, repeats, module, args], or drop "
            "`backbone` to keep the base's)"
        )
    rows = [_row(entry, name, f"backbone {k}", "from") for k, entry in enumerate(entries, 1)]
    return [[source, *rest] for source, rest in rows]


def _entries(overlay: dict[str, Any], key: str, name: str) -> list[Any]:
    entries = overlay.get(key)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise YoloAttnError(
            f"{name} {key}: {entries!r} (accepted: a list of [..., repeats, module, args])"
        )
    return entries


def _row(entry: Any, name: str, label: str, first: str) -> tuple[Any, list[Any]]:
    if not isinstance(entry, (list, tuple)) or len(entry) != 4:
        raise YoloAttnError(
            f"{name} {label}: {entry!r} (accepted: [{first}, repeats, module, args])"
        )
    place, repeats, module, args = deepcopy(list(entry))
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise YoloAttnError(f"{name} {label}: repeats={repeats!r} (accepted: a whole number >= 1)")
    if not isinstance(module, str):
        raise YoloAttnError(f"{name} {label}: module={module!r} (accepted: a name)")
    if not isinstance(args, (list, dict)):
        raise YoloAttnError(
            f"{name} {label}: args={args!r} (accepted: a list of options, or one mapping of "
            "keywords)"
        )
    _check_module(module, name, label)
    args = args if isinstance(args, list) else [args]
    info = find_block(module)
    if info is not None:
        keywords = dict(args[-1]) if args and isinstance(args[-1], dict) else None
        if keywords is not None:
            keywords.pop("identity_start", None)
        try:
            info.bind(args if keywords is None else [*args[:-1], keywords])
        except YoloAttnError as error:
            said = point_to_migrate(error, args, name)
            raise YoloAttnError(f"{name} {label}: {said}") from None
    return place, [repeats, module, args]


def _check_module(module: str, name: str, label: str) -> None:
    from ultralytics.nn import tasks

    if not known_module(module, vars(tasks)):
        raise YoloAttnError(f"{name} {label}: {unknown(module, name, made_here=True)}")


def _check_inputs(module: str, after: Any, nodes: list[Node], where: str) -> None:
    info = find_block(module)
    if info is not None and not info.min_inputs <= len(nodes) <= info.max_inputs:
        low, high = info.min_inputs, info.max_inputs
        wanted = str(low) if low == high else f"{low} to {high}"
        form = "a list of taps or indices" if high > 1 else "one tap or index"
        raise YoloAttnError(
            f"{where}: {module} takes {wanted} input{'s' if wanted != '1' else ''}, "
            f"after={listed(after)} gives "
            f"{len(nodes)} (write {form} as `after`)"
        )


def _with_identity(rest: list[Any], identity_start: bool) -> list[Any]:
    """Write the overlay's identity_start into a row of ours that does not say otherwise."""
    repeats, module, args = rest
    info = find_block(module)
    if not identity_start or info is None or info.layer:
        return rest
    keywords = args[-1] if args and isinstance(args[-1], dict) else {}
    positional = args[:-1] if args and isinstance(args[-1], dict) else args
    return [repeats, module, [*positional, {"identity_start": True, **keywords}]]


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise YoloAttnError(f"{where}: {value!r} (accepted: true, false)")
    return value
