"""Match records: what a bootstrap over images needs to recompute AP without matching again."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.boxes import Floats, Ints
from yolo_attn.evaluation.matching import rank_in_group

FALSE, TRUE, NEUTRAL = 0, 1, 2  # values of `outcome`
POINTS = np.linspace(0, 1, 101)  # recall points of COCO's AP
FORMAT = 1


@dataclass(frozen=True)
class MatchRecords:
    """Every scored detection with its outcome, sorted by class and then by descending score.

    Attributes:
        protocol: "VisDrone" or the name of a COCO variant; it decides the AP and the class mean.
        names: (images,) names.
        classes: category number -> name, the K scored classes in order.
        thresholds: (T,) IoU thresholds.
        views: V names: size bins (COCO; the first is "all"), caps on detections (VisDrone).
        max_dets: caps on detections, ascending.
        image: (n,) index into `names`.
        category: (n,) index into `classes`, ascending.
        score: (n,) descending in each class; equal scores in the protocol's order.
        rank: (n,) place of the detection in its image and class.
        outcome: (V, T, n) 0 false, 1 true, 2 neutral (ignored, or beyond the cap).
        positives: (V, images, K) boxes in the recall's denominator; V is 1 for VisDrone.
    """

    protocol: str
    names: tuple[str, ...]
    classes: dict[int, str]
    thresholds: Floats
    views: tuple[str, ...]
    max_dets: tuple[int, ...]
    image: Ints
    category: Ints
    score: Floats
    rank: Ints
    outcome: npt.NDArray[np.uint8]
    positives: Ints

    @property
    def is_visdrone(self) -> bool:
        """Whether AP is the area at all points and classes weigh by their images."""
        return self.protocol == "VisDrone"


@dataclass(frozen=True)
class ClassTables:
    """AP and recall by class, as fractions; NaN for a class without objects.

    Attributes:
        ap: (V, K, T); for VisDrone (1, K, T), at the largest cap.
        recall: (V, M, K, T) by view and cap; for VisDrone (1, M, K, T).
        positives: (V, K) boxes in the denominator (weighted).
        images: (K,) images that hold the class (weighted).
    """

    ap: Floats
    recall: Floats
    positives: Floats
    images: Floats


def sort_records(
    image: Ints, category: Ints, score: Floats, outcome: npt.NDArray[np.uint8], images: int
) -> dict[str, npt.NDArray]:
    """The columns of `MatchRecords` from detections in file order."""
    _, rank = rank_in_group(category * images + image, score)
    order = np.lexsort((rank, image, -score, category))
    return {
        "image": image[order],
        "category": category[order],
        "score": score[order],
        "rank": rank[order],
        "outcome": outcome[..., order],
    }


def class_tables(
    records: MatchRecords,
    weights: npt.ArrayLike | None = None,
    views: Sequence[int] | None = None,
) -> ClassTables:
    """AP and recall of every class when image i counts `weights[i]` times.

    Integer weights give exactly what the images repeated that often (side by side) would give.
    Fractional weights are rounded as in `summable`; equal scores inside an image then keep their
    order.

    Args:
        records: the matches.
        weights: (images,) non-negative; by default 1.
        views: the size bins to compute; by default all. VisDrone has none.
    """
    w = _weights(records, weights)
    k, t, caps = len(records.classes), len(records.thresholds), len(records.max_dets)
    chosen = range(len(records.views)) if views is None or records.is_visdrone else views
    shown = 1 if records.is_visdrone else len(chosen)
    ap, recall = np.full((shown, k, t), np.nan), np.full((shown, caps, k, t), np.nan)
    positives = np.einsum("i,vik->vk", w, records.positives.astype(np.float64))
    edges = np.searchsorted(records.category, np.arange(k + 1))
    for c in range(k):
        rows, weight = _expand(records, slice(edges[c], edges[c + 1]), w)
        if records.is_visdrone:
            if positives[0, c] > 0:
                ap[0, c], recall[0, :, c] = _visdrone(records, rows, weight, positives[0, c])
            continue
        for at, v in enumerate(chosen):
            if positives[v, c] > 0:
                ap[at, c], recall[at, :, c] = _coco(records, v, rows, weight, positives[v, c])
    present = (records.positives > 0).any(0)
    return ClassTables(ap, recall, positives, w @ present.astype(np.float64))


def _visdrone(
    records: MatchRecords, rows: Ints, weight: Floats, positives: float
) -> tuple[Floats, Floats]:
    """(T,) AP at the largest cap and (M, T) recall of one class; the views are the caps."""
    outcome = records.outcome[:, :, rows]
    ap = average_precision(outcome[-1], weight, positives, all_points)
    return ap, (outcome == TRUE) @ weight / positives


def _coco(
    records: MatchRecords, view: int, rows: Ints, weight: Floats, positives: float
) -> tuple[Floats, Floats]:
    """(T,) AP at the largest cap and (M, T) recall of one class and size bin."""
    outcome = records.outcome[view][:, rows]
    ap = average_precision(outcome, weight, positives, hundred_points)
    # A smaller cap keeps the first detections of each image, whose matches are the same.
    inside = [np.where(records.rank[rows] < cap, weight, 0.0) for cap in records.max_dets]
    return ap, np.stack([(outcome == TRUE) @ w for w in inside]) / positives


def _weights(records: MatchRecords, weights: npt.ArrayLike | None) -> Floats:
    if weights is None:
        return np.ones(len(records.names))
    w = np.asarray(weights, np.float64)
    if w.shape != (len(records.names),) or not np.isfinite(w).all() or (w < 0).any():
        raise YoloAttnError(
            f"weights of shape {w.shape} for {len(records.names)} images (accepted: one finite "
            "number of at least 0 an image)"
        )
    return summable(records, w)


def summable(records: MatchRecords, weights: Floats) -> Floats:
    """Weights (..., images) rounded so far that every sum over the records is exact.

    COCO compares recall with 101 fixed values. Sums of fractions depend in their last bit on the
    order in which a processor adds, and a recall of 1 would miss its point by it; a tolerance
    there would give other values than COCOeval's, which compares exactly (7 of 100 boxes do not
    reach its 0.07). As multiples of one power of two weights have sums without rounding. Whole
    numbers stay as they are; others change by less than 1e-15 of the largest weight times the
    number of rows.
    """
    terms = max(len(records.names), len(records.image), int(records.positives.sum((1, 2)).max()), 1)
    largest = weights.max(-1, keepdims=True, initial=0)
    _, exponent = np.frexp(largest * terms)
    # 52 bits hold any sum, with one to spare for weights that are rounded up.
    unit = np.ldexp(1.0, np.clip(exponent - 52, -1074, 0))
    return np.round(weights / unit) * unit


def _expand(records: MatchRecords, rows: slice, w: Floats) -> tuple[Ints, Floats]:
    """Rows of one class in order, with their weights.

    Where detections of one image share a score, its copies follow each other as whole blocks;
    one weighted row for each would put all copies of the first before those of the second.
    """
    index = np.arange(rows.start, rows.stop)
    weight = w[records.image[rows]]
    alive = weight > 0
    index, weight = index[alive], weight[alive]
    if not len(index) or (weight % 1).any():
        return index, weight
    image, score = records.image[index], records.score[index]
    new = np.r_[True, (image[1:] != image[:-1]) | (score[1:] != score[:-1])]
    start = np.flatnonzero(new)
    length = np.diff(np.r_[start, len(index)])
    copies = weight[start].astype(np.int64)
    tied = (length > 1) & (copies > 1)
    if not tied.any():
        return index, weight
    repeated = np.where(tied, length * copies, length)
    offset = np.arange(repeated.sum()) - np.repeat(np.cumsum(repeated) - repeated, repeated)
    at = np.repeat(start, repeated) + offset % np.repeat(length, repeated)
    return index[at], np.where(np.repeat(tied, repeated), 1.0, weight[at])


def average_precision(
    outcome: npt.NDArray[np.uint8],
    weight: Floats,
    positives: float,
    area: Callable[[Floats, Floats], Floats],
) -> Floats:
    """(T,) AP of one class and view.

    Args:
        outcome: (T, n) in descending score.
        weight: (n,) how often each detection counts.
        positives: boxes in the recall's denominator, above 0.
        area: `all_points` or `hundred_points`.
    """
    true = np.cumsum(np.where(outcome == TRUE, weight, 0.0), 1)
    counted = true + np.cumsum(np.where(outcome == FALSE, weight, 0.0), 1)
    precision = np.divide(true, counted, out=np.zeros_like(true), where=counted > 0)
    # From the right, the best precision at this recall or a higher one.
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    return area(true / positives, precision)


def all_points(recall: Floats, precision: Floats) -> Floats:
    """VOC2010 (VisDrone): the area under the (T, n) curve, precision made non-increasing."""
    step = np.diff(recall, axis=1, prepend=0)
    return (step * precision).sum(1)


def hundred_points(recall: Floats, precision: Floats) -> Floats:
    """COCO: mean precision at recall 0, 0.01 ... 1 of the (T, n) curve; 0 beyond its end."""
    out = np.zeros(len(recall))
    for t, (r, p) in enumerate(zip(recall, precision)):
        at = np.searchsorted(r, POINTS, side="left")
        out[t] = p[at[at < len(p)]].sum() / len(POINTS)
    return out


def save_records(path: str | Path, records: Mapping[str, MatchRecords]) -> None:
    """Write the records of several protocols into one compressed npz.

    Raises:
        YoloAttnError: the file cannot be written.
    """
    arrays: dict[str, Any] = {}
    for key, record in records.items():
        for name, value in _columns(record).items():
            arrays[f"{key}/{name}"] = value
        meta = {
            "format": FORMAT,
            "protocol": record.protocol,
            "names": list(record.names),
            "classes": {str(k): v for k, v in record.classes.items()},
            "views": list(record.views),
            "max_dets": list(record.max_dets),
        }
        arrays[f"{key}/meta"] = np.array(json.dumps(meta))
    try:
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise YoloAttnError(f"{path}: cannot be written ({error.strerror})") from error


def load_records(path: str | Path) -> dict[str, MatchRecords]:
    """Read what `save_records` wrote.

    Raises:
        YoloAttnError: not such a file, or one of another format version.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {
                name[: -len("/meta")]: _load_one(file, name[: -len("meta")])
                for name in file.files
                if name.endswith("/meta")
            }
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise YoloAttnError(
            f"{path}: not match records that can be read ({error}); write them again with "
            "`yolo-attn evaluate --records`"
        ) from error


def _load_one(file: Mapping[str, npt.NDArray], prefix: str) -> MatchRecords:
    meta = json.loads(str(file[f"{prefix}meta"]))
    if meta["format"] != FORMAT:
        raise ValueError(f"format {meta['format']}, this version reads {FORMAT}")
    columns = {name: file[prefix + name] for name in _array_names()}
    for name in ("image", "category", "rank", "positives"):
        columns[name] = columns[name].astype(np.int64)
    return MatchRecords(
        protocol=meta["protocol"],
        names=tuple(meta["names"]),
        classes={int(k): v for k, v in meta["classes"].items()},
        views=tuple(meta["views"]),
        max_dets=tuple(meta["max_dets"]),
        **columns,
    )


def _columns(record: MatchRecords) -> dict[str, npt.NDArray]:
    small = {"image": np.int32, "category": np.int16, "rank": np.int32, "positives": np.int32}
    return {
        name: getattr(record, name).astype(small.get(name, getattr(record, name).dtype))
        for name in _array_names()
    }


def _array_names() -> list[str]:
    text = {"protocol", "names", "classes", "views", "max_dets"}
    return [f.name for f in fields(MatchRecords) if f.name not in text]
