"""Ultralytics' ``yaml_model_load``: what it loads is expanded if it is an overlay."""

from __future__ import annotations

import re
from pathlib import Path
from types import FunctionType
from typing import Any

import yaml

from yolo_attn import __version__
from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.expand import expand
from yolo_attn.overlay.location import PROVENANCE, forget_checkpoint
from yolo_attn.overlay.model_checks import names_ours
from yolo_attn.overlay.model_files import (
    is_overlay,
    read_yaml,
    refuse_lost_scale,
    scale_of,
    syntax_error,
    without_scale,
)
from yolo_attn.paths import is_shipped


def yaml_model_load(original: FunctionType, path: Any) -> dict[str, Any]:
    """Load a model YAML; an overlay as the plain model it stands for.

    A model of ours learns here which version read it first: its checkpoints are rebuilt with that
    version's defaults.
    """
    try:
        d = original(path)
    except Exception:
        # Versions wrap YAML's own error differently, so the file is read once more to know.
        _refuse_broken_yaml(_find(original, path))
        d = _in_folder(original, path)
        if d is None:
            raise
    d, file = _as_named(original, path, d)
    if is_overlay(d):
        overlay = {k: v for k, v in d.items() if k not in ("scale", "yaml_file")}
        scale = d.get("scale") or scale_of(path)
        d = expand(overlay, file or Path(path), requested=path, scale=scale)
    elif PROVENANCE not in d and names_ours(d):
        d[PROVENANCE] = {"version": __version__}
    if file is not None:
        refuse_lost_scale(path, file, d)
    forget_checkpoint(d)
    return d


def _as_named(original: FunctionType, path: Any, d: dict[str, Any]) -> tuple[Any, Path | None]:
    """What stands in the file of exactly this name, and that file.

    Up to 8.4.120 Ultralytics looks for the scale-less name first: a zoo with both yolov7.yaml and
    yolov7x.yaml would never give the latter.

    Args:
        original: Ultralytics' ``yaml_model_load``.
        path: What it was asked for.
        d: What it returned.
    """
    exact, scaleless = (_lookup(original, n) for n in (str(path), without_scale(str(path))))
    if exact and scaleless and exact != scaleless:
        own = read_yaml(exact)
        if is_overlay(own) or is_overlay(d) or is_shipped(exact) or is_shipped(scaleless):
            return {**own, "scale": scale_of(path), "yaml_file": str(path)}, exact
    elif scaleless and not exact and _lookup(original, _scaleless_path(path)) != scaleless:
        # Another file, in the folder that Ultralytics made of this one's name.
        own = read_yaml(scaleless)
        if is_overlay(own):
            return {**own, "scale": scale_of(path), "yaml_file": str(path)}, scaleless
    return d, exact or scaleless


def _scaleless_path(path: Any) -> str:
    """What Ultralytics makes of a path to find the file without a scale letter."""
    return re.sub(r"(\d+)([nslmx])(.+)?$", r"\1\3", str(path))


def _in_folder(original: FunctionType, path: Any) -> dict[str, Any] | None:
    """A model of ours that Ultralytics does not find, for it changes the folder's name.

    It takes the scale letter out of the whole path: of run1n/yolov8n-mine.yaml it looks for
    run1/yolov8n-mine.yaml.
    """
    found = _lookup(original, without_scale(str(path)))
    if found is None:
        return None
    own = read_yaml(found)
    if not (is_overlay(own) or names_ours(own)):
        return None
    return {**own, "scale": scale_of(path), "yaml_file": str(path)}


def _find(original: FunctionType, path: Any) -> Path | None:
    """The file that `path` names, with or without its scale letter."""
    return _lookup(original, str(path)) or _lookup(original, without_scale(str(path)))


def _lookup(original: FunctionType, name: str) -> Path | None:
    found = original.__globals__["check_yaml"](name, hard=False)
    return Path(found) if found else None


def _refuse_broken_yaml(file: Path | None) -> None:
    """Explain a syntax error in a model meant for us; others are Ultralytics' to explain."""
    if file is None or not _names_something_of_ours(file):
        return
    try:
        yaml.safe_load(file.read_text(encoding="utf-8", errors="ignore"))
    except yaml.YAMLError as error:
        raise YoloAttnError(syntax_error(file, error)) from None


def _names_something_of_ours(file: Path) -> bool:
    from yolo_attn.registry import known_names

    text = file.read_text(encoding="utf-8", errors="ignore")
    if re.search(r"^\s*(base|insert|replace|identity_start)\s*:", text, re.MULTILINE):
        return True
    return bool(set(re.findall(r"\w+", text)) & set(known_names()))
