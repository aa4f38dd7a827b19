"""The official VisDrone-DET protocol, to the digit (VisDrone2018-DET-toolkit, docs in words).

Zhu et al., "Detection and Tracking Meet Drones Challenge" (TPAMI 2021, arXiv 2001.06303).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from yolo_attn.evaluation.boxes import Bools, Detections, Floats, GroundTruth, Ints, check_images
from yolo_attn.evaluation.matching import Pairs, find_pairs, greedy_match, rank_in_group
from yolo_attn.evaluation.records import (
    FALSE,
    NEUTRAL,
    TRUE,
    ClassTables,
    MatchRecords,
    class_tables,
    sort_records,
)
from yolo_attn.evaluation.regions import keep_outside_regions

CLASSES = {
    1: "pedestrian",
    2: "people",
    3: "bicycle",
    4: "car",
    5: "van",
    6: "truck",
    7: "tricycle",
    8: "awning-tricycle",
    9: "bus",
    10: "motor",
}
IGNORED_REGION, OTHERS = 0, 11
MAX_DETS = (1, 10, 100, 500)
# Octave's 0.5:0.05:0.95; the eighth is 0.8500000000000001, and an IoU of 17/20 fails there.
THRESHOLDS: Floats = (0.5 + np.arange(10) * 0.05).astype(np.float64)
METRICS = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100", "AR500")


def evaluate(gt: GroundTruth, dets: Detections) -> dict[str, Any]:
    """Score detections as the official toolkit does; all values in percent, unrounded.

    Args:
        gt: with `ignored` for the score-0 boxes, and the ignored regions; `classes` may be of
            another data set than VisDrone.
        dets: in file order. Their order decides the cap: the first 1, 10, 100, 500 rows of an
            image count, whatever their scores.

    Returns:
        "metrics" (class means weighted by images, as the toolkit prints), "unweighted_mean",
        "per_class", "AP_matrix" (K, T), "AR_matrix" (K, T, M), "kept" and more, named as in the
        golden files. None where a class has no object.

    Raises:
        YoloAttnError: there are regions but no `sizes`; a detection of no known image.
    """
    check_images(gt, dets)
    kept = keep_outside_regions(gt, dets)
    return result_of(_match(gt, dets, *kept), _kept_rows(gt, dets, *kept))


def match_records(gt: GroundTruth, dets: Detections) -> MatchRecords:
    """Match all classes at all thresholds and caps; arguments and errors as `evaluate`."""
    check_images(gt, dets)
    return _match(gt, dets, *keep_outside_regions(gt, dets))


def _match(gt: GroundTruth, dets: Detections, gt_kept: Bools, det_kept: Bools) -> MatchRecords:
    gt = gt.keep(gt_kept & np.isin(gt.category, list(gt.classes)))
    dets = dets.keep(det_kept)
    place = _place_in_file(dets.image)
    scored = np.isin(dets.category, list(gt.classes))
    dets, place = dets.keep(scored), place[scored]

    numbers = np.array(list(gt.classes), np.int64)
    category = np.searchsorted(numbers, dets.category)
    group = category * len(gt.names) + dets.image
    _, rank = rank_in_group(group, dets.score)
    pairs = find_pairs(gt, dets, float(THRESHOLDS.min()))
    outcome = np.full((len(MAX_DETS), len(THRESHOLDS), len(dets.score)), NEUTRAL, np.uint8)
    for view, cap in enumerate(MAX_DETS):
        inside = place < cap
        some = inside[pairs.det]
        within = Pairs(pairs.det[some], pairs.gt[some], pairs.overlap[some])
        match = greedy_match(within, group, rank, gt.ignored, gt.ignored, THRESHOLDS)
        result = np.where(match < 0, FALSE, TRUE)
        # A dummy row keeps the index -1 valid when there is no ground truth at all.
        result[np.r_[gt.ignored, False][match] & (match >= 0)] = NEUTRAL
        outcome[view, :, inside] = result[inside]

    positives = np.zeros((1, len(gt.names), len(numbers)), np.int64)
    np.add.at(positives[0], (gt.image, np.searchsorted(numbers, gt.category)), 1)
    columns = sort_records(dets.image, category, dets.score, outcome, len(gt.names))
    return MatchRecords(
        protocol="VisDrone",
        names=tuple(gt.names),
        classes=dict(gt.classes),
        thresholds=THRESHOLDS,
        views=tuple(str(cap) for cap in MAX_DETS),
        max_dets=MAX_DETS,
        positives=positives,
        **columns,
    )


def _place_in_file(image: Ints) -> Ints:
    """Each row's place among the rows of its image."""
    _, place = rank_in_group(image, np.zeros(len(image)))
    return place


def _kept_rows(
    gt: GroundTruth, dets: Detections, gt_kept: Bools, det_kept: Bools
) -> dict[str, list[int]]:
    """For each image, the objects and detections that the ignored regions leave."""
    counts = [
        np.bincount(image[keep], minlength=len(gt.names)).tolist()
        for image, keep in ((gt.image, gt_kept), (dets.image, det_kept))
    ]
    return {name: list(pair) for name, pair in zip(gt.names, zip(*counts))}


def headline(tables: ClassTables, weighted: bool = True) -> dict[str, float | None]:
    """The toolkit's seven means in percent; None without any object.

    Args:
        tables: of VisDrone records.
        weighted: classes weigh by the images that hold them, as the toolkit does; False gives the
            plain mean over the classes that occur.
    """
    present = tables.images > 0
    if not present.any():
        return dict.fromkeys(METRICS)
    share = tables.images[present] if weighted else np.ones(int(present.sum()))
    share = share / share.sum()
    ap, recall = tables.ap[0][present], tables.recall[0][:, present]
    at50, at75 = 0, 5
    values = [ap.mean(1), ap[:, at50], ap[:, at75], *recall.mean(2)]
    return {name: float(share @ v * 100) for name, v in zip(METRICS, values)}


def metrics_of(
    records: MatchRecords, weights: npt.ArrayLike | None = None
) -> dict[str, float | None]:
    """The metrics of `evaluate` from match records, image i counted `weights[i]` times."""
    return headline(class_tables(records, weights))


def result_of(records: MatchRecords, kept: dict[str, list[int]] | None = None) -> dict[str, Any]:
    """The full result of `evaluate` from match records."""
    tables = class_tables(records)
    per_class = {}
    for c, (number, name) in enumerate(records.classes.items()):
        there = tables.images[c] > 0
        ap = tables.ap[0, c] * 100
        values = (ap.mean(), ap[0], ap[5], tables.recall[0, -1, c].mean() * 100)
        per_class[str(number)] = {
            "name": name,
            **{
                k: float(v) if there else None
                for k, v in zip(("AP", "AP50", "AP75", "AR500"), values)
            },
            "n_images": int(tables.images[c]),
            "n_gt": int(tables.positives[0, c]),
        }
    metrics = headline(tables)
    result: dict[str, Any] = {
        "protocol": "VisDrone",
        **metrics,
        "metrics": metrics,
        "unweighted_mean": headline(tables, weighted=False),
        "per_class": per_class,
        "AP_matrix": _percent(tables.ap[0]),
        "AR_matrix": _percent(np.moveaxis(tables.recall[0], 0, -1)),
        "iou_thresholds": records.thresholds.tolist(),
        "max_dets": list(records.max_dets),
        "image_order": list(records.names),
    }
    if kept is not None:
        result["kept"] = kept
    return result


def _percent(table: Floats) -> list[Any]:
    """Nested lists in percent; a class without objects scores 0, as in the toolkit's tables."""
    return (np.nan_to_num(table, nan=0.0) * 100).tolist()
