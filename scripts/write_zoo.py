"""Write the zoo's overlays to cfg/ from one table of places; a test holds the files to it.

Names: ``<base>-<block in lower case>.yaml``; a base with scales takes the letter of its scale
(``yolov8n-simam.yaml``). Example: python scripts/write_zoo.py
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from yolo_attn.paths import zoo_dir
from yolo_attn.registry import block_info, list_blocks

WIDTH = 108  # of comments

# Every block for these bases ...
FAMILIES = {
    "yolov5": "YOLOv5 (Ultralytics' anchor-free form)",
    "yolov7-tiny": "YOLOv7-tiny",
    "yolov8": "YOLOv8",
    "yolov9t": "YOLOv9-T",
    "yolov9c": "YOLOv9-C",
}
# ... and the main ones for these.
MAIN = (
    "NonLocal", "GlobalContext", "CoordAtt", "CrissCross", "BiFormer", "EMA", "SimAM", "LSK",
    "CBAM", "ContextAggregation",
)  # fmt: skip
MORE_FAMILIES = {"yolov7": "YOLOv7", "yolov8-p2": "YOLOv8 with a stride-4 head"}

STAGES = ("P3", "P4", "P5")
NECK = ("N3", "N4", "N5")
COLUMN = (("N3", "N4"), ("N4", "N3", "N5"), ("N5", "N4"))
GATE = "so every stage that the neck reads gets one."

# Where each block stands (a list of taps is one block with several inputs), and why there.
PLACES: dict[str, tuple[tuple[str | tuple[str, ...], ...], str]] = {
    "AFNB": (
        (("P5", "P4"),),
        "the deepest map reads pooled means of the stage before it, as stage 5 reads stage 4 in "
        "the paper.",
    ),
    "APNB": (
        ("P4",),
        "110 pooled bins stand for the keys, which pays where a map has many more positions than "
        "that.",
    ),
    "BiFormer": (
        ("P4",),
        "a transformer block whose positions read 4 of 49 regions; the coarsest map is too small "
        "to choose among.",
    ),
    "CBAM": (STAGES, f"gates for channels, then for positions, cost little, {GATE}"),
    "ChannelGram": (
        ("P5",),
        "channels read each other; in the last stage they stand most nearly for classes, as the "
        "paper wants them.",
    ),
    "Container": (
        ("P5",),
        "as in the paper, positions are mixed dynamically in the last stage only, where N^2 is "
        "small.",
    ),
    "ContextAggregation": (
        NECK,
        "one block on each level that the head reads, as CATNet's spatial context pyramid.",
    ),
    "CoordAtt": (STAGES, f"gates along rows and along columns cost little, {GATE}"),
    "CrissCross": (
        ("P4",),
        "each position reads its row and its column, which saves the more the larger the map is.",
    ),
    "DANet": (
        ("P5",),
        "position and channel attention side by side; the N^2 branch is cheapest on the coarsest "
        "map.",
    ),
    "DASI": (
        (("N4", "N3", "N5"),),
        "the middle level chooses, channel by channel, between its finer and its coarser "
        "neighbour.",
    ),
    "DoubleAttention": (
        ("P3", "P4"),
        "gathering descriptors and handing them out is linear in N, so at the strides of the "
        "paper's res3 and res4.",
    ),
    "ECA": (STAGES, f"a channel gate of a few weights, {GATE}"),
    "EMA": (
        NECK,
        "one spatial gate for each group of channels, behind every stage of the neck that the head "
        "reads.",
    ),
    "EMAU": (
        ("P5",),
        "rebuilds the last map from 64 bases between backbone and neck, as the paper does in front "
        "of the classifier.",
    ),
    "FPTGround": (
        (("P3", "P4"), ("P4", "P5")),
        "between backbone and neck, each finer level is grounded on the next coarser one.",
    ),
    "FPTRender": (
        (("P5", "P4"), ("P4", "P3")),
        "between backbone and neck, each coarser level is rendered with details of the next finer "
        "one.",
    ),
    "FPTSelf": (
        ("P4", "P5"),
        "each level reads itself; at stride 8 the N^2 products would cost 16 times those at stride "
        "16.",
    ),
    "FcaNet": (STAGES, f"a channel gate that sees DCT coefficients, {GATE}"),
    "GAM": (
        ("P4",),
        "its two 7 x 7 convolutions have 24.5 C^2 parameters, so one stage before the widest.",
    ),
    "GlobalContext": (
        STAGES,
        "one context vector for all positions costs little, so behind c3, c4 and c5 as in the "
        "paper.",
    ),
    "LSK": (
        STAGES,
        "each position chooses between a small and a large receptive field, after every stage that "
        "the neck reads.",
    ),
    "MDCR": (
        ("P5",),
        "four dilations widen the view of the deepest map, the bottom of the paper's U-Net.",
    ),
    "MLCA": (STAGES, f"channel gates per cell of a coarse grid cost little, {GATE}"),
    "NonLocal": (
        ("P5",),
        "every position reads every other; the N^2 products are cheapest on the coarsest map.",
    ),
    "PPA": (
        ("N3",),
        "convolutions beside attention to patches, on the finest level that the head reads: small "
        "targets are there.",
    ),
    "PositionAttention": (
        ("P5",),
        "every position reads every other; the N^2 products are cheapest on the coarsest map.",
    ),
    "RevColAttnFusion": (
        COLUMN,
        "one more column on the neck's levels, which attention weighs at each position.",
    ),
    "RevColFusion": (COLUMN, "one more column on the neck's levels: each reads its neighbours."),
    "SE": (STAGES, f"one gate a channel, from all channel means, {GATE}"),
    "SEv2": (STAGES, f"one gate a channel, from four dense layers side by side, {GATE}"),
    "SK": (
        ("P4", "P5"),
        "channels choose between receptive fields of 3 and 5, where the maps are small enough for "
        "two convolutions.",
    ),
    "SimAM": (STAGES, f"a gate for each value, without parameters, {GATE}"),
    "SimplifiedNonLocal": (
        ("P4", "P5"),
        "one attention map for all positions is linear in N, so in c4 and c5 as in the paper.",
    ),
}

# Small objects are on the stride-4 map, so there it is that map which the blocks refine.
P2_PLACES: dict[str, tuple[tuple[str, ...], str]] = {
    "BiFormer": (
        ("P2",),
        "positions of the finest map read 4 of 49 regions instead of 25,600 positions at 640 "
        "pixels.",
    ),
    "CBAM": (("P2", "P3"), "gates for channels, then for positions, where small objects are."),
    "ContextAggregation": (
        ("N2", *NECK),
        "one block on each level that the head reads, as CATNet's spatial context pyramid.",
    ),
    "CoordAtt": (("P2", "P3"), "gates along rows and along columns, where small objects are."),
    "CrissCross": (
        ("P2",),
        "each position of the finest map reads its row and its column, 319 positions of 25,600 at "
        "640 pixels.",
    ),
    "EMA": (
        ("N2", "N3"),
        "one spatial gate for each group of channels, on the two finest levels that the head "
        "reads.",
    ),
    "GlobalContext": (
        ("P2", "P3"),
        "one context vector for all positions is linear in N: it also goes where small objects "
        "are.",
    ),
    "LSK": (
        ("P2", "P3"),
        "small objects need their surroundings: each position chooses its receptive field.",
    ),
    "NonLocal": (
        ("P2",),
        "160 x 160 positions at 640 pixels read each other, without the 25,600 x 25,600 matrix.",
    ),
    "SimAM": (("P2", "P3"), "a gate for each value, without parameters, where small objects are."),
}

# The level that the coarsest one reads is twice as large; by default an only neighbour is coarser.
OPTIONS = {
    ("RevColFusion", "[N5, N4]"): "[{levels: [2]}]",
    ("RevColAttnFusion", "[N5, N4]"): "[{levels: [2]}]",
}

# Widths of the base's own stages, so that its neck keeps its weights; its last row; options.
REV_COLUMNS = {
    "yolov5": ("[128, 256, 512, 1024]", "SPPF, [1024, 5]", ""),
    "yolov7-tiny": ("[64, 128, 256, 512]", "", ", columns: 2"),
    "yolov8": ("[128, 256, 512, 1024]", "SPPF, [1024, 5]", ""),
    "yolov9t": ("[32, 64, 96, 128]", "SPPELAN, [128, 64]", ""),
    "yolov9c": ("[256, 512, 512, 512]", "SPPELAN, [512, 256]", ", columns: 2"),
}

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


def write_all() -> dict[str, str]:
    """Text of each file of the zoo that this script writes, by file name."""
    files = {}
    for base, title in FAMILIES.items():
        for block in list_blocks():
            if block == "RevColumns":
                text = _rev_columns(base, title)
            else:
                text = _overlay(base, title, block, *PLACES[block])
            files[f"{base}-{block.lower()}.yaml"] = text
    for base, title in MORE_FAMILIES.items():
        places = P2_PLACES if base == "yolov8-p2" else PLACES
        for block in MAIN:
            files[f"{base}-{block.lower()}.yaml"] = _overlay(base, title, block, *places[block])
    files["yolo11-nonlocal.yaml"] = _overlay("yolo11", "YOLO11", "NonLocal", *PLACES["NonLocal"])
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
    return (
        _comment(
            f"{title}'s neck and head on RevColumns, a backbone of reversible columns: training "
            "keeps the maps of one column only. Its levels have the widths of the base's stages, "
            "so the neck keeps pretrained weights and reads P3, P4 and P5 as before."
        )
        + _comment(f"{block_info('RevColumns').paper}.")
        + f"base: {base}.yaml\n"
        + "backbone: # [from, repeats, module, args], in place of the base's\n"
        + f"  - [-1, 1, RevColumns, [{{widths: {widths}{options}}}]]\n"
        + "".join(f"  - [0, 1, Index, [null, {k}]] # P{k + 2}\n" for k in (1, 2, 3))
        + (f"  - [-1, 1, {last}]\n" if last else "")
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
