"""One picture of a dataset: sizes, size bins, boxes per image, classes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from yolo_attn.data.stats import COCO_BINS, TINY_BINS, DatasetStats, count_bins
from yolo_attn.errors import YoloAttnError

MOST_CLASSES = 20
# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73")


def check_png(file: Path) -> None:
    """Refuse a file that is no PNG, or whose folder is not there, before the work is done."""
    if file.suffix.lower() != ".png":
        raise YoloAttnError(f"{file}: the picture is a PNG; let its name end in .png")
    if not file.resolve().parent.is_dir():
        raise YoloAttnError(f"{file}: there is no such folder; make it")


def draw_stats(stats: DatasetStats, file: Path) -> None:
    """Write the picture.

    Raises:
        YoloAttnError: matplotlib is missing, or the file cannot be written.
    """
    check_png(file)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise YoloAttnError(
            "the picture needs matplotlib: pip install 'yolo-attn[report]', or leave out --png"
        ) from error

    figure = Figure(figsize=(13, 8.5), layout="constrained")
    sizes, bins, per_image, classes = figure.subplots(2, 2).flat
    splits = stats.distinct()
    styles = dict(zip(splits, COLOURS))

    octaves = math.log2(_top(s.sizes for s in splits.values()))
    edges = 2 ** (np.arange(math.ceil(8 * octaves) + 1) / 8)  # the bins' edges are among them
    for name, split in splits.items():
        label = f"{name}: {len(split.sizes):,} boxes in {len(split.per_image):,} images"
        sizes.hist(
            np.maximum(split.sizes, 1),
            edges,
            color=styles[name],
            histtype="step",
            label=label,
            linewidth=1.5,
        )
    for edge in (2, 8, 16, 32, 64, 96):
        if edge < edges[-1]:
            sizes.axvline(edge, color="0.7", linewidth=0.8, zorder=0)
    ticks = [t for t in [2**i for i in range(12)] if t < edges[-1]]
    sizes.set_xscale("log")
    sizes.set_xticks(ticks, list(map(str, ticks)))
    sizes.margins(y=0.25)
    sizes.minorticks_off()
    sizes.set(
        title="object size",
        xlabel="square root of the box area, pixels of the original image",
        ylabel="boxes",
    )
    sizes.legend()

    groups = {**TINY_BINS, **COCO_BINS}
    width = 0.8 / len(splits)
    for i, (name, split) in enumerate(splits.items()):
        counts = np.array(list(count_bins(split.sizes, groups).values()))
        at = np.arange(len(groups)) + (i - (len(splits) - 1) / 2) * width
        at[len(TINY_BINS) :] += 0.6
        bars = bins.bar(at, 100 * counts / max(len(split.sizes), 1), width, color=styles[name])
        bins.bar_label(bars, [f"{n:,}" for n in counts], fontsize=7, rotation=90, padding=3)
    at = np.arange(len(groups)) + 0.6 * (np.arange(len(groups)) >= len(TINY_BINS))
    bins.set_xticks(at, [f"{n}\npx" if n in TINY_BINS else n for n in groups])
    bins.margins(y=0.2)
    bins.set(title="size bins: AI-TOD's, and COCO's (by box area)", ylabel="% of the split's boxes")

    most = max(int(s.per_image.max()) for s in splits.values())
    steps = np.arange(-0.5, most + 1.5, max(1, most // 40))
    steps = np.append(steps, most + 1) if steps[-1] < most else steps
    for name, split in splits.items():
        weights = np.full(len(split.per_image), 100 / len(split.per_image))
        per_image.hist(
            split.per_image,
            steps,
            weights=weights,
            color=styles[name],
            histtype="step",
            linewidth=1.5,
        )
        per_image.axvline(split.per_image.mean(), color=styles[name], linestyle=":", linewidth=1.2)
    per_image.set(
        title="boxes per image (dotted: mean)", xlabel="boxes", ylabel="% of the split's images"
    )

    totals = {c: sum(int((s.classes == c).sum()) for s in splits.values()) for c in stats.names}
    shown = sorted(totals, key=lambda c: -totals[c])[:MOST_CLASSES][::-1]
    left = np.zeros(len(shown))
    shades = ("#B2182B", "#F4A582", "#92C5DE")
    for (group, limits), shade in zip(COCO_BINS.items(), shades):
        counts = np.array(
            [
                sum(
                    count_bins(s.sizes[s.classes == c], {group: limits})[group]
                    for s in splits.values()
                )
                for c in shown
            ]
        )
        classes.barh(np.arange(len(shown)), counts, left=left, color=shade, label=group)
        left += counts
    classes.set_yticks(np.arange(len(shown)), [_short(stats.names[c]) for c in shown])
    rest = len(totals) - len(shown)
    classes.set(title=f"classes, all splits{f' (and {rest} more)' if rest else ''}", xlabel="boxes")
    classes.set_ylim(-0.7, max(len(shown), 6) - 0.3)  # one class is no wall
    classes.legend()

    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(_short("/".join(Path(stats.data).parts[-2:]), 60))
    try:
        figure.savefig(file, dpi=110, format="png")
    except OSError as error:
        raise YoloAttnError(f"{file}: cannot be written ({error}); choose another") from error


def _top(sizes: Iterable[npt.NDArray[np.float64]]) -> float:
    return max([64.0, *(float(s.max()) for s in sizes if len(s))]) * 1.05


def _short(text: str, most: int = 24) -> str:
    """At most so many characters, and no formula: matplotlib reads $...$ as one."""
    text = text if len(text) <= most else text[: most - 3] + "..."
    return text.replace("$", r"\$")
