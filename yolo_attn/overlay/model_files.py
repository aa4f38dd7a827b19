"""Model YAML files: reading them, finding them by name, and the scale letters in their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.paths import is_shipped, zoo_dir

LONGEST_NAME = 200  # of a file; most file systems end at 255 bytes


def is_overlay(d: Any) -> bool:
    """Whether a loaded YAML is an overlay rather than a plain model."""
    return isinstance(d, dict) and "base" in d


def read_yaml(path: Path) -> Any:
    """Load a YAML file.

    Raises:
        YoloAttnError: It cannot be read or is not YAML; names file, line and column.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8", errors="ignore"))
    except OSError as error:
        raise YoloAttnError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise YoloAttnError(syntax_error(path, error)) from None


def syntax_error(path: Any, error: yaml.YAMLError) -> str:
    """One line for a YAML syntax error."""
    mark = getattr(error, "problem_mark", None)
    where = f" line {mark.line + 1} column {mark.column + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return (
        f"{path}{where}: not valid YAML ({problem}); check quotes, brackets, colons and "
        "indentation there"
    )


def scale_of(name: Any) -> str:
    """Scale letter of a model's name, by Ultralytics' rule; "" if there is none."""
    from ultralytics.nn.tasks import guess_model_scale

    return guess_model_scale(name) or ""


def without_scale(name: str) -> str:
    """``yolov8n-nonlocal.yaml -> yolov8-nonlocal.yaml``; folders are left alone."""
    path = Path(name)
    return str(path.with_name(re.sub(r"(\d+)([nslmx])(.+)?$", r"\1\3", path.name)))


def refuse_lost_scale(name: Any, file: Path, d: dict[str, Any], where: str = "") -> None:
    """Refuse a scale letter that leads to a model of the zoo without scales (``yolov7n.yaml``).

    Args:
        name: What was asked for.
        file: The file that it led to.
        d: The plain model of that file.
        where: What the message begins with.

    Raises:
        YoloAttnError: The letter would be ignored.
    """
    if is_shipped(file) and Path(name).stem != file.stem and not d.get("scales"):
        raise YoloAttnError(
            f"{where}{name}: does not exist, and {file.name} has no scale letters"
            f"{did_you_mean(Path(name).name, model_names())}"
        )


def find_model_yaml(name: str, beside: Path) -> Path | None:
    """Find a model YAML beside another file, in the zoo, or in Ultralytics; None if nowhere."""
    from ultralytics.utils import ROOT

    for candidate in (name, without_scale(name)):
        if (
            max(map(len, [*Path(candidate).parts, ""])) > LONGEST_NAME
        ):  # the file system would raise
            continue
        for folder in (beside, zoo_dir(), zoo_dir() / "bases"):
            if (folder / candidate).is_file():
                return folder / candidate
        if Path(candidate).name == candidate:
            found = sorted((Path(ROOT) / "cfg" / "models").rglob(candidate))
            if found:
                return found[0]
    return None


def model_names() -> list[str]:
    """File names of all model YAMLs of the zoo and of Ultralytics, sorted."""
    from ultralytics.utils import ROOT

    folders = [zoo_dir(), Path(ROOT) / "cfg" / "models"]
    return sorted({p.name for folder in folders for p in folder.rglob("*.yaml")})
