"""Where AP is lost, by size: TIDE's six kinds of errors in every size bin.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors" (ECCV 2020, arXiv
2008.08115).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.boxes import (
    Bools,
    Detections,
    Floats,
    GroundTruth,
    Ints,
    box_area,
    check_images,
)
from yolo_attn.evaluation.coco import EVERY, LARGEST, CocoRules
from yolo_attn.evaluation.matching import (
    Pairs,
    find_pairs,
    greedy_match,
    overlaps,
    rank_in_group,
)
from yolo_attn.evaluation.records import FALSE, NEUTRAL, TRUE, average_precision, hundred_points
from yolo_attn.evaluation.regions import keep_outside_regions

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU
EDGES = (0, 8, 16, 32, 64, LARGEST)  # px


@dataclass(frozen=True)
class _Nearest:
    """For every detection, the best object of its own class and of the others (-1: none)."""

    own: Ints
    own_iou: Floats
    other: Ints
    other_iou: Floats


def error_analysis(
    gt: GroundTruth, dets: Detections, edges: Sequence[float] = EDGES, max_det: int = 500
) -> dict[str, dict[str, Any]]:
    """AP50 of each size bin and what it would gain without each kind of error (dAP).

    A bin holds what COCOeval's area range holds: objects of its size, and the detections that match
    them or, unmatched, are of that size themselves. A false detection is of one kind:
    localisation (IoU 0.1-0.5 with an object of its class), classification (0.5 or more with an
    object of another class), duplicate (0.5 or more with an object of its class, which another
    detection took), background (0.1 or less with every object), both (the rest). Missed are the
    objects that no detection took and that no localisation or classification error points at.

    Mended, of the localisation and classification errors that point at a free object the one with
    the highest score becomes true; all other false detections vanish; missed objects leave the
    recall's denominator (and a class that has no others leaves the mean).

    Args:
        gt: ignored boxes are crowds, boxes of ignored regions are dropped.
        dets: any order.
        edges: of the bins, in px (square root of the area).
        max_det: detections of an image and class that count.

    Returns:
        {bin: {"AP50": percent, "dAP": {kind: percent}, "count": {kind: n}, "objects": n}}, the bin
        "all" first. AP50 is -1 and dAP 0 where there are no objects.

    Raises:
        YoloAttnError: there are regions but no `sizes`; a detection of no known image.
    """
    check_images(gt, dets)
    gt_kept, det_kept = keep_outside_regions(gt, dets)
    numbers = np.array(list(gt.classes), np.int64)
    gt = gt.keep(gt_kept & np.isin(gt.category, numbers))
    dets = dets.keep(det_kept & np.isin(dets.category, numbers))
    # COCOeval's order: by image, in it by score; a stable sort by score then settles ties.
    order = np.lexsort((-dets.score, dets.image))
    dets = dets.keep(order)
    group = np.searchsorted(numbers, dets.category) * len(gt.names) + dets.image
    _, rank = rank_in_group(group, dets.score)
    few = rank < max_det
    dets, group, rank = dets.keep(few), group[few], rank[few]

    pairs = find_pairs(gt, dets, FOREGROUND)
    nearest = _nearest(gt, dets)
    bins = {"all": EVERY, **CocoRules("errors", (max_det,), tuple(edges)).bins}
    return {
        name: _analyse(gt, dets, _Bin(gt, dets, pairs, group, rank, bin_), nearest, numbers)
        for name, bin_ in bins.items()
    }


class _Bin:
    """One size bin: which objects count, what every detection took and whether that is true."""

    def __init__(
        self,
        gt: GroundTruth,
        dets: Detections,
        pairs: Pairs,
        group: Ints,
        rank: Ints,
        bin_: Sequence[float],
    ):
        low, high = bin_
        self.inside: Bools = ~gt.ignored & (gt.area >= low) & (gt.area <= high)
        threshold = np.array([FOREGROUND])
        match = greedy_match(pairs, group, rank, ~self.inside, gt.ignored, threshold)[:, 0]
        area = box_area(dets.boxes)
        counts = np.r_[self.inside, False][match] & (match >= 0)
        self.outcome = np.where(counts, TRUE, NEUTRAL)
        self.outcome[(match < 0) & (area >= low) & (area <= high)] = FALSE
        self.free = self.inside.copy()  # objects of the bin that no detection took
        self.free[match[counts]] = False


def _analyse(
    gt: GroundTruth, dets: Detections, bin_: _Bin, nearest: _Nearest, numbers: Ints
) -> dict[str, Any]:
    false = bin_.outcome == FALSE
    kind = _kinds(nearest)
    positives = _per_class(gt.category[bin_.inside], numbers)
    target = np.where(kind == KINDS.index("classification"), nearest.other, nearest.own)
    mendable = np.isin(kind, [KINDS.index("classification"), KINDS.index("localisation")])
    pointing = np.flatnonzero(false & mendable)
    best = _best_for_free(pointing, target, dets.score, bin_.free)
    missed = bin_.free.copy()
    missed[target[pointing]] = False

    base = _mean_ap(dets.category, dets.score, bin_.outcome, positives, numbers)
    gain, count = {}, {}
    for i, name in enumerate(KINDS):
        category, outcome, left = dets.category, bin_.outcome.copy(), positives
        rows = np.flatnonzero(false & (kind == i))
        count[name] = len(rows)
        outcome[rows] = NEUTRAL
        if name == "missed":
            left = positives - _per_class(gt.category[missed], numbers)
            count[name] = int(missed.sum())
        elif mendable[rows].any():
            turned = np.intersect1d(rows, best)
            outcome[turned] = TRUE
            category = category.copy()
            category[turned] = gt.category[target[turned]]
        mended = _mean_ap(category, dets.score, outcome, left, numbers)
        gain[name] = max(mended, 0.0) - max(base, 0.0)
    return {"AP50": base, "dAP": gain, "count": count, "objects": int(bin_.inside.sum())}


def _kinds(nearest: _Nearest) -> Ints:
    """(n,) index into KINDS that each detection has if it is false."""
    own, other = nearest.own_iou, nearest.other_iou
    conditions = [
        (own >= BACKGROUND) & (own < FOREGROUND),
        other >= FOREGROUND,
        own >= FOREGROUND,
        np.maximum(own, other) <= BACKGROUND,
    ]
    names = ["localisation", "classification", "duplicate", "background"]
    return np.select(conditions, [KINDS.index(n) for n in names], KINDS.index("both"))


def _best_for_free(rows: Ints, target: Ints, score: Floats, free: Bools) -> Ints:
    """Of the rows whose target is free, the one with the highest score for each target."""
    rows = rows[free[target[rows]]]
    rows = rows[np.argsort(-score[rows], kind="stable")]
    _, first = np.unique(target[rows], return_index=True)
    return rows[first]


def _nearest(gt: GroundTruth, dets: Detections) -> _Nearest:
    n = len(dets.score)
    own, other = np.full(n, -1), np.full(n, -1)
    own_iou, other_iou = np.zeros(n), np.zeros(n)
    objects = np.flatnonzero(~gt.ignored)
    objects = objects[np.argsort(gt.image[objects], kind="stable")]
    images = np.arange(len(gt.names) + 1)
    gt_edges = np.searchsorted(gt.image[objects], images)
    edges = np.searchsorted(dets.image, images)
    for i in np.flatnonzero((np.diff(edges) > 0) & (np.diff(gt_edges) > 0)):
        d = slice(edges[i], edges[i + 1])
        g = objects[gt_edges[i] : gt_edges[i + 1]]
        iou = overlaps(dets.boxes[d], gt.boxes[g], gt.ignored[g])
        same = dets.category[d][:, None] == gt.category[g]
        for mask, best, best_iou in ((same, own, own_iou), (~same, other, other_iou)):
            held = np.where(mask, iou, -1.0)
            at = held.argmax(1)
            value = np.take_along_axis(held, at[:, None], 1)[:, 0]
            best[d] = np.where(value >= 0, g[at], -1)
            best_iou[d] = np.maximum(value, 0)
    return _Nearest(own, own_iou, other, other_iou)


def _per_class(category: Ints, numbers: Ints) -> Ints:
    return np.bincount(np.searchsorted(numbers, category), minlength=len(numbers))


def _mean_ap(
    category: Ints, score: Floats, outcome: npt.NDArray, positives: Ints, numbers: Ints
) -> float:
    """AP50 in percent over the classes with objects; -1 without any."""
    values = []
    for number, total in zip(numbers, positives):
        if total > 0:
            rows = np.flatnonzero((category == number) & (outcome != NEUTRAL))
            rows = rows[np.argsort(-score[rows], kind="stable")]
            weight = np.ones(len(rows))
            values.append(average_precision(outcome[None, rows], weight, total, hundred_points)[0])
    return float(np.mean(values) * 100) if values else -1.0


def plot_errors(result: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Draw one stacked bar a size bin: the dAP of each kind of error (PNG, SVG or PDF).

    Args:
        result: of `error_analysis`.
        path: the picture to write.

    Raises:
        YoloAttnError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(result)
    figure = Figure(figsize=(2 + 1.1 * len(names), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bottom = np.zeros(len(names))
    for kind, colour in zip(KINDS, COLOURS):
        height = np.array([max(result[name]["dAP"][kind], 0.0) for name in names])
        axes.bar(names, height, 0.7, bottom=bottom, label=kind, color=colour)
        bottom += height
    labels = [f"{name}\n{_described(result[name])}" for name in names]
    axes.set_xticks(range(len(names)), labels)
    axes.set_xlabel("size of the object, square root of the area in px")
    axes.set_ylabel("dAP50 in points")
    axes.set_title("AP50 that each kind of error costs (TIDE)")
    axes.spines[["top", "right"]].set_visible(False)
    handles, kinds = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], kinds[::-1], loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
    )
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise YoloAttnError(f"{path}: cannot be written ({error})") from error


# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#009E73", "#999999")


def _described(row: Mapping[str, Any]) -> str:
    if not row["objects"]:
        return "no objects"
    return f"{row['objects']} objects\nAP50 {row['AP50']:.1f}"
