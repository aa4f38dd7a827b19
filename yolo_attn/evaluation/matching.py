"""The greedy matching that COCO and VisDrone share, for all images and thresholds at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from yolo_attn.evaluation.boxes import Bools, Detections, Floats, GroundTruth, Ints


@dataclass(frozen=True)
class Pairs:
    """Detection and ground truth of one image and class that overlap enough to match.

    `det` and `gt` are row numbers, `overlap` the IoU (for an ignored box: the part of the
    detection that lies in it).
    """

    det: Ints
    gt: Ints
    overlap: Floats


def overlaps(dets: Floats, boxes: Floats, ignored: Bools) -> Floats:
    """(d, g) IoU of half-open boxes; over the detection's area alone where `ignored`.

    Args:
        dets: (d, 4) left, top, width, height.
        boxes: (g, 4) likewise.
        ignored: (g,) bool.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        d, g = dets[:, None], boxes[None]
        low = np.maximum(d[..., :2], g[..., :2])
        side = np.minimum(d[..., :2] + d[..., 2:], g[..., :2] + g[..., 2:]) - low
        inside = side[..., 0] * side[..., 1]
        area = d[..., 2] * d[..., 3]
        whole = np.where(ignored, area, area + g[..., 2] * g[..., 3] - inside)
        met = (side > 0).all(-1)
        return np.where(met, inside / np.where(met, whole, 1), 0)


def find_pairs(gt: GroundTruth, dets: Detections, least: float) -> Pairs:
    """All pairs of one image and one scored class with an overlap of at least `least`."""
    scored = np.array(sorted(gt.classes), np.int64)
    # Images in one order on both sides; the rows of one image are then a slice.
    det_rows = _by_image(dets.image, np.isin(dets.category, scored))
    gt_rows = _by_image(gt.image, np.isin(gt.category, scored))
    found: list[tuple[Ints, Ints, Floats]] = []
    images = np.arange(len(gt.names) + 1)
    det_edges = np.searchsorted(dets.image[det_rows], images)
    gt_edges = np.searchsorted(gt.image[gt_rows], images)
    for i in np.flatnonzero((np.diff(det_edges) > 0) & (np.diff(gt_edges) > 0)):
        d = det_rows[det_edges[i] : det_edges[i + 1]]
        g = gt_rows[gt_edges[i] : gt_edges[i + 1]]
        rate = overlaps(dets.boxes[d], gt.boxes[g], gt.ignored[g])
        at_d, at_g = np.nonzero((rate >= least) & (dets.category[d][:, None] == gt.category[g]))
        found.append((d[at_d], g[at_g], rate[at_d, at_g]))
    if not found:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*(np.concatenate(column) for column in zip(*found)))


def _by_image(image: Ints, wanted: Bools) -> Ints:
    rows = np.flatnonzero(wanted)
    return rows[np.argsort(image[rows], kind="stable")]


def rank_in_group(group: Ints, score: Floats) -> tuple[Ints, Ints]:
    """Sort rows by group and descending score (stable); return the order and each row's rank."""
    order = np.lexsort((-score, group))
    sorted_group = group[order]
    start = np.r_[True, sorted_group[1:] != sorted_group[:-1]] if len(order) else np.zeros(0, bool)
    position = np.arange(len(order))
    rank = np.empty(len(order), np.int64)
    rank[order] = position - np.maximum.accumulate(np.where(start, position, 0))
    return order, rank


def matches_at(gt: GroundTruth, dets: Detections, iou: float) -> Ints:
    """(n,) row of the object that each detection took at one IoU threshold, -1 for none.

    The rules of COCO's bin "all" (`coco.match_records`): ignored boxes come second and are never
    used up. A detection of an unscored class takes none.
    """
    group = dets.category * len(gt.names) + dets.image
    _, rank = rank_in_group(group, dets.score)
    pairs = find_pairs(gt, dets, iou)
    return greedy_match(pairs, group, rank, gt.ignored, gt.ignored, np.array([iou]))[:, 0]


def greedy_match(
    pairs: Pairs,
    group: Ints,
    rank: Ints,
    ignored: Bools,
    reusable: Bools,
    thresholds: Floats,
) -> npt.NDArray[np.int64]:
    """Match as COCOeval and the VisDrone toolkit do: detections by rank, best free box first.

    Of the boxes that are free and overlap by the threshold or more, a detection takes the one
    with the highest overlap (of equals, the later row); an ignored one only if there is no other.

    Args:
        pairs: the candidates; those of detections that do not take part must be left out.
        group: (n,) number of a detection's image and class.
        rank: (n,) a detection's turn in its group; gaps are fine.
        ignored: (g,) boxes that come second.
        reusable: (g,) boxes that are never used up.
        thresholds: (T,).

    Returns:
        (n, T) row of the box that a detection took, -1 for none.
    """
    match = np.full((len(group), len(thresholds)), -1, np.int64)
    if not len(pairs.det):
        return match
    preference = np.lexsort((-pairs.gt, -pairs.overlap, ignored[pairs.gt], pairs.det))
    pair_gt, overlap = pairs.gt[preference], pairs.overlap[preference]
    dets, start, count = np.unique(pairs.det[preference], return_index=True, return_counts=True)
    # A round holds one detection of each group, so those of a round never want the same box.
    # Detections without a candidate have no part in it.
    _, turn = rank_in_group(group[dets], -rank[dets].astype(np.float64))
    by_turn = np.argsort(turn, kind="stable")
    edges = np.searchsorted(turn[by_turn], np.arange(turn.max() + 2))
    taken = np.zeros((len(ignored), len(thresholds)), bool)
    columns = np.arange(len(thresholds))
    for begin, end in zip(edges[:-1], edges[1:]):
        now = by_turn[begin:end]
        offset = np.arange(count[now].max())
        there = offset < count[now][:, None]
        at = np.where(there, start[now][:, None] + offset, 0)
        candidates = pair_gt[at]
        fits = np.where(there, overlap[at], -1.0)[:, :, None] >= thresholds
        fits &= ~taken[candidates]
        chosen = np.take_along_axis(candidates, fits.argmax(1), 1)
        found = fits.any(1)
        match[dets[now]] = np.where(found, chosen, -1)
        row, column = np.nonzero(found & ~reusable[chosen])
        taken[chosen[row, column], columns[column]] = True
    return match
