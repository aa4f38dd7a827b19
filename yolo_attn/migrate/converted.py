"""The migrated model: built here, every tensor of the file in its place, written whole or not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolo_attn.errors import YoloAttnError
from yolo_attn.migrate.layouts import Mapped
from yolo_attn.migrate.plain import plain_copy
from yolo_attn.migrate.rows import Refusal
from yolo_attn.migrate.saved_modules import SavedModule

if TYPE_CHECKING:
    from yolo_attn.migrate.checkpoints import Checkpoint

MODEL_CLASSES = {
    "detect": "DetectionModel",
    "segment": "SegmentationModel",
    "pose": "PoseModel",
    "obb": "OBBModel",
    "classify": "ClassificationModel",
}
# Attributes that change what a layer computes, wherever a layer has them.
TELLING = (
    *("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    *("num_groups", "num_features", "negative_slope", "scale_factor", "mode", "align_corners"),
    *("add", "c", "d", "dim", "num_heads", "reg_max", "nc", "nl", "n", "k", "ceil_mode"),
)


def build(
    checkpoint: Checkpoint, d: Mapping[str, Any], mapped: Mapping[int, list[Mapped]]
) -> tuple[Any, list[Refusal]]:
    """Build the migrated model and fill it.

    Args:
        checkpoint: The file.
        d: Its migrated YAML.
        mapped: Own rows: the tensors of each module of the row.

    Returns:
        The model and no refusals, or None and what does not fit.
    """
    from ultralytics.nn import tasks

    from yolo_attn.overlay.dry_run import run

    task = tasks.guess_model_task(dict(d))
    if task not in MODEL_CLASSES:
        why = f"{checkpoint.model.name}: a model for {task} (accepted: {', '.join(MODEL_CLASSES)})"
        return None, [Refusal(None, why)]
    try:
        # Without storage first: a YAML may ask for more than its tensors are, or than there is.
        empty, _ = run(deepcopy(dict(d)))
        if refused := _put(checkpoint, empty, mapped, _check):
            return None, refused
        with torch.random.fork_rng(devices=[]):
            kind = getattr(tasks, MODEL_CLASSES[task])
            model = kind(cfg=deepcopy(dict(d)), ch=d.get("channels", d.get("ch", 3)), verbose=False)
    except YoloAttnError as error:
        return None, [Refusal(None, f"the migrated model does not build: {error}")]
    if refused := _put(checkpoint, model.model, mapped, _fill):
        return None, refused
    _describe(checkpoint, model)
    return model.eval(), []


class _DoesNotFitError(Exception):
    """A layer that is not what the file has."""


def _put(
    checkpoint: Checkpoint,
    layers: nn.Sequential,
    mapped: Mapping[int, list[Mapped]],
    use: Callable[[nn.Module, Mapping[str, Tensor]], None],
) -> list[Refusal]:
    """Hand each layer its tensors; returns what does not fit."""
    refused = []
    for i, (saved, layer) in enumerate(zip(checkpoint.layers, layers)):
        try:
            if i in mapped:
                _put_own(layer, mapped[i], use)
            else:
                check_same(saved, layer)
                use(layer, saved.state())
        except _DoesNotFitError as reason:
            refused.append(Refusal(i, f"{saved.name}: {reason}"))
    return refused


def _put_own(
    layer: nn.Module,
    mapped: list[Mapped],
    use: Callable[[nn.Module, Mapping[str, Tensor]], None],
) -> None:
    modules = [layer] if len(mapped) == 1 else list(layer.children())
    if len(modules) != len(mapped):
        raise _DoesNotFitError(f"is {len(mapped)} modules there, {len(modules)} here")
    for module, one in zip(modules, mapped):
        use(module, one.tensors)
        for name, value in one.settings.items():
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, value)


def _check(layer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not the layer's; all of both sides have to be used."""
    own = layer.state_dict()
    late = {k for k in own if k.endswith("num_batches_tracked")}  # missing in the oldest files
    missing, extra = set(own) - set(tensors) - late, set(tensors) - set(own)
    if missing or extra:
        named = [
            *(f"{k} is missing" for k in sorted(missing)),
            *(f"{k} is new" for k in sorted(extra)),
        ]
        raise _DoesNotFitError(
            f"its tensors are not those of the layer here: {', '.join(named[:4])} (fused? another "
            "version?)"
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise _DoesNotFitError(
                f"{name} is {tuple(tensor.shape)} there, {tuple(own[name].shape)} here"
            )
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise _DoesNotFitError(f"{name} is {tensor.dtype} there, {own[name].dtype} here")


def _fill(layer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors in their places, types as in the file."""
    _check(layer, tensors)
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition(".")
        module = layer.get_submodule(owner)
        if key in module._parameters:
            old = module._parameters[key]
            grad = old is not None and old.requires_grad
            module._parameters[key] = nn.Parameter(tensor.detach().clone(), requires_grad=grad)
        else:
            module._buffers[key] = tensor.detach().clone()


def check_same(saved: SavedModule, layer: nn.Module) -> None:
    """Refuse a layer that computes something else than the installed one of its name.

    Classes of PyTorch and attributes such as strides are compared; code cannot be.
    """
    here = dict(layer.named_modules())
    for name, there in saved.modules():
        module = here.get(name)
        if module is None:
            continue
        label = name or "it"
        if there.path.startswith("torch.nn.") and type(module).__name__ != there.name:
            raise _DoesNotFitError(f"{label} is {there.name} there, {type(module).__name__} here")
        if isinstance(module, nn.BatchNorm2d):
            for attribute in ("eps", "momentum"):
                setattr(module, attribute, there.number(attribute, getattr(module, attribute)))
        for attribute in TELLING:
            if attribute not in there.attributes or not hasattr(module, attribute):
                continue
            wanted, found = there.attributes[attribute], getattr(module, attribute)
            if _is_plain(wanted) and _is_plain(found) and _listed(wanted) != _listed(found):
                raise _DoesNotFitError(f"{label} has {attribute} {wanted} there, {found} here")


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, (list, tuple)) else value


def _describe(checkpoint: Checkpoint, model: Any) -> None:
    """Names of the classes and what else a checkpoint's model has."""
    names = plain_copy(checkpoint.attributes.get("names"))
    if isinstance(names, list):
        names = dict(enumerate(names))
    if isinstance(names, dict) and names:
        model.names = {int(k) if str(k).isdigit() else k: str(v) for k, v in names.items()}
    model.args = train_args(checkpoint)


def train_args(checkpoint: Checkpoint) -> dict[str, Any]:
    """The training's arguments that this Ultralytics knows, plain values alone."""
    from ultralytics.utils import DEFAULT_CFG_DICT

    found = checkpoint.content.get("train_args") or checkpoint.attributes.get("args")
    found = found if isinstance(found, dict) else getattr(found, "attributes", {})
    known = {k: plain_copy(v) for k, v in found.items() if k in DEFAULT_CFG_DICT}
    # They name files and modules of another machine.
    return {k: v for k, v in known.items() if k not in ("model", "resume", "pretrained", "cfg")}


def check_target(out: Path, overwrite: bool) -> None:
    """Refuse a file that cannot or must not be written.

    Raises:
        YoloAttnError: It has another suffix, is there already, or its folder is not.
    """
    if out.suffix != ".pt":
        raise YoloAttnError(f"{out}: a checkpoint's name ends in .pt")
    if out.is_dir() or not out.parent.is_dir():
        raise YoloAttnError(
            f"{out}: no file can be written there (accepted: one in a folder that is)"
        )
    if out.exists() and not overwrite:
        raise YoloAttnError(f"{out} is there already (--overwrite replaces it)")


def write(checkpoint: Checkpoint, model: Any, out: Path, overwrite: bool) -> None:
    """Write the migrated checkpoint, all of it or nothing.

    Raises:
        YoloAttnError: It cannot be written.
    """
    from ultralytics import __version__ as host_version

    said = checkpoint.content
    content = {
        "epoch": -1,
        "best_fitness": plain_copy(said.get("best_fitness")),
        "model": model,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": train_args(checkpoint),
        "train_metrics": plain_copy(said.get("train_metrics")),
        "train_results": plain_copy(said.get("train_results")),
        "date": plain_copy(said.get("date")),
        "version": host_version,
    }
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        torch.save(content, temporary)
        check_target(out, overwrite)
        os.replace(temporary, out)
    except (OSError, RuntimeError) as error:
        said_by = " ".join(str(error).split())[:200]
        raise YoloAttnError(f"{out}: cannot be written ({said_by})") from None
    finally:
        temporary.unlink(missing_ok=True)
