"""``yolo-attn explain``: parses, asks, draws, and says in a line what has nothing to show."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from yolo_attn.errors import YoloAttnError

AUTO = "auto"


def explain_command(
    model: str = typer.Argument(..., help="Checkpoint, or a model YAML (random weights)."),
    images: List[Path] = typer.Argument(None, metavar="IMAGE...", help="Images or folders."),
    query: List[str] = typer.Option(
        [], metavar="X,Y", help="Point in image pixels; give it again for more."
    ),
    queries: str = typer.Option(
        AUTO, help="auto: the centres of the smallest detections, unless --query is given."
    ),
    most: int = typer.Option(3, min=1, help="Number of such centres an image."),
    conf: float = typer.Option(0.1, min=0.0, max=1.0, help="Lowest confidence of detections."),
    layer: Optional[str] = typer.Option(None, help="Only this block: its row, or its class."),
    imgsz: Optional[int] = typer.Option(None, min=32, help="Input size; by default of training."),
    out: Optional[Path] = typer.Option(
        None, help="Folder to write to; it is made. Required, except with --use."
    ),
    use: bool = typer.Option(
        False, "--use", help="Instead: how much does each block change what it reads?"
    ),
    independence: bool = typer.Option(
        False, "--independence", help="Instead: do the attention maps depend on the query?"
    ),
    receptive_field: bool = typer.Option(
        False, "--receptive-field", help="Instead: the effective field of each detection level."
    ),
    baseline: Optional[str] = typer.Option(
        None, help="With --receptive-field: a model to put beside it."
    ),
    claim: bool = typer.Option(
        False,
        "--claim",
        help="Instead: does a Non-local block enlarge the field of the base MODEL (YAML) at P3, "
        "P4, P5? Writes OUT/receptive-field.md.",
    ),
    trained: List[str] = typer.Option(
        [], help="With --claim: a checkpoint to measure as well; give it again for more."
    ),
    seeds: int = typer.Option(3, min=1, help="With --claim: number of random networks."),
    cam: bool = typer.Option(
        False, "--cam", help="Draw class-activation maps too (needs the grad-cam package)."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for programs."),
) -> None:
    """Where the blocks of a model look in an image, and how far the network sees.

    Example: yolo-attn explain best.pt test.png --query 120,80 --out looks
    """
    modes = [
        name
        for name, on in (
            ("--use", use),
            ("--independence", independence),
            ("--receptive-field", receptive_field),
            ("--claim", claim),
        )
        if on
    ]
    if len(modes) > 1:
        raise YoloAttnError(f"{' and '.join(modes)}: choose one of them")
    mode = modes[0] if modes else ""
    _refuse("--baseline", baseline, mode, "--receptive-field")
    _refuse("--trained", trained, mode, "--claim")
    for option, value in (("--query", query), ("--cam", cam)):
        if value and mode:
            raise YoloAttnError(f"{option} does not go with {mode}")
    if layer is not None and mode in ("--use", "--receptive-field", "--claim"):
        raise YoloAttnError(f"--layer does not go with {mode}")
    if queries != AUTO:
        raise YoloAttnError(f"--queries {queries!r}: accepted is 'auto' (or --query X,Y)")
    points = [_point(text) for text in query]
    if not images and mode not in ("--receptive-field", "--claim"):
        raise YoloAttnError("give at least one image or folder of images")

    from yolo_attn.explain.hooks import find_images

    files = find_images(images or [])
    if out is not None:
        _make_folder(out)
    elif not use:
        raise typer.BadParameter("required, except with --use", param_hint="'--out'")
    # Ultralytics logs to stdout, which is for the answer.
    with redirect_stdout(sys.stderr), _progress() as step:
        if out is None or mode == "--use":
            answer = _use(model, files, imgsz, out, step)
        elif mode == "--independence":
            answer = _independence(model, files, layer, imgsz, out, step)
        elif mode == "--receptive-field":
            answer = _receptive_field(model, baseline, files, imgsz, out, step)
        elif mode == "--claim":
            answer = _claim(model, trained, files, imgsz, seeds, out, step)
        else:
            answer = _looks(model, files, points, most, conf, layer, imgsz, cam, out, step)
    if as_json:
        print(json.dumps(answer.pop("json", answer), indent=2))
        return
    console = Console() if sys.stdout.isatty() else Console(width=200)
    for table in answer.get("tables", []):
        console.print(table)
    for line in answer.get("lines", []):
        print(line)


def _refuse(option: str, value: Any, mode: str, needs: str) -> None:
    if value and mode != needs:
        raise YoloAttnError(f"{option} goes with {needs}")


def _point(text: str) -> List[float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise YoloAttnError(
            f"--query {text!r}: expected X,Y in image pixels, e.g. 120,80"
        ) from None
    # The middle of the pixel.
    return [x + 0.5, y + 0.5] if x == int(x) and y == int(y) else [x, y]


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise YoloAttnError(f"--out {out}: cannot be made ({error}); choose another") from error


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True)
    # Without a terminal, a bar would leave an empty line in front of an error.
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("looking", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _looks(
    model: str,
    files: List[Path],
    points: List[List[float]],
    most: int,
    conf: float,
    layer: Optional[str],
    imgsz: Optional[int],
    cam: bool,
    out: Path,
    step: Callable[[int, int], None],
) -> Dict[str, Any]:
    from yolo_attn.explain import hooks, query_maps
    from yolo_attn.explain.pictures import draw_gates, draw_overlay, draw_query

    subject = hooks.load(model)
    layers = hooks.pick(subject.layers, layer)
    lines: List[str] = []
    written: List[str] = []
    silent: Dict[str, str] = {}
    for done, (file, stem) in enumerate(zip(files, _stems(files)), 1):
        image = hooks.read_image(file)
        boxes = None
        asked: Any = points
        if not points:
            side = imgsz or subject.imgsz
            asked, boxes = query_maps.smallest_detections(model, image, side, most, conf)
            if not len(asked):
                lines.append(f"{file}: no detection above {conf:g}; the middle is asked instead")
                asked = [[image.shape[1] / 2, image.shape[0] / 2]]
        result = query_maps.explain_image(subject, image, asked, layers, imgsz)
        silent.update(result.silent)
        values = out / f"{stem}.npz"
        query_maps.save_looks(values, result)
        written.append(str(values))
        title = f"{Path(model).name}: {file.name}"
        for number in range(len(result.queries)):
            picture = out / f"{stem}-query{number + 1}.png"
            if draw_query(picture, result, image, number, title, boxes):
                written.append(str(picture))
        picture = out / f"{stem}-gates.png"
        if draw_gates(picture, result, image, title):
            written.append(str(picture))
        if cam:
            from yolo_attn.explain.cam import class_activation

            picture = out / f"{stem}-cam.png"
            draw_overlay(picture, image, class_activation(subject, image, imgsz), f"{title}, CAM")
            written.append(str(picture))
        step(done, len(files))
    lines += [f"{name}: {reason}" for name, reason in silent.items()]
    lines += [f"wrote {name}" for name in written]
    return {"lines": lines, "json": {"files": written, "silent": silent}}


def _stems(files: List[Path]) -> List[str]:
    """A name for each file; images of one name in several folders stay apart."""
    stems: List[str] = []
    for file in files:
        stem, n = file.stem, 2
        while stem in stems:
            stem, n = f"{file.stem}-{n}", n + 1
        stems.append(stem)
    return stems


def _use(
    model: str,
    files: List[Path],
    imgsz: Optional[int],
    out: Optional[Path],
    step: Callable[[int, int], None],
) -> Dict[str, Any]:
    from yolo_attn.explain import hooks, use
    from yolo_attn.explain.use_table import table

    blocks, count = use.measure(hooks.load(model), files, imgsz, step=step)
    if not blocks:
        raise YoloAttnError(f"{model}: none of its rows is a registered block (`yolo-attn blocks`)")
    rows = [{k: v for k, v in b.as_dict().items() if k != "where"} for b in blocks]
    lines = table(blocks, f"{count} image{'s' if count != 1 else ''}")
    if out is not None:
        (out / "use.json").write_text(json.dumps({"blocks": rows}, indent=2), encoding="utf-8")
        lines.append(f"wrote {out / 'use.json'}")
    return {"lines": lines, "json": {"blocks": rows}}


def _independence(
    model: str,
    files: List[Path],
    layer: Optional[str],
    imgsz: Optional[int],
    out: Path,
    step: Callable[[int, int], None],
) -> Dict[str, Any]:
    from yolo_attn.explain import hooks
    from yolo_attn.explain.independence import query_independence
    from yolo_attn.explain.pictures import draw_independence

    subject = hooks.load(model)
    found, silent = query_independence(
        subject, files, hooks.pick(subject.layers, layer), imgsz, step
    )
    title = f"{Path(model).name}: do the attention maps depend on the query? {len(files)} images"
    lines = [f"{name}: {reason}" for name, reason in silent.items()]
    table = Table("block", "map", "queries", "1 - cos", "std over images", "verdict", title=title)
    for f in found:
        spread = f"{f.distances.std():.4f}"
        grid = f"{f.grid[0]} x {f.grid[1]}"
        table.add_row(
            escape(f.layer), grid, str(f.queries), f"{f.mean:.4f}", spread, escape(f.verdict)
        )
    answer = {"blocks": [f.as_dict() for f in found], "silent": silent}
    (out / "independence.json").write_text(json.dumps(answer, indent=2), encoding="utf-8")
    if found:
        draw_independence(out / "independence.png", found, title)
        lines.append(f"wrote {out / 'independence.png'} and independence.json")
    return {"tables": [table] if found else [], "lines": lines, "json": answer}


def _receptive_field(
    model: str,
    baseline: Optional[str],
    files: List[Path],
    imgsz: Optional[int],
    out: Path,
    step: Callable[[int, int], None],
) -> Dict[str, Any]:
    from yolo_attn.explain import hooks
    from yolo_attn.explain.pictures import draw_fields
    from yolo_attn.explain.receptive_field import level_fields, square_inputs

    names = [name for name in (baseline, model) if name]
    subjects = [hooks.load(name) for name in names]
    side = _multiple(imgsz or subjects[-1].imgsz, max(s.stride for s in subjects))
    inputs = square_inputs([hooks.read_image(f) for f in files], side)
    total, done = len(names) * len(inputs), iter(range(1, len(names) * len(inputs) + 1))
    columns = {}
    for role, subject in zip(["baseline", "model"][-len(names) :], subjects):
        columns[f"{role} {Path(subject.name).stem}"] = level_fields(
            subject, inputs, lambda: step(next(done), total)
        )
    what = f"{len(files)} images" if files else f"{len(inputs)} images of noise"
    title = f"effective receptive field of the detection levels, {side} px, {what}"
    table = Table("model", "level", "map", "r50", "r90", "r99", "reached", title=title)
    for name, fields in columns.items():
        for f in fields:
            values = [f"{r:.0f}" for r in f.radii.values()]
            grid = f"{f.grid[0]} x {f.grid[1]}"
            table.add_row(escape(name), f.name, grid, *values, f"{f.reached:.0%}")
    picture = out / "receptive-field.png"
    draw_fields(picture, columns, title)
    answer = {name: [f.as_dict() for f in fields] for name, fields in columns.items()}
    (out / "receptive-field.json").write_text(json.dumps(answer, indent=2), encoding="utf-8")
    lines = ["radii in input pixels that hold 50, 90 and 99 % of the gradient"]
    lines.append(f"wrote {picture} and receptive-field.json")
    return {"tables": [table], "lines": lines, "json": answer}


def _multiple(side: int, stride: int) -> int:
    return max(-(-side // stride) * stride, stride)


def _claim(
    base: str,
    trained: List[str],
    files: List[Path],
    imgsz: Optional[int],
    seeds: int,
    out: Path,
    step: Callable[[int, int], None],
) -> Dict[str, Any]:
    from yolo_attn.explain import claim, hooks

    if not base.endswith((".yaml", ".yml")):
        raise YoloAttnError(
            f"--claim {base}: give the base as YAML, e.g. yolov8n.yaml, and checkpoints with "
            "--trained"
        )
    networks = [hooks.load(name) for name in trained]
    images = [hooks.read_image(file) for file in files]
    sides = (_multiple(imgsz, 32),) if imgsz else claim.SIDES
    total = len(claim.LEVELS) * len(sides) * seeds + len(networks) * len(sides)
    done = iter(range(1, total + 1))

    def tick() -> None:
        step(next(done), total)

    rows = claim.check_untrained(base, images, sides, seeds, tick)
    for network in networks:
        rows += claim.check_trained(network, images, sides, tick)
    asked = "".join(f" --trained {Path(name).name}" for name in trained)
    asked += f" --imgsz {imgsz}" if imgsz else ""
    asked += f" --seeds {seeds}" if seeds != 3 else ""
    command = f"yolo-attn explain {base} {'IMAGES ' if files else ''}--claim{asked} --out docs"
    what = f"{len(files)} images" if files else "8 images of uniform noise"
    text = claim.page(rows, command, f"{what}, {seeds} random networks for each row")
    page = out / "receptive-field.md"
    page.write_text(text, encoding="utf-8")
    lines = [*claim.answers(rows), f"wrote {page}"]
    return {"lines": lines, "json": [row.as_dict() for row in rows]}
