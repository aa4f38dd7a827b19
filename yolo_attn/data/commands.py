"""``yolo-attn data``: make the synthetic set, count what is in a set."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress

from yolo_attn.errors import YoloAttnError

data_app = typer.Typer(
    help="Make the synthetic small-object sets; count what is in a dataset.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

JSON = typer.Option(False, "--json", help="Print JSON for programs.")
Number = TypeVar("Number", int, float)


@data_app.command("make")
def make_command(
    dst: Path = typer.Argument(..., help="Folder to write to."),
    mode: str = typer.Option(
        "shapes",
        help="shapes: every shape is an object; context: a far sign says which are; plain: the "
        "same pictures, the sign does not matter.",
    ),
    image_size: int = typer.Option(320, help="Side of the images in pixels."),
    train: int = typer.Option(160, help="Training images."),
    val: int = typer.Option(40, help="Validation images."),
    size: str = typer.Option("6,24", help="Smallest and largest object, square root of area, px."),
    distribution: str = typer.Option("log-uniform", help="Of the sizes: log-uniform or uniform."),
    objects: str = typer.Option("8,24", help="Fewest and most objects in an image."),
    clutter: float = typer.Option(0.5, help="Distractors for each object, on average."),
    classes: int = typer.Option(5, help="Number of classes, 1 to 6."),
    seed: int = typer.Option(0, help="Another seed, another set; the same seed, the same bytes."),
    distance: Optional[float] = typer.Option(
        None, help="context, plain: least gap between sign and shapes; default a quarter image."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace DST if we wrote it."),
    as_json: bool = JSON,
) -> None:
    """Draw a synthetic small-object set in YOLO layout.

    Example: yolo-attn data make shapes4 --mode context --size 4,16 --objects 10,40
    """
    from yolo_attn.data.synthetic import make_smallshapes

    with Progress(console=Console(stderr=True), transient=True) as bar:
        bar.add_task("drawing", total=None)
        root = make_smallshapes(
            dst,
            image_size=image_size,
            train_images=train,
            val_images=val,
            object_size=_pair("--size", size, float),
            objects=_pair("--objects", objects, int),
            clutter=clutter,
            classes=classes,
            seed=seed,
            size_distribution=distribution,
            mode=mode,
            distance=distance,
            overwrite=overwrite,
        )
    answer: dict[str, Any] = {"dst": str(root), "data_yaml": str(root / "data.yaml"), "mode": mode}
    answer.update(train_images=train, val_images=val)
    if as_json:
        print(json.dumps(answer, indent=2))
    else:
        print(f"{answer['data_yaml']}: {train} training and {val} validation images, mode {mode}")


def _pair(option: str, text: str, kind: Callable[[str], Number]) -> Tuple[Number, Number]:
    try:
        low, high = (kind(part) for part in text.split(","))
    except ValueError:
        raise YoloAttnError(f"{option} {text!r}: expected two numbers, as in 6,24") from None
    return low, high


@data_app.command("stats")
def stats_command(
    data: str = typer.Argument(..., help="Any Ultralytics dataset YAML."),
    split: List[str] = typer.Option([], help="Only this split; give it again for more."),
    png: Optional[Path] = typer.Option(None, help="Draw the figures into this PNG."),
    as_json: bool = JSON,
) -> None:
    """Count objects by size bin and class, boxes per image, ignored area.

    Example: yolo-attn data stats smallshapes.yaml --png smallshapes.png
    """
    from yolo_attn.data.stats import dataset_stats, stats_tables
    from yolo_attn.data.stats_plot import check_png, draw_stats

    if png is not None:
        check_png(png)
    bar = Progress(console=Console(stderr=True), transient=True)
    # Ultralytics logs to stdout, which is for the answer.
    with contextlib.redirect_stdout(sys.stderr), bar:
        task = bar.add_task("reading", total=None)
        stats = dataset_stats(
            data,
            splits=split or None,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if png is not None:
        draw_stats(stats, png)
    if as_json:
        print(json.dumps(stats.as_dict(), indent=2))
        return
    # Piped output is for programs and logs: never cut a column there.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    for part in stats_tables(stats):
        console.print(part)
    if png is not None:
        print(f"wrote {png}")
