"""In a fork of Ultralytics: out of the way until a YAML or checkpoint has a block of ours.

Ours is a block that the fork lacks. What stands here is put in front of three functions; with the
first such model the rest of the seam is put in place, as in an installed Ultralytics.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

from yolo_attn import autoload
from yolo_attn.overlay.location import PROVENANCE
from yolo_attn.overlay.meaning import rows_of
from yolo_attn.overlay.model_checks import names_ours
from yolo_attn.overlay.model_files import is_overlay
from yolo_attn.paths import find_shipped
from yolo_attn.seam import checkpoint, overlay_loader, parser
from yolo_attn.seam.compat import UnexpectedHostError


def check_file(original: FunctionType, *args: Any, **kwargs: Any) -> Any:
    """The fork's own; what it does not find may be a YAML that we ship."""
    shipped = find_shipped(str(args[0] if args else kwargs.get("file")).strip())
    if shipped is None:
        return original(*args, **kwargs)
    try:
        return original(*args, **kwargs) or str(shipped)
    except FileNotFoundError:
        return str(shipped)


def yaml_model_load(original: FunctionType, *args: Any, **kwargs: Any) -> Any:
    """The fork's own, and our overlays."""
    d = original(*args, **kwargs)
    if not _wanted(d):
        return d
    autoload.take_part()
    return overlay_loader.yaml_model_load(original, *args, **kwargs)


def parse_model(original: FunctionType, *args: Any, **kwargs: Any) -> Any:
    """The fork's own, with a branch for rows of ours."""
    d = args[0] if args else kwargs.get("d")
    if not _wanted(d):
        return original(*args, **kwargs)
    autoload.take_part()
    if len(args) + len(kwargs) > 3:
        raise UnexpectedHostError("parse_model", "the parameters d, ch, verbose")
    return parser.parse_model(original, *args, **kwargs)


def torch_safe_load(original: FunctionType, *args: Any, **kwargs: Any) -> Any:
    """The fork's own; a checkpoint with our blocks as in an installed Ultralytics."""
    weight = args[0] if args else kwargs.get("weight")
    if not checkpoint.holds_ours(weight):
        return original(*args, **kwargs)
    autoload.take_part()
    return checkpoint.torch_safe_load(original, *args, **kwargs)


def _wanted(d: Any) -> bool:
    """Whether a loaded YAML asks for us; every other one the fork reads and explains alone."""
    if not isinstance(d, dict):
        return False
    ours = is_overlay(d) and any(k in d for k in ("insert", "replace", "backbone"))
    return ours or PROVENANCE in d or bool(rows_of(d)) and names_ours(d)
