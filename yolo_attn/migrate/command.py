"""``yolo-attn migrate``: what a fork's YAML or checkpoint means here, row by row."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import typer

from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.migrate.attention import count, options_of
from yolo_attn.migrate.designs import FAMILIES, check_designs
from yolo_attn.migrate.heads import ANCHOR_FREE
from yolo_attn.migrate.names import LATER_NAMES
from yolo_attn.migrate.rows import Translation, translate


def migrate_command(
    file: Optional[str] = typer.Argument(None, help="A fork's model YAML or checkpoint (.pt)."),
    out: Optional[Path] = typer.Option(
        None, "--out", "-o", help="Write the result to this file; without it nothing is written."
    ),
    design: List[str] = typer.Option(
        [], "--design", help="NAME=DESIGN where one name has several (CBAM=ultralytics); again."
    ),
    scale: Optional[str] = typer.Option(
        None, help="Scale at which rows are counted; by default that of the file's name."
    ),
    overlay: bool = typer.Option(
        False, "--overlay", help="As an overlay of a known base, if it is close to one."
    ),
    designs: bool = typer.Option(False, "--designs", help="List the designs of each name."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace OUT if it exists."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for programs."),
) -> None:
    """Translate a fork's model so that it means here what it meant there; exit 1: rows refused.

    Example: yolo-attn migrate yolov8n-cbam.yaml --design CBAM=ultralytics -o mine.yaml
    """
    if designs:
        _print_designs(as_json)
        return
    if file is None:
        print("yolo-attn: error: migrate needs FILE (or --designs)", file=sys.stderr)
        raise typer.Exit(2)
    is_checkpoint = Path(file).suffix == ".pt"
    chosen = chosen_designs(design, of_rows=not is_checkpoint)
    if is_checkpoint:
        from yolo_attn.migrate.checkpoints import migrate_checkpoint

        if scale or overlay:
            print("yolo-attn: error: --scale and --overlay are for a YAML", file=sys.stderr)
            raise typer.Exit(2)
        result = migrate_checkpoint(file, out, chosen, overwrite)
    else:
        model, source = read_model(file, scale)
        result = translate(model, chosen, scale or model.get("scale"))
    _print(result, as_json)
    if result.refused:
        raise typer.Exit(1)
    if not is_checkpoint:
        _write(result, source.name, out, overlay, overwrite, as_json)
    elif out is not None:
        print(f"wrote {out}", file=sys.stderr if as_json else sys.stdout)


def chosen_designs(given: List[str], of_rows: bool = True) -> Dict[str, str]:
    """``["CBAM=paper"] -> {"CBAM": "paper"}``.

    Args:
        given: What was typed.
        of_rows: Whether they must be designs of rows; those of tensors are more, and checked there.

    Raises:
        typer.Exit: One is no NAME=DESIGN, or unknown (wrong usage: exit code 2).
    """
    chosen = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not (equals and name and value):
            print(
                f"yolo-attn: error: --design {item!r} (accepted: NAME=DESIGN, "
                "`yolo-attn migrate --designs` lists them)",
                file=sys.stderr,
            )
            raise typer.Exit(2)
        chosen[name] = value
    try:
        check_designs(chosen if of_rows else {})
    except YoloAttnError as error:
        print(f"yolo-attn: error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    return chosen


def read_model(name: str, scale: Optional[str] = None) -> tuple[dict[str, Any], Path]:
    """A fork's model YAML, with the scale that its name asks for.

    Args:
        name: The file; ``yolov8n-mine.yaml`` also finds ``yolov8-mine.yaml``.
        scale: The scale that the user asks for, if any.

    Returns:
        The dictionary, with the key ``scale`` where its table has the letter; the file.

    Raises:
        YoloAttnError: It cannot be read, or is no plain model.
    """
    from yolo_attn.overlay.model_checks import check_size
    from yolo_attn.overlay.model_files import is_overlay, read_yaml, scale_of, without_scale

    path = next((p for p in (Path(name), Path(without_scale(name))) if p.is_file()), None)
    if path is None:
        near = did_you_mean(Path(name).name, _neighbours(Path(name)))
        raise YoloAttnError(f"{name}: no such file{near}")
    model = read_yaml(path)
    if not isinstance(model, dict):
        raise YoloAttnError(f"{path}: not a model YAML (accepted: backbone and head lists)")
    check_size(model, str(path))
    if is_overlay(model):
        raise YoloAttnError(f"{path}: an overlay of {model['base']} is in this project's own words")
    letter = scale or scale_of(Path(name).name)
    if letter in (model.get("scales") or {}):
        model["scale"] = letter
    return {**model, "yaml_file": str(path)}, path


def _neighbours(path: Path) -> list[str]:
    folder = path.parent if path.parent.is_dir() else Path()
    return [p.name for p in folder.glob("*.y*ml")]


def _print(result: Translation, as_json: bool) -> None:
    if as_json:
        print(json.dumps(as_dict(result), indent=2))
        return
    for row in result.rows:
        print(
            f"row {row.row}: {row.before} -> {row.after} ({row.parameters:,} parameters): {row.why}"
        )
    for refusal in result.refused:
        where = "model" if refusal.row is None else f"row {refusal.row}"
        print(f"{where}: refused: {refusal.why}", file=sys.stderr)
    if result.parameters is not None:
        at = f" at scale {result.scale}" if result.scale else ""
        print(f"{result.parameters:,} parameters{at}")


def as_dict(result: Translation) -> dict[str, Any]:
    """What ``--json`` prints."""
    keys = ("row", "before", "after", "block", "options", "parameters", "why")
    return {
        "rows": [{k: getattr(row, k) for k in keys} for row in result.rows],
        "refused": [{"row": r.row, "why": r.why} for r in result.refused],
        "parameters": result.parameters,
    }


def _write(
    result: Translation,
    source: str,
    out: Optional[Path],
    overlay: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    from yolo_attn.migrate.overlay_form import as_overlay
    from yolo_attn.migrate.written import plain_yaml, write

    text: Optional[str] = None
    if overlay:
        text, why_not = as_overlay(result, source)
        if text is None:
            print(f"no overlay: {why_not}", file=sys.stderr)
        elif out is None and not as_json:
            print(f"\n{text}", end="")
    elif out is not None:
        text = plain_yaml(result, source)
    if out is not None and text is not None:
        write(text, out, overwrite)
        print(f"wrote {out}", file=sys.stderr if as_json else sys.stdout)


def _print_designs(as_json: bool) -> None:
    found = [
        {
            "names": list(family.names),
            "design": design.name,
            "default": family.sure and design is family.designs[0],
            "block": design.block,
            "options": options_of(design, {}, 256),
            "parameters_at_256": _at_256(design),
            "what": design.what,
        }
        for family in FAMILIES
        for design in family.designs
    ]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print("\n".join(designs_table(found)))


def _at_256(design: Any) -> int:
    from yolo_attn.registry import block_info

    inputs = [256, 256] if block_info(design.block).takes_list else 256
    return count(design.block, inputs, options_of(design, {}, 256))


def designs_table(found: List[Dict[str, Any]]) -> List[str]:
    """Lines of a table, one a design; the parameters are those at C = 256."""
    lines = ["name: design (* taken without --design): our block, parameters at C = 256, what"]
    for one in found:
        star = "*" if one["default"] else ""
        lines.append(
            f"{', '.join(one['names'])}: {one['design']}{star}: {one['block']} "
            f"{json.dumps(one['options'])}, {one['parameters_at_256']:,}, {one['what']}"
        )
    lines.append(
        "Not translated yet (no block here, or SPD before or after its convolution, PConv partial "
        "or pinwheel ...): " + ", ".join(sorted(LATER_NAMES)) + "."
    )
    lines.append(f"Heads (IDetect, DetectX, Detect with anchors): {ANCHOR_FREE}.")
    return lines
