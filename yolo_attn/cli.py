"""``yolo-attn``: the command line. It parses, calls, and prints; the work is done elsewhere."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, Callable, List, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, track
from rich.table import Table

from yolo_attn.ablation.command import ablate_command, report_command, studies_command
from yolo_attn.data.commands import data_app
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.command import evaluate_command
from yolo_attn.explain.command import explain_command
from yolo_attn.migrate.command import migrate_command

app = typer.Typer(
    name="yolo-attn",
    help="Attention and context blocks for stock Ultralytics YOLO.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
convert_app = typer.Typer(
    help="Convert a dataset to YOLO layout; what is dropped is printed, with the reason.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(convert_app, name="convert")
app.command("evaluate")(evaluate_command)
app.command("explain")(explain_command)
app.command("migrate")(migrate_command)
app.command("ablate")(ablate_command)
app.command("report")(report_command)
app.command("studies")(studies_command)
app.add_typer(data_app, name="data")

JSON = typer.Option(False, "--json", help="Print JSON for programs.")


def main() -> None:
    """Run the command line; exit code 0 done, 1 the input is at fault, 2 wrong usage or refused."""
    try:
        app()
    except YoloAttnError as error:
        print(f"yolo-attn: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _console() -> Console:
    # Piped output is for programs and logs: never cut a column there.
    return Console() if sys.stdout.isatty() else Console(width=200)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


@app.command()
def version() -> None:
    """Print the versions that a bug report needs.

    Example: yolo-attn version
    """
    import platform

    import torch
    import ultralytics

    import yolo_attn

    print(
        f"yolo_attn {yolo_attn.__version__}, ultralytics {ultralytics.__version__}, torch "
        f"{torch.__version__}, "
        f"Python {platform.python_version()}"
    )


@app.command()
def blocks(
    pattern: str = typer.Argument("*", help="Shell pattern; one exact name prints its card."),
    layers: bool = typer.Option(
        False, "--layers", help="Convolutions, samplers, stages and pyramids of the field instead."
    ),
    as_json: bool = JSON,
    markdown: Optional[Path] = typer.Option(
        None, help="Write the cards of all these to this file (docs/blocks.md, docs/layers.md)."
    ),
) -> None:
    """List the blocks; with one exact name, print its card.

    Example: yolo-attn blocks "*context*"
    """
    from yolo_attn import cards
    from yolo_attn.registry import (
        block_info,
        find_block,
        in_this_project,
        known_names,
        list_blocks,
        list_layers,
    )

    exact = find_block(pattern)
    names = [exact.name] if exact else (list_layers if layers else list_blocks)(pattern)
    meant = "" if names else in_this_project(pattern)
    if meant:
        from yolo_attn.migrate.names import field_name

        found = field_name(pattern)
        names = list(found.blocks) if found else []
        said = f"{pattern} is no name of ours; {meant}; `yolo-attn migrate FILE` translates YAMLs"
        if not names:
            raise YoloAttnError(said)
        print(said, file=sys.stderr if as_json else sys.stdout)
    if not names:
        from yolo_attn.errors import did_you_mean

        hint = did_you_mean(pattern, known_names())
        raise YoloAttnError(
            f"no block matches {pattern!r}{hint or ' (`yolo-attn blocks` lists them all)'}"
        )
    infos = [block_info(n) for n in names]
    if markdown:
        markdown.write_text(cards.page(infos, layers), encoding="utf-8")
    if as_json:
        _print_json([cards.as_dict(i) for i in infos])
    elif markdown:
        print(f"{len(infos)} cards written to {markdown}")
    elif exact or meant:
        print("\n\n".join(cards.as_text(i) for i in infos))
    else:
        table = Table("block", "inputs", "identity at start", "cost", "what it does")
        for i in infos:
            alias = f" ({', '.join(i.aliases)})" if i.aliases else ""
            start = "yes" if i.identity_at_start else "no"
            table.add_row(
                i.name + alias, cards.inputs_of(i), start, escape(i.cost), escape(i.summary)
            )
        _console().print(table)


@app.command()
def losses(
    names: Optional[List[str]] = typer.Argument(
        None, help="Only what these stand for, e.g. inner-wiou."
    ),
    plot: Optional[Path] = typer.Option(
        None, help="Draw them (or a choice) against shift and scale, into this picture."
    ),
    as_json: bool = JSON,
) -> None:
    """List what the key `loss` of a model YAML may name: formula, range, paper, defaults.

    Example: yolo-attn losses inner-ciou nwd --plot losses.png
    """
    from yolo_attn import loss_cards, loss_figure

    if plot:
        shown = tuple(names or ()) or loss_figure.DEFAULT
        loss_figure.plot(plot, shown)
        print("\n".join([*loss_figure.table(shown), f"wrote {plot}"]))
    elif names:
        found = [loss_cards.expanded(name) for name in names]
        if as_json:
            _print_json(found)
        else:
            print("\n".join(line for one in found for line in loss_cards.expanded_lines(one)))
    elif as_json:
        _print_json(loss_cards.as_dicts())
    else:
        print(loss_cards.as_text())


@app.command()
def zoo(
    pattern: str = typer.Argument("*", help="Shell pattern of config names, e.g. 'yolov8*'."),
    scale: str = typer.Option("", help="Scale letter; by default each config's smallest."),
    imgsz: int = typer.Option(640, help="Side of the image for GFLOPs and latency."),
    measure_latency: bool = typer.Option(
        False, "--latency", help="Also measure a forward pass of one image on this machine."
    ),
    as_json: bool = JSON,
) -> None:
    """List the zoo's configs: parameters, GFLOPs (attention counted), where the blocks sit.

    Example: yolo-attn zoo "yolov8*" --latency
    """
    from yolo_attn.zoo import base_names, describe, latency, select

    if imgsz < 32 or imgsz % 32:
        raise YoloAttnError(f"--imgsz {imgsz} (accepted: a multiple of 32)")
    configs = []
    progress: dict[str, Any] = {"console": Console(stderr=True), "transient": True}
    for name in track(select(pattern, scale), "measuring", **progress):
        config = describe(name, imgsz)
        if measure_latency:
            config.latency = latency(name, imgsz)
        configs.append(config)
    if as_json:
        _print_json([c.as_dict() for c in configs])
        return
    bases = set(base_names())
    for title, some in (
        ("", [c for c in configs if c.name not in bases]),
        ("bases of the zoo's own", [c for c in configs if c.name in bases]),
    ):
        if some:
            _console().print(_zoo_table(title, some, imgsz))


def _zoo_table(title: str, configs: List[Any], imgsz: int) -> Table:
    measured = ["ms"] if configs[0].latency is not None else []
    table = Table(
        "config", "parameters", f"GFLOPs at {imgsz}", *measured, "blocks", title=title or None
    )
    for c in configs:
        ms = [f"{c.latency:.1f}"] if measured else []
        where = ", ".join(f"{b['block']} after {b['after']} (row {b['row']})" for b in c.blocks)
        table.add_row(c.name, f"{c.parameters:,}", f"{c.gflops:.2f}", *ms, escape(where))
    return table


@app.command()
def check(
    cfgs: List[str] = typer.Argument(..., metavar="CFG...", help="Model YAMLs."),
    as_json: bool = JSON,
) -> None:
    """Validate model YAMLs at each of their scales; exit code 1 and one line a fault.

    Example: yolo-attn check cfg/*.yaml
    """
    from yolo_attn.zoo import check as check_config

    results: list[dict[str, Any]] = []
    for cfg in track(
        cfgs, "checking", console=Console(stderr=True), transient=True, disable=len(cfgs) < 2
    ):
        try:
            results.append({"config": cfg, "ok": True, "lines": check_config(cfg)})
        except YoloAttnError as error:
            results.append({"config": cfg, "ok": False, "lines": [str(error)]})
    if as_json:
        _print_json(results)
    else:
        for result in results:
            for line in result["lines"]:
                print(
                    line if result["ok"] else f"yolo-attn: error: {line}",
                    file=sys.stdout if result["ok"] else sys.stderr,
                )
    if not all(r["ok"] for r in results):
        raise typer.Exit(1)


@app.command()
def expand(
    cfg: str = typer.Argument(..., help="An overlay."),
    out: Optional[Path] = typer.Option(None, "--out", "-o", help="Write to this file instead."),
) -> None:
    """Print the plain Ultralytics YAML that an overlay stands for; it loads in `yolo` by itself.

    Example: yolo-attn expand yolov8-nonlocal.yaml -o yolov8-mine.yaml
    """
    from yolo_attn.overlay.dry_run import load_model_yaml
    from yolo_attn.zoo import to_yaml

    d = load_model_yaml(cfg)
    text = to_yaml(d, f"{Path(cfg).name}, expanded by `yolo-attn expand`")
    if out is None:
        print(text, end="")
    else:
        if out.exists():
            raise YoloAttnError(f"{out} exists already (choose another name)")
        out.write_text(text, encoding="utf-8")
        print(f"wrote {out}")


@app.command()
def new(
    base: str = typer.Argument(..., help="A model YAML, e.g. yolo11.yaml."),
    block: str = typer.Argument(..., help="A block, e.g. GlobalContext."),
    at: List[str] = typer.Option(..., "--at", help="Tap or layer index; give it again for more."),
    option: List[str] = typer.Option(
        [], "--set", metavar="NAME=VALUE", help="Option of the block."
    ),
    out: Path = typer.Option(Path("."), "--out", "-o", help="Folder to write to."),
    force: bool = typer.Option(False, help="Replace an existing file."),
    identity_start: bool = typer.Option(
        True,
        "--identity-start/--no-identity-start",
        help="Whether a block that is not the identity at the start is made to start so.",
    ),
) -> None:
    """Write an overlay that puts a block into a base.

    Example: yolo-attn new yolo11.yaml GlobalContext --at P5 --set fusion=both
    """
    import yaml

    from yolo_attn.new_overlay import new_overlay

    options = {}
    for item in option:
        name, equals, value = item.partition("=")
        if not equals:
            raise YoloAttnError(f"--set {item!r} (accepted: NAME=VALUE)")
        options[name] = yaml.safe_load(value)
    written = new_overlay(base, block, at, options, out, force, identity_start)
    print(f"wrote {written.path}")
    if written.note:
        print(written.note)


def _convert(convert: Callable[..., Any], as_json: bool) -> None:
    """Run a converter with a progress bar and print its report."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("converting", total=None)
        report = convert(progress=lambda done, total: bar.update(task, completed=done, total=total))
    if as_json:
        _print_json(report.as_dict())
    else:
        print("\n".join(report.lines()))


OVERWRITE = typer.Option(False, "--overwrite", help="Replace DST if this command wrote it.")


@convert_app.command("voc")
def convert_voc_command(
    src: Path = typer.Argument(..., help="Folder with XML annotations, images and splits."),
    dst: Path = typer.Argument(..., help="Folder to write to."),
    boxes: Optional[str] = typer.Option(
        None, help="Corners: inclusive (VOC devkit), one-based (SIRST) or zero-based; by layout."
    ),
    classes: Optional[str] = typer.Option(None, help="Classes in order, separated by commas."),
    difficult: bool = typer.Option(False, "--difficult", help="Label objects marked difficult."),
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON,
) -> None:
    """PASCAL VOC (also SIRST) XML to YOLO layout.

    Example: yolo-attn convert voc sirst_v1 sirst
    """
    from yolo_attn.data.voc import convert_voc

    names = classes.split(",") if classes else None
    options: dict[str, Any] = {
        "classes": names,
        "boxes": boxes,
        "difficult": difficult,
        "overwrite": overwrite,
    }
    _convert(partial(convert_voc, src, dst, **options), as_json)


@convert_app.command("coco")
def convert_coco_command(
    src: Path = typer.Argument(..., help="Folder with annotations.json and images/, or the JSON."),
    dst: Path = typer.Argument(..., help="Folder to write to."),
    images: Optional[Path] = typer.Option(None, help="Folder of the images, if not the usual one."),
    split: Optional[str] = typer.Option(
        None, help="Splits that one JSON serves for; by default train,val."
    ),
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON,
) -> None:
    """COCO JSON to YOLO layout; crowd flags and true areas are kept beside it.

    Example: yolo-attn convert coco coco128 coco128-yolo
    """
    from yolo_attn.data.coco import convert_coco

    options: dict[str, Any] = {"images": images, "split": split, "overwrite": overwrite}
    _convert(partial(convert_coco, src, dst, **options), as_json)


@convert_app.command("visdrone")
def convert_visdrone_command(
    src: Path = typer.Argument(..., help="Folder or zip with VisDrone2019-DET-train, -val ..."),
    dst: Path = typer.Argument(..., help="Folder to write to."),
    split: Optional[str] = typer.Option(
        None, help="train, val or test, for one folder whose name does not say it."
    ),
    grey_ignored: bool = typer.Option(
        False, "--grey-ignored", help="Paint ignored regions grey in training images."
    ),
    overwrite: bool = OVERWRITE,
    as_json: bool = JSON,
) -> None:
    """VisDrone-DET to YOLO layout; ignored regions and score-0 boxes are kept beside it.

    Example: yolo-attn convert visdrone ~/Downloads/VisDrone VisDrone
    """
    from yolo_attn.data.visdrone import convert_visdrone

    options: dict[str, Any] = {"split": split, "grey_ignored": grey_ignored, "overwrite": overwrite}
    _convert(partial(convert_visdrone, src, dst, **options), as_json)


if __name__ == "__main__":
    main()
