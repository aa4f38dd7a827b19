"""Ignored regions: which boxes the VisDrone toolkit drops because regions cover them."""

from __future__ import annotations

import numpy as np

from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.boxes import Bools, Detections, Floats, GroundTruth

COVERED = 0.5  # a box that lies in ignored regions by this part or more is dropped


def keep_outside_regions(gt: GroundTruth, dets: Detections) -> tuple[Bools, Bools]:
    """Which boxes of `gt` and of `dets` lie in ignored regions by less than a half."""
    if not len(gt.region_image):
        return np.ones(len(gt.boxes), bool), np.ones(len(dets.boxes), bool)
    if gt.sizes is None:
        raise YoloAttnError("there are ignored regions; the sizes of the images are needed")
    kept = []
    for image, boxes in ((gt.image, gt.boxes), (dets.image, dets.boxes)):
        keep = np.ones(len(boxes), bool)
        order = np.argsort(image, kind="stable")
        edges = np.searchsorted(image[order], np.arange(len(gt.names) + 1))
        for i in np.unique(gt.region_image):
            rows = order[edges[i] : edges[i + 1]]
            regions = gt.region_boxes[gt.region_image == i]
            keep[rows] = coverage(boxes[rows], regions, gt.sizes[i]) < COVERED
        kept.append(keep)
    return kept[0], kept[1]


def coverage(boxes: Floats, regions: Floats, size: Floats) -> Floats:
    """(n,) part of each box that the union of the regions covers, in the toolkit's pixels.

    The toolkit counts on a mask of the image (1-based, a region includes both its ends, a box
    excludes its first column and row, nothing is clipped in the denominator). Here the mask is cut
    at the regions' edges, which gives the same integers.

    Args:
        boxes: (n, 4) left, top, width, height.
        regions: (r, 4) likewise.
        size: (2,) width and height of the image.
    """
    size = np.asarray(size, np.float64)
    box = np.maximum(1, _round(boxes))
    region = np.maximum(1, _round(regions))
    with np.errstate(over="ignore"):
        low = np.minimum(size, box[:, :2])
        high = np.minimum(size, low + box[:, 2:])
        region_low = region[:, :2] - 1  # pixels low+1 .. high, both included
        region_high = np.minimum(size, region[:, :2] + region[:, 2:])
        region_low, region_high = (
            side[(region[:, :2] <= size).all(1)] for side in (region_low, region_high)
        )
        cuts = [np.unique(np.r_[region_low[:, a], region_high[:, a]]) for a in (0, 1)]
        if not len(region_low):
            return np.zeros(len(boxes))
        marked = np.zeros([len(cut) - 1 for cut in cuts])
        for (x1, y1), (x2, y2) in zip(region_low, region_high):
            x = slice(*np.searchsorted(cuts[0], (x1, x2)))
            marked[x, slice(*np.searchsorted(cuts[1], (y1, y2)))] = 1
        shared = [
            np.clip(
                np.minimum(high[:, [a]], cuts[a][1:]) - np.maximum(low[:, [a]], cuts[a][:-1]),
                0,
                None,
            )
            for a in (0, 1)
        ]
        return ((shared[0] @ marked) * shared[1]).sum(1) / (box[:, 2] * box[:, 3])


def _round(values: Floats) -> Floats:
    """To whole numbers, halves away from zero, as Octave does."""
    whole = np.trunc(values)
    return whole + np.where(np.abs(values - whole) >= 0.5, np.sign(values), 0)
