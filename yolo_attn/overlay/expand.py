"""Overlays: YAMLs that say how they differ from a base, expanded to what they stand for.

```yaml
base: yolov8.yaml
insert:                      # [after, repeats, module, args]
  - [P5, 1, NonLocal, []]
replace:                     # [index, repeats, module, args]
  - [9, 1, SPP, [1024]]
```
The steps, in this order: ``backbone`` (other rows under the base's neck), ``levels`` (of the head),
``remove``, ``replace``, ``neck``, ``fusion``, ``inside`` (blocks in the units of a stage),
``insert``. Each has a module of its own. Indices count in the base, names mean the model after
``levels`` (places.py). A fifth entry of an insert, ``{name: NAME}``, makes a branch: no row of the
base reads it, later inserts do, as ``after: NAME``; with ``{readers: next}`` the next row alone
reads the new one.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from yolo_attn import __version__
from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.overlay.entries import (
    SAME,
    read_args,
    read_entries,
    read_flag,
    read_row,
    split_options,
    with_identity,
)
from yolo_attn.overlay.fusion import change_fusions
from yolo_attn.overlay.graph import Graph, Node
from yolo_attn.overlay.inside import put_inside
from yolo_attn.overlay.levels import read_levels, with_levels
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
from yolo_attn.overlay.new_backbone import with_backbone
from yolo_attn.overlay.new_neck import with_neck
from yolo_attn.overlay.places import TAP, Places, listed
from yolo_attn.overlay.remove import remove_rows
from yolo_attn.registry import find_block

STEPS = ("remove", "replace", "neck", "fusion", "inside", "insert")
OWN_KEYS = ("base", "backbone", "levels", *STEPS, "identity_start")
INSERT_OPTIONS = {
    "name": "{name: NAME}, with a word that is no tap,",
    "readers": "{readers: next}",
}
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
    identity_start = read_flag(overlay.get("identity_start", False), f"{name} identity_start")
    labelled_by = f"{Path(base['yaml_file']).name} "
    if "backbone" in overlay:
        base, labelled_by = with_backbone(base, _backbone(overlay, name), name), ""
    graph = Graph.of(base["backbone"], base["head"])
    places = Places(base, graph)
    by_index = places.by_index

    if "levels" in overlay:
        _set_levels(overlay, graph, places, identity_start, name)
    entries = {key: read_entries(overlay, key, name) for key in STEPS}
    if any(_names_places(entry) for key in STEPS for entry in entries[key]):
        places.settle()
    remove_rows(graph, places, entries["remove"], name)
    for k, entry in enumerate(entries["replace"], 1):
        _replace(graph, places, entry, identity_start, name, f"replace {k}")
    if entries["neck"]:
        with_neck(graph, places, entries["neck"], name)
    change_fusions(graph, places, entries["fusion"], name)
    put_inside(graph, places, entries["inside"], identity_start, name)
    for k, entry in enumerate(entries["insert"], 1):
        _insert(graph, places, entry, identity_start, name, f"insert {k}")
    for branch, node in places.branches.items():
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
            **_starts(graph, earlier, before),
            "labels": [[i, n.label] for i, n in enumerate(graph.nodes) if n.label],
        },
    }


def _set_levels(
    overlay: dict[str, Any], graph: Graph, places: Places, identity_start: bool, name: str
) -> None:
    where = f"{name} levels"
    levels, gate = read_levels(overlay["levels"], where)
    if "neck" in overlay:
        raise YoloAttnError(
            f"{where}: a `neck` of its own says what the head reads (accepted: one of them)"
        )
    gated = identity_start if gate is None else gate
    with_levels(graph, places.pyramid(), levels, gated, places.file, where)
    places.leveled = True


def _names_places(entry: Any) -> bool:
    """Whether an entry names a row by something else than an index of the base."""
    place = entry[0] if isinstance(entry, (list, tuple)) and entry else entry
    many = place if isinstance(place, list) else [place]
    return not all(isinstance(at, int) for at in many)


def _replace(
    graph: Graph, places: Places, entry: Any, identity_start: bool, name: str, label: str
) -> None:
    where = f"{name} {label}"
    at, (repeats, module, args) = read_row(entry, name, label, "index", same=True)
    groups = places.find_each(at, where, "index")
    for nodes in groups:
        if len(nodes) != 1:
            raise YoloAttnError(f"{where}: index={at!r} (accepted: one layer index or tap)")
        before = nodes[0].rest
        own = list(before[2]) if args == SAME else args
        if args == SAME:  # the options of the row that goes, as options of the new module
            own = read_args(module, own, name, label)
        rest = [before[0] if repeats == SAME else repeats, module]
        rest.append(with_identity(module, own, identity_start))
        graph.replace(nodes[0], rest, f"{label}: {module}")


def _insert(
    graph: Graph, places: Places, entry: Any, identity_start: bool, name: str, label: str
) -> None:
    where = f"{name} {label}"
    entry, options = split_options(entry, 4, INSERT_OPTIONS, where)
    branch = _branch(options, places, where)
    next_only = options.get("readers") is not None
    if next_only and options["readers"] != "next":
        raise YoloAttnError(f"{where}: readers={options['readers']!r} (accepted: next)")
    after, rest = read_row(entry, name, label, "after")
    groups = places.find_each(after, where, "after")
    if branch is not None and (len(groups) > 1 or next_only):
        raise YoloAttnError(f"{where}: a row with a name is one branch (accepted: one place)")
    for nodes in groups:
        _check_inputs(rest[1], after, nodes, where)
        text = f"{label}: {rest[1]} after {listed(after)}"
        repeats, module, args = deepcopy(rest)
        own = args if branch is not None else with_identity(module, args, identity_start)
        new = [repeats, module, own]
        node = graph.insert(nodes, new, text, branch is not None, next_only)
        if next_only and not any(node in reader.sources for reader in graph.nodes):
            raise YoloAttnError(
                f"{where}: the row after {listed(after)} does not read it, so `readers: next` "
                "leaves the block unread"
            )
        if branch is not None:
            places.branches[branch] = node


def _branch(options: dict[str, Any], places: Places, where: str) -> str | None:
    """The name that makes an insert a branch; None where it has none."""
    branch = options.get("name")
    if "name" not in options:
        return None
    if not isinstance(branch, str) or not branch.isidentifier() or TAP.fullmatch(branch):
        raise YoloAttnError(
            f"{where}: {options!r} (accepted as fifth entry: {{name: NAME}}, with a word that is "
            "no tap)"
        )
    if branch in places.branches:
        raise YoloAttnError(f"{where}: the name {branch!r} stands for an earlier insert already")
    return branch


def _starts(graph: Graph, earlier: Any, before: dict[str, Any]) -> dict[str, Any]:
    """New rows that start from tensors of a row of the base, as ``{starts: [[row, its], ...]}``."""
    known = dict(map(tuple, before.get("starts", ())))
    found = []
    for i, node in enumerate(graph.nodes):
        if node.starts is not None and not node.replaced:
            at = node.starts.base
            found.append([i, at if earlier is None else earlier[at]])
        elif node.base in known and not node.replaced:
            found.append([i, known[node.base]])
    return {"starts": found} if found else {}


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
    entries = read_entries(overlay, "backbone", name)
    if not entries:
        raise YoloAttnError(
            f"{name} backbone: no rows (accepted: a list of [from, repeats, module, args], or drop "
            "`backbone` to keep the base's)"
        )
    rows = [read_row(entry, name, f"backbone {k}", "from") for k, entry in enumerate(entries, 1)]
    return [[source, *rest] for source, rest in rows]


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
