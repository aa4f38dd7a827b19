"""Write docs/zoo.md: every config of the zoo at its smallest scale.

Example: python scripts/zoo_table.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import track

from yolo_attn.paths import PACKAGE
from yolo_attn.zoo import Config, describe, select

INTRODUCTION = """# The zoo

Written by `python scripts/zoo_table.py`. Parameters, and GFLOPs of a 640 x 640 image (2 per
multiply-add, attention products counted), each model at its smallest scale with 80 classes;
"more" is in comparison with the base.

**Names.** `<base>-<block in lower case>.yaml`: `yolov8-simam.yaml` is `yolov8.yaml` with SimAM. A
base with scales takes its letter as Ultralytics' own names do: `yolov8n-simam.yaml`,
`yolov5x-simam.yaml`, `yolov8s-p2-simam.yaml`. yolov5, yolov7-tiny, yolov8, yolov8-p2, yolov9t and
yolov9c have every block, yolov7 the main ones, yolo11 and yolo26 the ten that add the fewest GFLOPs
there. `-fpt` is the whole pyramid of the Feature Pyramid Transformer: FPTSelf, FPTGround and
FPTRender over P3, P4 and P5. For what is missing there is
`yolo-attn new yolo11.yaml LSK --at P5`. The files are written by `scripts/write_zoo.py` from
`scripts/zoo_places.py`, which holds the place of each block.

**Weights.** Every overlay but the `-revcolumns` ones starts from exactly the predictions of its
base's checkpoint (`pretrained=yolov8n.pt`): its block is the identity at the start, or
`identity_start: true` makes it so. Take that line out to start as the paper does. `-revcolumns`
keeps the weights of neck and head.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=PACKAGE.parent / "docs" / "zoo.md")
    file = parser.parse_args().file
    console = Console(stderr=True)
    configs = [describe(name) for name in track(select("*"), "measuring", console=console)]
    file.write_text(page(configs), encoding="utf-8")
    print(f"wrote {len(configs)} models to {file}")


def page(configs: list[Config]) -> str:
    """The page: one table for each base, which leads it."""
    by_base: dict[str, list[Config]] = {}
    for config in configs:
        by_base.setdefault(config.base, []).append(config)
    plain = by_base.pop("", [])
    lines = [INTRODUCTION]
    for name, overlays in sorted(by_base.items()):
        base = describe(name)
        lines += [
            f"## {Path(name).stem}",
            "",
            "| config | parameters | more | GFLOPs | more | blocks |",
            "|---|--:|--:|--:|--:|---|",
            f"| {name} | {base.parameters:,} | | {base.gflops:.2f} | | |",
            *(_row(config, base) for config in overlays),
            "",
        ]
    lines += [
        "## Plain models",
        "",
        "The zoo's own bases, of families that Ultralytics lacks, and an example with rows.",
        "",
        "| config | parameters | GFLOPs | blocks |",
        "|---|--:|--:|---|",
        *(f"| {c.name} | {c.parameters:,} | {c.gflops:.2f} | {_where(c)} |" for c in plain),
    ]
    return "\n".join(lines) + "\n"


def _row(config: Config, base: Config) -> str:
    more = config.parameters - base.parameters
    return (
        f"| {config.name} | {config.parameters:,} | {more:+,} | {config.gflops:.2f} | "
        f"{config.gflops - base.gflops:+.2f} | {_where(config)} |"
    )


def _where(config: Config) -> str:
    """``CBAM after P3, P4, P5; SE after P5``."""
    places: dict[str, list[str]] = {}
    for block in config.blocks:
        places.setdefault(block["block"], []).append(str(block["after"]))
    return "; ".join(f"{name} after {', '.join(after)}" for name, after in places.items())


if __name__ == "__main__":
    main()
