"""What is in a dataset: objects by size bin and class, boxes per image, ignored area.

Sizes are square roots of box areas in pixels of the original images, whatever imgsz training uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from yolo_attn.data.layout import SPLITS, Progress, image_size
from yolo_attn.data.stats_read import (
    Faults,
    Ignored,
    label_files,
    list_images,
    load_dataset,
    read_ignored,
    read_labels,
)
from yolo_attn.errors import YoloAttnError, did_you_mean

# A bin holds low <= size < high; AI-TOD's four and what lies outside them (arXiv 2110.13389).
TINY_BINS = {
    "<2": (0.0, 2.0),
    "2-8": (2.0, 8.0),
    "8-16": (8.0, 16.0),
    "16-32": (16.0, 32.0),
    "32-64": (32.0, 64.0),
    ">=64": (64.0, math.inf),
}
DECIMALS = 2  # of a size in pixels
COCO_BINS = {"small": (0.0, 32.0), "medium": (32.0, 96.0), "large": (96.0, math.inf)}


@dataclass
class SplitStats:
    """One split; arrays have one row a box or one entry an image.

    Attributes:
        classes: (n,) int, class of each box.
        sizes: (n,) float, square root of each box's area in pixels of the original image,
            rounded to hundredths, as labels are too coarse for more.
        images: (n,) int, index of each box's image.
        per_image: (m,) int, boxes of each image.
        ignored: from the COCO file beside the labels, or None without one.
        faults: label rows that are not counted.
    """

    classes: np.ndarray
    sizes: np.ndarray
    images: np.ndarray
    per_image: np.ndarray
    ignored: Ignored | None = None
    faults: Faults = field(default_factory=Faults)

    def as_dict(self, names: dict[int, str]) -> dict[str, Any]:
        """JSON types only."""
        per_image, ignored = self.per_image, self.ignored
        return {
            "images": len(per_image),
            "images_without_objects": int((per_image == 0).sum()),
            "boxes": len(self.sizes),
            "boxes_per_image": {
                "mean": float(per_image.mean()),
                "median": float(np.median(per_image)),
                "max": int(per_image.max()),
            },
            **_sizes(self.sizes),
            "per_class": {
                name: {
                    "boxes": int((self.classes == c).sum()),
                    "images": len(np.unique(self.images[self.classes == c])),
                    **_sizes(self.sizes[self.classes == c]),
                }
                for c, name in names.items()
            },
            "ignored": ignored
            and {
                "regions": ignored.regions,
                "region_area_fraction": ignored.area,
                "objects": ignored.objects,
                "others": ignored.others,
                "coco_by_annotated_area": count_bins(ignored.annotated, COCO_BINS),
            },
            "skipped_label_rows": dict(self.faults.reasons),
        }


@dataclass
class DatasetStats:
    """All splits of a dataset; splits of the same images share one :class:`SplitStats`."""

    data: str
    names: dict[int, str]
    splits: dict[str, SplitStats]

    def distinct(self) -> dict[str, SplitStats]:
        """Each set of images once, e.g. under "train = val"."""
        names: dict[int, list[str]] = {}
        for split, stats in self.splits.items():
            names.setdefault(id(stats), []).append(split)
        return {" = ".join(n): self.splits[n[0]] for n in names.values()}

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        splits = {split: stats.as_dict(self.names) for split, stats in self.splits.items()}
        return {"data": self.data, "names": list(self.names.values()), "splits": splits}


def dataset_stats(
    data: str | Path,
    *,
    splits: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> DatasetStats:
    """Count what is in a dataset as Ultralytics would load it.

    Args:
        data: a dataset YAML; one that is not there yet is made or downloaded as in training.
        splits: some of train, val, test; default: all that the YAML names.
        progress: called with (images done, images in all).

    Raises:
        YoloAttnError: the YAML, an image or the COCO file beside the labels is at fault. Faulty
            label rows are counted instead.
    """
    content = load_dataset(data)
    present = [s for s in SPLITS if content.get(s)]
    for split in splits or ():
        if split not in present:
            raise YoloAttnError(
                f"{data}: no split {split!r} (it has {', '.join(present)})"
                f"{did_you_mean(split, present)}"
            )
    listed: dict[str, list[str]] = {}
    for split in splits or present:
        listed[split] = list_images(content[split], f"{data}: {split}")
        if not listed[split]:
            raise YoloAttnError(f"{data}: {split}: no image in {content[split]}; correct the path")
    distinct: dict[tuple[str, ...], SplitStats] = {}
    total, done = sum(len(v) for v in {tuple(v): v for v in listed.values()}.values()), 0
    out: dict[str, SplitStats] = {}
    for split, images in listed.items():
        key = tuple(images)
        if key not in distinct:
            sizes = []
            for image in images:
                sizes.append(image_size(Path(image)))
                done += 1
                if progress:
                    progress(done, total)
            distinct[key] = _count(images, sizes, content)
            sidecar = Path(content["path"]) / "annotations" / f"{split}.json"
            distinct[key].ignored = read_ignored(sidecar, images)
        out[split] = distinct[key]
    return DatasetStats(str(data), dict(content["names"]), out)


def count_bins(sizes: np.ndarray, bins: dict[str, tuple[float, float]]) -> dict[str, int]:
    """How many of `sizes` (n,) lie in each bin ``low <= size < high``."""
    return {n: int(((sizes >= low) & (sizes < high)).sum()) for n, (low, high) in bins.items()}


def stats_tables(stats: DatasetStats) -> list[Any]:
    """The statistics for a person: rich tables and lines."""
    overview = Table(title=escape(f"{stats.data}: images and boxes"), title_justify="left")
    overview.add_column("split")
    for column in ("images", "without objects", "boxes", "per image", "median", "most"):
        overview.add_column(column, justify="right")
    overview.add_column("ignored regions", justify="right")
    overview.add_column("other annotations without label", justify="right")
    tables: list[Any] = [overview]
    lines = []
    for name, split in stats.distinct().items():
        d = split.as_dict(stats.names)
        per, ignored = d["boxes_per_image"], split.ignored
        overview.add_row(
            name,
            f"{d['images']:,}",
            f"{d['images_without_objects']:,}",
            f"{d['boxes']:,}",
            f"{per['mean']:.1f}",
            f"{per['median']:g}",
            f"{per['max']:,}",
            f"{ignored.regions:,} ({ignored.area:.2%} of the area)" if ignored else "not known",
            f"{ignored.objects + ignored.others:,}" if ignored else "not known",
        )
        tables.append(_size_table(name, d))
        if ignored:
            counts = d["ignored"]["coco_by_annotated_area"]
            text = ", ".join(f"{n} {bin}" for bin, n in counts.items())
            lines.append(f"{name}, by the annotated areas, as COCOeval counts: {text}")
        if absent := [c for c, row in d["per_class"].items() if not row["boxes"]]:
            lines.append(f"{name}: no box of {', '.join(absent)}")
        lines += [f"{name}: not counted: {line}" for line in split.faults.lines()]
    return tables + [escape(line) for line in lines]


def _size_table(name: str, d: dict[str, Any]) -> Table:
    title = f"{name}: boxes by size (square root of the box area, pixels of the original image)"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("class")
    for column in ("images", "boxes", *TINY_BINS, *COCO_BINS, "median size"):
        table.add_column(column, justify="right")
    with_objects = {**d, "images": d["images"] - d["images_without_objects"]}
    rows = [("all", with_objects)]
    if len(d["per_class"]) > 1:
        rows += [(label, row) for label, row in d["per_class"].items() if row["boxes"]]
    for label, row in rows:
        counts = (row["images"], row["boxes"], *row["tiny_bins"].values(), *row["coco"].values())
        median = row["size"]["median"]
        table.add_row(
            escape(label),
            *(f"{n:,}" for n in counts),
            "-" if median is None else f"{median:.1f}",
            end_section=label == "all",
        )
    return table


def _sizes(sizes: np.ndarray) -> dict[str, Any]:
    known = len(sizes) > 0
    return {
        "size": {
            "min": float(sizes.min()) if known else None,
            "median": float(np.median(sizes)) if known else None,
            "max": float(sizes.max()) if known else None,
        },
        "tiny_bins": count_bins(sizes, TINY_BINS),
        "coco": count_bins(sizes, COCO_BINS),
    }


def _count(
    images: Sequence[str], sizes: Sequence[tuple[int, int]], content: dict[str, Any]
) -> SplitStats:
    faults = Faults()
    rows: list[tuple[float, ...]] = []
    labels = label_files(images)
    for index, (label, (width, height)) in enumerate(zip(labels, sizes)):
        for cls, w, h in read_labels(label, content, faults):
            # Labels have six decimals or so: a box of 8 x 8 must not become one of 7.9999.
            rows.append((cls, round(math.sqrt(w * width * h * height), DECIMALS), index))
    table = np.array(rows, float).reshape(-1, 3)
    of_image = table[:, 2].astype(int)
    per_image = np.bincount(of_image, minlength=len(images))
    return SplitStats(table[:, 0].astype(int), table[:, 1], of_image, per_image, faults=faults)
