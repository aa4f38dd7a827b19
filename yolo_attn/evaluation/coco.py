"""COCO scores with any size bins and caps, computed by faster-coco-eval; and their match records.

Lin et al., "Microsoft COCO" (ECCV 2014, arXiv 1405.0312); tiny bins: AI-TOD (ICPR 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.boxes import (
    Detections,
    Floats,
    GroundTruth,
    box_area,
    check_images,
)
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

THRESHOLDS = np.linspace(0.5, 0.95, 10)
EVERY = (0.0, 1e10)  # px^2, the bin "all"
LARGEST = 1e5  # px, COCO's upper edge of "large"
# Names of the bins in COCO and AI-TOD, by their edges in px.
BIN_NAMES: dict[tuple[float, float], str] = {
    (0, 8): "verytiny",
    (2, 8): "verytiny",
    (8, 16): "tiny",
    (16, 32): "small",
    (32, 64): "medium",
    (0, 32): "small",
    (32, 96): "medium",
    (96, LARGEST): "large",
    (32, LARGEST): "medium",
}


@dataclass(frozen=True)
class CocoRules:
    """One variant of the protocol: its name, caps (per image and class) and size bins.

    `edges` are in px (square root of the area); a box on an edge belongs to both bins. With
    `drop_covered`, boxes that ignored regions cover are dropped, as in the VisDrone protocol.
    """

    name: str
    max_dets: tuple[int, ...] = (1, 10, 100)
    edges: tuple[float, ...] = (0, 32, 96, LARGEST)
    drop_covered: bool = False

    def __post_init__(self) -> None:
        caps, edges = tuple(sorted(set(self.max_dets))), tuple(self.edges)
        if not caps or caps[0] < 1:
            raise YoloAttnError(
                f"max_dets {self.max_dets}: accepted are whole numbers of 1 or more"
            )
        low = all(a < b for a, b in zip(edges, edges[1:]))
        if len(edges) < 2 or not low or edges[0] < 0 or not np.isfinite(edges).all():
            raise YoloAttnError(
                f"bins {list(edges)}: accepted are two or more rising edges in px, e.g. 0,32,96"
            )
        object.__setattr__(self, "max_dets", caps)
        object.__setattr__(self, "edges", edges)

    @property
    def bins(self) -> dict[str, tuple[float, float]]:
        """Name -> (lowest, highest) area in px^2; the published names if all bins have one."""
        pairs = list(zip(self.edges[:-1], self.edges[1:]))
        names = [BIN_NAMES.get(pair, "") for pair in pairs]
        if not all(names):
            names = [f"{a:g}+" if b >= LARGEST else f"{a:g}-{b:g}" for a, b in pairs]
        return {name: (a**2, b**2) for name, (a, b) in zip(names, pairs)}


COCO = CocoRules("COCO")
COCO_500 = CocoRules("COCO-500", (1, 10, 500), drop_covered=True)
TINY = CocoRules("tiny", (1, 100, 1500), (2, 8, 16, 32, 64))


def evaluate(gt: GroundTruth, dets: Detections, rules: CocoRules = COCO) -> dict[str, Any]:
    """Score detections with COCOeval's rules; all values in percent, unrounded, -1 without objects.

    `gt.ignored` are crowds. COCOeval knows no ignored regions: they change nothing unless
    `rules.drop_covered`. "ignored" in the result says what was done.

    Args:
        gt: `area` decides the size bin.
        dets: of equal scores in an image, the first comes first.
        rules: caps, bins, and what ignored regions do.

    Returns:
        The metrics, "per_class", "AP50_by_area", "AP_per_iou" and "AP_per_maxDets", named as by
        pycocotools ("AR_10" is the recall at 10 detections), and "metrics" with the means alone.

    Raises:
        YoloAttnError: `rules.drop_covered`, and there are regions but no `sizes`; a detection of
            no known image.
    """
    check_images(gt, dets)
    gt, dets, note = _without_covered(gt, dets, rules)
    tables = _faster_tables(gt, dets, rules)
    return {**_result(tables, gt.classes, rules), "ignored": note}


def match_records(gt: GroundTruth, dets: Detections, rules: CocoRules = COCO) -> MatchRecords:
    """Match all classes at all thresholds and size bins; arguments and errors as `evaluate`."""
    check_images(gt, dets)
    gt, dets, _ = _without_covered(gt, dets, rules)
    numbers = np.array(list(gt.classes), np.int64)
    gt = gt.keep(np.isin(gt.category, numbers))
    dets = dets.keep(np.isin(dets.category, numbers))
    category = np.searchsorted(numbers, dets.category)
    group = category * len(gt.names) + dets.image
    _, rank = rank_in_group(group, dets.score)
    capped = rank < rules.max_dets[-1]
    pairs = find_pairs(gt, dets, float(THRESHOLDS.min()))
    some = capped[pairs.det]
    pairs = Pairs(pairs.det[some], pairs.gt[some], pairs.overlap[some])

    views = {"all": EVERY, **rules.bins}
    outcome = np.empty((len(views), len(THRESHOLDS), len(dets.score)), np.uint8)
    positives = np.zeros((len(views), len(gt.names), len(numbers)), np.int64)
    gt_class = np.searchsorted(numbers, gt.category)
    for v, (low, high) in enumerate(views.values()):
        ignored = gt.ignored | (gt.area < low) | (gt.area > high)
        match = greedy_match(pairs, group, rank, ignored, gt.ignored, THRESHOLDS)
        outcome[v] = _outcomes(match, ignored, box_area(dets.boxes), (low, high), capped).T
        np.add.at(positives[v], (gt.image[~ignored], gt_class[~ignored]), 1)
    columns = sort_records(dets.image, category, dets.score, outcome, len(gt.names))
    return MatchRecords(
        protocol=rules.name,
        names=tuple(gt.names),
        classes=dict(gt.classes),
        thresholds=THRESHOLDS,
        views=tuple(views),
        max_dets=rules.max_dets,
        positives=positives,
        **columns,
    )


def _outcomes(
    match: npt.NDArray, ignored: npt.NDArray, area: Floats, bin_: Sequence[float], capped
) -> npt.NDArray:
    """(n, T) true, false or neutral from the matched rows of the ground truth."""
    # A dummy row keeps the index -1 valid when there is no ground truth at all.
    neutral = np.r_[ignored, False][match] & (match >= 0)
    out = np.where(match >= 0, TRUE, FALSE)
    outside = (area < bin_[0]) | (area > bin_[1])
    out[neutral | ((match < 0) & outside[:, None]) | ~capped[:, None]] = NEUTRAL
    return out


def headline(
    tables: ClassTables, views: Sequence[str], max_dets: Sequence[int]
) -> dict[str, float]:
    """The means in percent under pycocotools' names; -1 where no class has objects."""
    at50, at75 = 0, 5
    ap, recall = tables.ap, tables.recall
    out = {"AP": ap[0], "AP50": ap[0, :, at50], "AP75": ap[0, :, at75]}
    out.update({f"AP_{name}": ap[v] for v, name in enumerate(views) if v})
    out.update({f"AR_{cap}": recall[0, m] for m, cap in enumerate(max_dets)})
    out.update({f"AR_{name}": recall[v, -1] for v, name in enumerate(views) if v})
    return {name: _mean(values) for name, values in out.items()}


def metrics_of(records: MatchRecords, weights: npt.ArrayLike | None = None) -> dict[str, float]:
    """The metrics of `evaluate` from match records, image i counted `weights[i]` times."""
    return headline(class_tables(records, weights), records.views, records.max_dets)


def _mean(values: Floats) -> float:
    valid = values[~np.isnan(values)]
    return float(valid.mean() * 100) if valid.size else -1.0


def _result(tables: _FasterTables, classes: Mapping[int, str], rules: CocoRules) -> dict[str, Any]:
    views = ("all", *rules.bins)
    metrics = headline(tables.largest, views, rules.max_dets)
    ap, recall = tables.largest.ap, tables.largest.recall
    per_class = {}
    for c, (number, name) in enumerate(classes.items()):
        row = {"AP": ap[0, c], "AP50": ap[0, c, 0], "AR": recall[0, -1, c]}
        row.update({f"AP_{view}": ap[v, c] for v, view in enumerate(views) if v})
        per_class[str(number)] = {
            "name": name,
            **{k: _mean(np.atleast_1d(v)) for k, v in row.items()},
        }
    return {
        "protocol": rules.name,
        **metrics,
        "metrics": metrics,
        "per_class": per_class,
        "AP50_by_area": {name: _mean(ap[v, :, 0]) for v, name in enumerate(views)},
        "AP_per_iou": [_mean(ap[0, :, t]) for t in range(len(THRESHOLDS))],
        "AP_per_maxDets": {
            str(cap): _mean(tables.by_cap[m]) for m, cap in enumerate(rules.max_dets)
        },
        "params": {
            "maxDets": list(rules.max_dets),
            "areaRng": {name: list(edges) for name, edges in rules.bins.items()},
        },
    }


@dataclass(frozen=True)
class _FasterTables:
    largest: ClassTables  # at the largest cap
    by_cap: Floats  # (M, K, T) AP of all sizes


def _without_covered(
    gt: GroundTruth, dets: Detections, rules: CocoRules
) -> tuple[GroundTruth, Detections, dict[str, Any]]:
    gt_kept, det_kept = np.ones(len(gt.boxes), bool), np.ones(len(dets.boxes), bool)
    if rules.drop_covered:
        gt_kept, det_kept = keep_outside_regions(gt, dets)
    done = (
        "boxes covered by ignored regions to a half or more are dropped"
        if rules.drop_covered
        else "ignored regions change nothing"
    )
    note = {
        "rule": f"{done}; ignored boxes are crowds",
        "regions": len(gt.region_boxes),
        "objects_dropped": int((~gt_kept).sum()),
        "detections_dropped": int((~det_kept).sum()),
        "crowds": int(gt.ignored[gt_kept].sum()),
    }
    return gt.keep(gt_kept), dets.keep(det_kept), note


def _faster_tables(gt: GroundTruth, dets: Detections, rules: CocoRules) -> _FasterTables:
    import faster_coco_eval

    judge = faster_coco_eval.COCOeval_faster(
        _coco(faster_coco_eval.COCO(), gt, gt),
        _coco(faster_coco_eval.COCO(), gt, dets, score=dets.score),
        "bbox",
        print_function=_silent,
    )
    views = {"all": EVERY, **rules.bins}
    judge.params.maxDets = list(rules.max_dets)
    judge.params.areaRng = [list(edges) for edges in views.values()]
    judge.params.areaRngLbl = list(views)
    judge.evaluate()
    judge.accumulate()
    # (T, R, K, A, M) and (T, K, A, M); -1 where a class has no objects.
    precision = np.asarray(judge.eval["precision"], np.float64)
    recall = np.asarray(judge.eval["recall"], np.float64)
    ap = np.where(precision[:, 0] < 0, np.nan, precision.mean(1)).transpose(2, 3, 1, 0)
    recall = np.where(recall < 0, np.nan, recall).transpose(2, 3, 1, 0)
    counts = np.zeros((len(views), len(gt.classes)))
    return _FasterTables(ClassTables(ap[:, -1], recall, counts, counts[0]), ap[0])


def _silent(*_: object) -> None:
    """The evaluator reports its progress line by line otherwise."""


def _coco(coco: Any, gt: GroundTruth, boxes: GroundTruth | Detections, score=None) -> Any:
    """Fill a COCO object; ids start at 1 because a match with id 0 would count as none."""
    area = box_area(boxes.boxes) if score is not None else gt.area
    crowd = np.zeros(len(area), int) if score is not None else gt.ignored.astype(int)
    columns = (boxes.image + 1, boxes.category, boxes.boxes, area, crowd)
    rows = zip(*(column.tolist() for column in columns))
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    annotations = [{"id": i, **dict(zip(names, row))} for i, row in enumerate(rows, 1)]
    if score is not None:
        for annotation, value in zip(annotations, score.tolist()):
            annotation["score"] = value
    coco.dataset = {
        "images": [{"id": i} for i in range(1, len(gt.names) + 1)],
        "categories": [{"id": k, "name": v} for k, v in gt.classes.items()],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco
