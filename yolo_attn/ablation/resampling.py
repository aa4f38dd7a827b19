"""AP of many bootstrap draws at once, from match records: weighted sums, nothing matched again.

Efron, "Bootstrap Methods: Another Look at the Jackknife" (Annals of Statistics 1979).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.boxes import Floats, Ints
from yolo_attn.evaluation.records import NEUTRAL, POINTS, TRUE, MatchRecords, summable

CELLS = 2_000_000  # draws times detections that are computed together: they fit the cache
AT = {"AP50": 0.5, "AP75": 0.75}


def multinomial_weights(images: int, draws: int, seed: int = 0) -> Floats:
    """(draws, images) how often each image is drawn when `images` are drawn with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), draws).astype(np.float64)


def metric_names(records: MatchRecords) -> list[str]:
    """The metrics that `metric_draws` knows for these records: AP, AP50, AP75 and the size bins."""
    at = [name for name, iou in AT.items() if np.isclose(records.thresholds, iou).any()]
    bins = [] if records.is_visdrone else [f"AP_{view}" for view in records.views[1:]]
    return ["AP", *at, *bins]


def metric_draws(
    records: MatchRecords, weights: Floats, metrics: Sequence[str] | None = None
) -> dict[str, Floats]:
    """Metrics of each draw in percent; a draw without any object gives NaN.

    Equal to `protocols.metrics_of(records, weights[b])`, except that equal scores inside an image
    keep their order when the image counts several times.

    Args:
        records: the matches of one trial.
        weights: (draws, images) non-negative.
        metrics: some of `metric_names`; by default all.

    Returns:
        Metric -> (draws,).

    Raises:
        YoloAttnError: the weights do not fit the images, or a metric is unknown.
    """
    known = metric_names(records)
    names = list(known if metrics is None else metrics)
    for name in names:
        if name not in known:
            raise YoloAttnError(
                f"metric {name!r} is not in these {records.protocol} records (accepted: "
                f"{', '.join(known)})"
            )
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 2 or weights.shape[1] != len(records.names):
        raise YoloAttnError(
            f"weights of shape {weights.shape} for {len(records.names)} images (accepted: one row "
            "a draw, one number an image)"
        )
    weights = summable(records, weights)
    cells = _cells(records, names)
    largest = int(np.bincount(records.category, minlength=1).max(initial=1)) or 1
    step = max(1, CELLS // largest)
    blocks = [weights[i : i + step] for i in range(0, len(weights), step)]
    if len(blocks) == 1:
        parts = [_block(records, blocks[0], cells)]
    else:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            parts = list(pool.map(lambda block: _block(records, block, cells), blocks))
    return {
        name: np.concatenate([part[name] for part in parts]) if parts else np.zeros(0)
        for name in names
    }


def _cells(records: MatchRecords, names: Sequence[str]) -> dict[str, tuple[int, list[int]]]:
    """Metric -> (view, thresholds) whose mean over classes and thresholds it is."""
    every, cells = list(range(len(records.thresholds))), {}
    whole = len(records.views) - 1 if records.is_visdrone else 0  # VisDrone: the largest cap
    for name in names:
        if name in AT:
            cells[name] = (whole, [int(np.argmin(abs(records.thresholds - AT[name])))])
        elif name == "AP":
            cells[name] = (whole, every)
        else:
            cells[name] = (records.views.index(name[len("AP_") :]), every)
    return cells


def _block(
    records: MatchRecords, weights: Floats, cells: dict[str, tuple[int, list[int]]]
) -> dict[str, Floats]:
    needed: dict[int, set[int]] = {}
    for view, thresholds in cells.values():
        needed.setdefault(view, set()).update(thresholds)
    k, t, b = len(records.classes), len(records.thresholds), len(weights)
    edges = np.searchsorted(records.category, np.arange(k + 1))
    ap = {view: np.full((k, t, b), np.nan) for view in needed}
    for view, wanted in needed.items():
        counts = records.positives[0 if records.is_visdrone else view].astype(np.float64)
        positives = weights @ counts  # (b, k)
        for c in range(k):
            if not counts[:, c].any():
                continue
            rows = slice(edges[c], edges[c + 1])
            _class_ap(records, view, rows, weights, positives[:, c], sorted(wanted), ap[view][c])
    share = None
    if records.is_visdrone:  # classes weigh by the images that hold them
        share = weights @ (records.positives > 0).any(0).astype(np.float64)
    return {
        name: _class_mean(ap[view][:, thresholds], share)
        for name, (view, thresholds) in cells.items()
    }


def _class_mean(ap: Floats, share: Floats | None) -> Floats:
    """(b,) percent from (k, t, b); classes without an object in a draw are NaN and left out."""
    by_class = ap.mean(1)  # NaN for a class without objects, at all thresholds alike
    there = ~np.isnan(by_class)
    weight = there.astype(np.float64) if share is None else share.T * there
    total = weight.sum(0)
    summed = (np.where(there, by_class, 0.0) * weight).sum(0)
    return np.divide(100 * summed, total, out=np.full(len(total), np.nan), where=total > 0)


def _class_ap(
    records: MatchRecords,
    view: int,
    rows: slice,
    weights: Floats,
    positives: Floats,
    thresholds: Sequence[int],
    out: Floats,
) -> None:
    """Fill `out` (t, b) with one class's AP of each draw.

    Recall rises, and the precision envelope is attained, only at true positives: the curve is
    computed at those rows alone.
    """
    outcome = records.outcome[view, :, rows]
    # Rows that no threshold counts are left out; those that some do not count are taken off below.
    used = np.flatnonzero((outcome[list(thresholds)] != NEUTRAL).any(0))
    last = np.flatnonzero((outcome[:, used] == TRUE).any(0))
    used = used[: last[-1] + 1] if len(last) else used[:0]  # nothing counts after the last hit
    outcome, image = outcome[:, used], records.image[rows][used]
    drawn = weights.take(image, axis=1)  # (b, n)
    seen = np.cumsum(drawn, axis=1)
    area = _area_all_points if records.is_visdrone else _area_hundred_points
    there = positives > 0
    safe = np.where(there, positives, 1.0)
    for t in thresholds:
        hits = np.flatnonzero(outcome[t] == TRUE)
        if not len(hits):
            out[t] = np.where(there, 0.0, np.nan)
            continue
        true = np.cumsum(drawn.take(hits, axis=1), axis=1)
        counted = seen.take(hits, axis=1) - _neutral_before(outcome[t], hits, drawn)
        precision = np.divide(true, counted, out=np.zeros_like(true), where=counted > 0)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        true /= safe[:, None]
        out[t] = np.where(there, area(true, precision), np.nan)


def _neutral_before(outcome: Ints, hits: Ints, drawn: Floats) -> Floats | float:
    """(b, hits) weight of the neutral rows before each hit."""
    neutral = np.flatnonzero(outcome == NEUTRAL)
    if not len(neutral):
        return 0.0
    summed = np.zeros((len(drawn), len(neutral) + 1))
    np.cumsum(drawn.take(neutral, axis=1), axis=1, out=summed[:, 1:])
    return summed.take(np.searchsorted(neutral, hits), axis=1)


def _area_all_points(recall: Floats, precision: Floats) -> Floats:
    """(b,) area under the curves (VOC2010, VisDrone)."""
    step = np.diff(recall, axis=1, prepend=0.0)
    return np.einsum("bn,bn->b", step, precision)


def _area_hundred_points(recall: Floats, precision: Floats) -> Floats:
    """(b,) mean precision at recall 0, 0.01 ... 1 (COCO)."""
    # How many recall points each row has reached, by the very comparisons of a search.
    reached = np.minimum((recall * 100).astype(np.int64), 100)
    reached -= POINTS[reached] > recall
    reached += (reached < 100) & (POINTS[np.minimum(reached + 1, 100)] <= recall)
    gained = np.diff(reached + 1, axis=1, prepend=0)
    return np.einsum("bn,bn->b", gained.astype(np.float64), precision) / len(POINTS)
