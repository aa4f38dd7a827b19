"""Write the zoo's overlays to cfg/ from one table (zoo_places.py); a test holds the files to it.

Names: ``<base>-<block in lower case>.yaml``; a base with scales takes the letter of its scale
(``yolov8n-simam.yaml``). Example: python scripts/write_zoo.py
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from zoo_places import (
    CHEAPEST,
    FAMILIES,
    MAIN,
    MORE_FAMILIES,
    NEWEST,
    OPTIONS,
    P2_FAMILIES,
    P2_PLACES,
    PLACES,
    REV_COLUMNS,
)

from yolo_attn.paths import zoo_dir
from yolo_attn.registry import block_info, list_blocks

WIDTH = 108  # of comments

STACKED = {
    "yolov8-nonlocal-stacked": (
        "YOLOv8 with NonLocal at several stages, the paper's model of five blocks: two after P3 "
        "(res3 there), three after P4 (res4). Repeats scale with the model's depth: one each at n "
        "and s, all five at l and x. Keys of the larger map are max-pooled by 2.",
        block_info("NonLocal").paper,
        "base: yolov8.yaml\n"
        "insert: # [after, repeats, module, args]\n"
        "  - [P3, 2, NonLocal, [{sub_sample: after}]]\n"
        "  - [P4, 3, NonLocal, []]\n",
    ),
    "yolov8-hcfnet": (
        "YOLOv8 in the manner of HCF-Net, for small infrared targets: PPA in the encoder (after P3 "
        "and P4), MDCR at its bottom (after P5), DASI in the skip connections (P3 reads P2 and P4, "
        "P4 reads P3 and P5).",
        block_info("PPA").paper,
        "base: yolov8.yaml\n"
        "identity_start: true # starts as its base does; false for the papers' own start\n"
        "insert: # [after, repeats, module, args]\n"
        "  - [P3, 1, PPA, []]\n"
        "  - [P4, 1, PPA, []]\n"
        "  - [P5, 1, MDCR, []]\n"
        "  - [[P3, P2, P4], 1, DASI, []]\n"
        "  - [[P4, P3, P5], 1, DASI, []]\n",
    ),
}


# The pyramid of the Feature Pyramid Transformer: each level with the maps that the three
# interactions make of it, in the order in which a level's last row reads them.
PYRAMID = {
    "P3": ("self3", "ground34", "ground35"),
    "P4": ("self4", "ground45", "render43"),
    "P5": ("self5", "render54", "render53"),
}
PYRAMID_FAMILIES = ("yolov5", "yolov8")


def write_all() -> dict[str, str]:
    """Text of each file of the zoo that this script writes, by file name."""
    files = {}
    finest = {**PLACES, **P2_PLACES}
    for families, blocks, places in (
        (FAMILIES, list_blocks(), PLACES),
        (P2_FAMILIES, list_blocks(), finest),
        (MORE_FAMILIES, MAIN, PLACES),
        (NEWEST, CHEAPEST, PLACES),
        ({"yolo11": NEWEST["yolo11"]}, ["NonLocal"], PLACES),
    ):
        for base, title in families.items():
            for block in blocks:
                if block == "RevColumns":
                    text = _rev_columns(base, title)
                else:
                    text = _overlay(base, title, block, *places[block])
                files[f"{base}-{block.lower()}.yaml"] = text
    for base in PYRAMID_FAMILIES:
        files[f"{base}-fpt.yaml"] = _pyramid(base, FAMILIES[base])
    for name, (what, paper, text) in STACKED.items():
        files[f"{name}.yaml"] = _comment(what) + _comment(f"{paper}.") + text
    # A name from before there was a rule.
    files["yolov8-gc.yaml"] = (
        _comment(
            "Short name of yolov8-globalcontext.yaml: YOLOv8 with GlobalContext after P3, P4 and "
            "P5."
        )
        + _comment(f"{block_info('GlobalContext').paper}.")
        + "base: yolov8-globalcontext.yaml\n"
    )
    return files


def _overlay(
    base: str, title: str, block: str, places: tuple[str | tuple[str, ...], ...], why: str
) -> str:
    """One block in one base."""
    info = block_info(block)
    written = [p if isinstance(p, str) else f"[{', '.join(p)}]" for p in places]
    if info.takes_list:
        verb = "at"
        where = " and ".join(f"{p[0]} (reading {' and '.join(p[1:])})" for p in places)
    else:
        verb, where = "after", " and ".join(", ".join(written).rsplit(", ", 1))
    joint = " and" if title.endswith("head") else " with"
    start = "" if info.identity_at_start else "identity_start: true # starts as its base does\n"
    return (
        _comment(f"{title}{joint} {info.name} {verb} {where}: {why}")
        + _comment(f"{info.paper}.")
        + f"base: {base}.yaml\n"
        + start
        + "insert: # [after, repeats, module, args]\n"
        + "".join(
            f"  - [{place}, 1, {info.name}, {OPTIONS.get((block, place), '[]')}]\n"
            for place in written
        )
    )


def _rev_columns(base: str, title: str) -> str:
    """RevColumns in place of the backbone."""
    widths, last, options = REV_COLUMNS[base]
    first = 0 if base in P2_FAMILIES else 1
    *taps, deepest = (f"P{k + 2}" for k in range(first, 4))
    read = [", ".join(taps), deepest]
    return (
        _comment(
            f"Neck and head of {title} on RevColumns, a backbone of reversible columns: training "
            "keeps the maps of one column only. Its levels have the widths of the base's stages, "
            f"so the neck keeps pretrained weights and reads {' and '.join(read)} as before."
        )
        + _comment(f"{block_info('RevColumns').paper}.")
        + f"base: {base}.yaml\n"
        + "backbone: # [from, repeats, module, args], in place of the base's\n"
        + f"  - [-1, 1, RevColumns, [{{widths: {widths}{options}}}]]\n"
        + "".join(f"  - [0, 1, Index, [null, {k}]] # P{k + 2}\n" for k in range(first, 4))
        + (f"  - [-1, 1, {last}]\n" if last else "")
    )


def _pyramid(base: str, title: str) -> str:
    """The three interactions of FPT over all levels."""
    blocks = {"self": "FPTSelf", "ground": "FPTGround", "render": "FPTRender"}
    rows, ends = [], []
    for level, branches in PYRAMID.items():
        for name in branches:
            kind = name.rstrip("0123456789")
            other = name[-1]
            place = level if kind == "self" else f"[{level}, P{other}]"
            options = "[{residual: false}]" if kind == "ground" else "[]"
            rows.append(f"  - [{place}, 1, {blocks[kind]}, {options}, {{name: {name}}}]\n")
        reads = ", ".join((level, *branches))
        ends.append(f"  - [[{reads}], 1, FPTFuse, [{{identity_start: true}}]]\n")
    return (
        _comment(
            f"{title} with the pyramid of the Feature Pyramid Transformer between backbone and "
            "neck: each of P3, P4 and P5 reads itself (FPTSelf), every coarser level (FPTGround) "
            "and every finer one (FPTRender). A convolution brings the level and these three maps "
            "back to its width, and starts as the level alone: the model starts as its base does."
        )
        + _comment(f"{block_info('FPTSelf').paper}.")
        + f"base: {base}.yaml\n"
        + "insert: # [after, repeats, module, args, name of what later inserts alone read]\n"
        + "".join([*rows, *ends])
    )


def _comment(text: str) -> str:
    text = text.replace("arXiv ", "arXiv\N{NO-BREAK SPACE}")  # a reference stays on one line
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "".join(f"# {line}\n" for line in lines).replace("\N{NO-BREAK SPACE}", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=zoo_dir(), help="default: cfg/")
    folder = parser.parse_args().folder
    files = write_all()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"wrote {len(files)} files to {folder}")


if __name__ == "__main__":
    main()
