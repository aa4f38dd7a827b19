"""The plain YAML that a translation is written as; it loads in `yolo` with this plugin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from yolo_attn.errors import YoloAttnError
from yolo_attn.migrate.rows import Translation, row_text

NOT_WRITTEN = ("backbone", "head", "scale", "yaml_file")


def plain_yaml(translation: Translation, source: str) -> str:
    """The translated model, one line a row; a changed row says what it was.

    Args:
        translation: Without refusals.
        source: Name of the file that it comes from.
    """
    model = translation.model
    last = len(model["backbone"]) + len(model["head"]) - 1
    # Only rows right before the head can have gone (those of auxiliary levels).
    before = {min(r.row, last): r.before for r in translation.rows if r.before != r.after}
    lines = [
        f"# {source}, translated by `yolo-attn migrate`; what a row was stands behind it.",
        *(entry(k, v) for k, v in model.items() if k not in NOT_WRITTEN),
        "",
    ]
    i = 0
    for section in ("backbone", "head"):
        lines.append(f"{section}: # [from, repeats, module, args]")
        for row in model[section]:
            was = f", was {before[i]}" if i in before else ""
            lines.append(f"  - {row_text(row)} # {i}{was}")
            i += 1
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def entry(key: str, value: Any) -> str:
    """One top-level key; what is inside it on one line each."""
    style = None if isinstance(value, (Mapping, list)) else False
    return str(yaml.safe_dump({key: value}, sort_keys=False, default_flow_style=style)).rstrip()


def write(text: str, out: Path, overwrite: bool) -> None:
    """Write a file whole or not at all.

    Raises:
        YoloAttnError: It exists and `overwrite` is false, or cannot be written.
    """
    if out.exists() and not overwrite:
        raise YoloAttnError(f"{out} exists already (--overwrite replaces it)")
    half = out.with_name(f".{out.name}.part")
    try:
        half.write_text(text, encoding="utf-8")
        half.replace(out)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise YoloAttnError(f"{out}: cannot be written ({error.strerror})") from None
