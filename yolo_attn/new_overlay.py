"""``yolo-attn new``: write an overlay that puts a block into a base, and say how it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml, run
from yolo_attn.registry import BlockInfo, block_info
from yolo_attn.zoo import check

START = "identity_start: true # starts as its base does"


@dataclass(frozen=True)
class Written:
    """An overlay on disk.

    Attributes:
        path: The file; it has passed :func:`~yolo_attn.zoo.check`.
        note: One line on how the model starts; empty where the block is the identity then.
    """

    path: Path
    note: str


def new_overlay(
    base: str,
    block: str,
    at: list[str],
    options: dict[str, Any],
    folder: Path,
    force: bool = False,
    identity_start: bool = True,
) -> Written:
    """Write an overlay that puts a block into a base.

    Args:
        base: A model YAML, e.g. ``yolo11.yaml``.
        block: A block's name or alias.
        at: Taps or layer indices; several make one multi-input block, or one insert each for a
            block with one input.
        options: The block's options.
        folder: Where to write it.
        force: Whether an existing file may be replaced.
        identity_start: Whether a block that is not the identity at the start is made to start so,
            where it can.

    Returns:
        The file and what to say of it.

    Raises:
        YoloAttnError: Base, block, tap or option is at fault, or the file exists.
    """
    info = block_info(block)
    places: list[Any] = [int(a) if a.lstrip("-").isdigit() else a for a in at]
    name = base if base.endswith((".yaml", ".yml")) else f"{base}.yaml"
    stem = Path(name).stem
    path = folder / f"{stem}-{info.name.lower()}.yaml"
    if path.exists() and not force:
        raise YoloAttnError(
            f"{path} exists already (choose another folder with --out, or --force to replace it)"
        )
    args = yaml.safe_dump(
        [options] if options else [], default_flow_style=True, width=10_000
    ).strip()
    if info.takes_list:
        rows = [f"[{', '.join(map(str, places))}]"]
    else:
        rows = [str(p) for p in places]
    head = [
        f"# {stem} with {info.name} at {', '.join(map(str, places))}.",
        f"# {info.paper}." if info.paper else f"# {info.summary}",
        f"base: {name}",
    ]
    inserts = [
        "insert: # [after, repeats, module, args]",
        *(f"  - [{row}, 1, {info.name}, {args}]" for row in rows),
        "",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    draft = _Draft(folder / f".{path.name}.draft.yaml", path.name)
    try:
        draft.write([*head, *inserts])
        note = ""
        if "identity_start" not in options and not draft.starts_as_its_base(info):
            note = _start(draft, info, head, inserts, identity_start)
        draft.file.replace(path)
    finally:
        draft.file.unlink(missing_ok=True)
    return Written(path, note)


class _Draft:
    """The file under a hidden name until it has passed every check."""

    def __init__(self, file: Path, name: str):
        self.file, self.name = file, name

    def put(self, lines: list[str]) -> None:
        """Write it as it is."""
        self.file.write_text("\n".join(lines), encoding="utf-8")

    def write(self, lines: list[str]) -> None:
        """Write and check it; errors name the file that it will be."""
        self.put(lines)
        try:
            check(str(self.file))
        except YoloAttnError as error:
            raise YoloAttnError(str(error).replace(str(self.file), self.name)) from None

    def starts_as_its_base(self, info: BlockInfo) -> bool:
        """Whether every row of the block is the identity at the start, with its options."""
        layers, _ = run(load_model_yaml(str(self.file)))
        return all(
            getattr(module, "starts_as_identity", info.identity_at_start)
            for module in layers.modules()
            if type(module) is info.cls
        )


def _start(
    draft: _Draft, info: BlockInfo, head: list[str], inserts: list[str], wanted: bool
) -> str:
    """Add `identity_start` to the draft where that is wanted and possible; say which it is."""
    what = f"{info.name} is not the identity at the start"
    if info.layer or not wanted:
        return f"{what}, so the model starts away from its base's predictions"
    draft.put([*head, START, *inserts])
    try:
        run(load_model_yaml(str(draft.file)))  # one scale: no scale decides what is refused here
    except YoloAttnError as error:
        draft.put([*head, *inserts])
        reason = str(error).rsplit(f"{info.name}: ", 1)[-1]
        return f"{what} and cannot be made to start so ({reason})"
    return (
        f"{what}, so the file says identity_start: true, which starts from its base's predictions "
        "(--no-identity-start leaves it out)"
    )
