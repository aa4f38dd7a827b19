"""Ultralytics' ``yaml_model_load``: what it loads is expanded if it is an overlay."""

from __future__ import annotations

import re
from pathlib import Path
from types import FunctionType
from typing import Any

import yaml

from yolo_attn.errors import YoloAttnError
from yolo_attn.seam.overlay import expand, is_overlay, scale_of, syntax_error, without_scale


def yaml_model_load(original: FunctionType, path: Any) -> dict[str, Any]:
    """Load a model YAML; an overlay as the plain model it stands for."""
    try:
        d = original(path)
    except Exception:
        # Versions wrap YAML's own error differently, so the file is read once more to know.
        _refuse_broken_yaml(_find(original, path))
        raise
    if not is_overlay(d):
        return d
    file = _find(original, path)
    overlay = {k: v for k, v in d.items() if k not in ("scale", "yaml_file")}
    return expand(
        overlay, file or Path(path), requested=path, scale=d.get("scale") or scale_of(path)
    )


def _find(original: FunctionType, path: Any) -> Path | None:
    """The file that `original` read."""
    check_yaml = original.__globals__["check_yaml"]
    for name in (str(path), without_scale(str(path))):
        found = check_yaml(name, hard=False)
        if found:
            return Path(found)
    return None


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
