"""A fork's checkpoint as one of this project: same rows, same tensors, same outputs.

The file is read as data (:mod:`yolo_attn.migrate.unpickler`). Its attention rows become blocks of
ours by the rules of the layouts; all other layers are Ultralytics', and their tensors keep their
names. What is not exactly one or the other is refused by name, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.migrate.designs import family_of
from yolo_attn.migrate.layouts import CannotMapError, Mapped, Parts
from yolo_attn.migrate.layouts_attention import rule_for
from yolo_attn.migrate.plain import plain_copy
from yolo_attn.migrate.rows import Refusal, RowChange, Translation, row_text, translate
from yolo_attn.migrate.saved_modules import SavedModule, is_module, read_module
from yolo_attn.migrate.unpickler import Stub, read_checkpoint

ORDERS = ("max-first", "mean-first")  # designs of a CBAM that only a checkpoint needs
# Models whose layers need more than an image, or queries of their own.
OTHER_KINDS = ("RTDETR", "World", "YOLOE")


@dataclass
class Checkpoint:
    """What is used of a checkpoint.

    Attributes:
        path: The file.
        content: Its dictionary, stubs included.
        attributes: Attributes of its model.
        model: Its modules.
        yaml: The model's dictionary, plain data.
    """

    path: Path
    content: dict[Any, Any]
    attributes: dict[Any, Any]
    model: SavedModule
    yaml: dict[str, Any]

    @property
    def rows(self) -> list[list[Any]]:
        """Rows of both sections, the same lists that stand in `yaml`."""
        return [*self.yaml["backbone"], *self.yaml["head"]]

    @property
    def layers(self) -> list[SavedModule]:
        """Layers, one a row."""
        sequential = self.model.children.get("model")
        return list(sequential.children.values()) if sequential else []


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of an Ultralytics fork; nothing of it runs.

    Raises:
        YoloAttnError: It is no such checkpoint.
    """
    from yolo_attn.overlay.location import Location
    from yolo_attn.overlay.model_checks import check_model

    path = Path(path)
    content = read_checkpoint(path)
    if is_module(content):
        content = {"model": content}
    if not isinstance(content, dict):
        raise YoloAttnError(f"{path}: no checkpoint of a training (it holds no dictionary)")
    # As Ultralytics chooses.
    found = content.get("ema") if is_module(content.get("ema")) else content.get("model")
    if not is_module(found):
        raise YoloAttnError(
            f"{path}: no model in it, tensors alone at most (accepted: the best.pt or last.pt of a "
            "training)"
        )
    assert isinstance(found, Stub)
    if found.path.split(".")[0] in ("models", "yolov5", "yolov7"):
        raise YoloAttnError(
            f"{path}: a model of the YOLOv5 (or YOLOv7) repository, class {found.path}: its head "
            "predicts from anchors, and Ultralytics has no such head, so its weights cannot be "
            "converted; migrate its YAML (`yolo-attn migrate FILE.yaml`) and train anew"
        )
    model = read_module(found, str(path))
    if any(kind in model.name for kind in OTHER_KINDS):
        raise YoloAttnError(
            f"{path}: a {model.name}, whose checkpoints cannot be migrated (accepted: models that "
            "detect, segment, find poses or oriented boxes, or classify)"
        )
    yaml = plain_copy(found.attributes.get("yaml"), strict=f"{path}: the model's YAML")
    checkpoint = Checkpoint(path, content, found.attributes, model, yaml)
    if not isinstance(yaml, dict) or not all(
        isinstance(yaml.get(k), list) and yaml[k] for k in ("backbone", "head")
    ):
        raise YoloAttnError(
            f"{path}: its model has no YAML with backbone and head (fused? exported?)"
        )
    # Files of strangers: nothing is asked of rows and scales before their form is known.
    with _named(path):
        check_model(yaml, Location(yaml))
    if any(row[2] == "TorchVision" for row in checkpoint.rows):
        raise YoloAttnError(
            f"{path}: a row TorchVision loads weights from the network while it is built "
            "(accepted: a model without)"
        )
    if any(layer.path.startswith("yolo_attn.") for layer in checkpoint.layers):
        raise YoloAttnError(
            f"{path}: a checkpoint of this project already, `yolo` reads it as it is"
        )
    if len(checkpoint.rows) != len(checkpoint.layers):
        raise YoloAttnError(
            f"{path}: {len(checkpoint.rows)} rows in its YAML, {len(checkpoint.layers)} layers in "
            "its model (accepted: a layer for each row)"
        )
    return checkpoint


def migrate_checkpoint(
    path: str | Path,
    out: str | Path | None = None,
    designs: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Translation:
    """Migrate a fork's checkpoint.

    Args:
        path: The checkpoint.
        out: Where to write; None: nothing is written.
        designs: Module name -> design, where tensors do not tell (``{"CBAM": "max-first"}``).
        overwrite: Whether `out` may be there already.

    Returns:
        What became of the rows; with refusals nothing is written.

    Raises:
        YoloAttnError: It is no checkpoint of an Ultralytics fork, or `out` cannot be written.
    """
    from yolo_attn.migrate import converted

    if out is not None:
        converted.check_target(Path(out), overwrite)
    checkpoint = open_checkpoint(path)
    result, mapped = _translate(checkpoint, dict(designs or {}))
    if result.refused:
        return result
    with _named(checkpoint.path):
        model, refused = converted.build(checkpoint, result.model, mapped)
    result.refused.extend(refused)
    if result.refused or model is None:
        return result
    counts = [sum(p.numel() for p in layer.parameters()) for layer in model.model]
    result.parameters = sum(counts)
    result.rows = [replace(change, parameters=counts[change.row]) for change in result.rows]
    if out is not None:
        converted.write(checkpoint, model, Path(out), overwrite)
    return result


def _translate(
    checkpoint: Checkpoint, designs: dict[str, str]
) -> tuple[Translation, dict[int, list[Mapped]]]:
    """The migrated YAML, and each own row's tensors under our names, a module of the row each."""
    from yolo_attn import __version__
    from yolo_attn.overlay.location import PROVENANCE

    orders = {k: v for k, v in designs.items() if v in ORDERS}
    with _named(checkpoint.path):
        by_yaml = translate(checkpoint.yaml, {k: v for k, v in designs.items() if k not in orders})
    d = by_yaml.model
    result = Translation(model=d, scale=by_yaml.scale)
    d.pop("yaml_file", None)
    d[PROVENANCE] = {"version": __version__}
    rows = [*d["backbone"], *d["head"]]
    before = [row_text(row) for row in checkpoint.rows]
    if len(rows) != len(before):
        result.refused.append(Refusal(None, "its auxiliary levels have no counterpart here"))
        return result, {}
    refused = {r.row: r.why for r in by_yaml.refused}
    changes = {r.row: r for r in by_yaml.rows}
    own = {
        i: rule
        for i, layer in enumerate(checkpoint.layers)
        if not _is_known(checkpoint.rows[i][2], layer)
        and (rule := _rule_of(checkpoint.rows[i][2], layer))
    }
    for i in own:
        if not isinstance(rows[i][0], int):
            said = f"{checkpoint.rows[i][2]}: reads {rows[i][0]} (accepted: one map)"
            result.refused.append(Refusal(i, said))
    result.refused += [Refusal(r, w) for r, w in refused.items() if r is not None and r not in own]
    if result.refused:
        return result, {}
    mapped: dict[int, list[Mapped]] = {}
    channels = _channels(checkpoint, rows, own, d)
    for i, rule in own.items():
        name, modules = _modules_of(checkpoint.layers[i])
        try:
            design = designs.get(name) or designs.get(checkpoint.rows[i][2]) or ""
            mapped[i] = [rule(Parts(m, channels[i], design)) for m in modules]
            if any(m.options != mapped[i][0].options for m in mapped[i]):
                raise CannotMapError("repeats modules of different options")
        except CannotMapError as reason:
            result.refused.append(Refusal(i, f"{name}: {reason}"))
            changes.pop(i, None)
            continue
        first = mapped[i][0]
        rows[i][2], rows[i][3] = first.block, [first.options] if first.options else []
        if (other := _design_block(name, design)) not in (None, first.block):
            first.notes.append(f"--design {name}={design} is {other}, which its tensors are not")
        why = "; ".join(["options and tensors as the checkpoint has them", *first.notes])
        changes[i] = RowChange(i, before[i], row_text(rows[i]), first.block, first.options, 0, why)
    result.rows = [changes[i] for i in sorted(changes)]
    return result, mapped


def _is_known(name: Any, layer: SavedModule) -> bool:
    """Whether a row is one of the installed Ultralytics or already ours."""
    from yolo_attn.overlay.host_rows import host_has

    return host_has(name) and layer.path.split(".")[0] in ("ultralytics", "torch", "torchvision")


def _design_block(name: str, design: str) -> str | None:
    """Our block of a design; None where the table has none of that name."""
    family = family_of(name)
    found = [d.block for d in family.designs if d.name == design] if family else []
    return found[0] if found else None


def _modules_of(layer: SavedModule) -> tuple[str, list[SavedModule]]:
    """The class of a row and its modules: one, or those of a row that repeats it."""
    if layer.name == "Sequential" and layer.children:
        modules = list(layer.children.values())
        if len({m.path for m in modules}) == 1:
            return modules[0].name, modules
    return layer.name, [layer]


def _rule_of(row: str, layer: SavedModule) -> Any:
    """By the name of the class, else by that of the row."""
    return rule_for(_modules_of(layer)[0]) or rule_for(row)


def _channels(
    checkpoint: Checkpoint, rows: list[list[Any]], own: Mapping[int, Any], d: dict[str, Any]
) -> dict[int, int]:
    """C of what each own row reads, from a model without storage in which they do nothing."""
    from yolo_attn.overlay.dry_run import run

    model = deepcopy(d)
    copies = [*model["backbone"], *model["head"]]
    for i in own:
        copies[i][1:] = [1, "nn.Identity", []]
    with _named(checkpoint.path):
        _, outputs = run(model)
    sources = {i: rows[i][0] + (i if rows[i][0] < 0 else 0) for i in own}
    image = d.get("channels", d.get("ch", 3))
    return {i: int(outputs[at].shape[1]) if at >= 0 else image for i, at in sources.items()}


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors about the model inside say in which file it is."""
    try:
        yield
    except YoloAttnError as error:
        raise YoloAttnError(f"{path}: {error}") from None
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise YoloAttnError(
            f"{path}: its model does not build here ({type(error).__name__}: {said})"
        ) from error
