"""AP by size in `yolo val` and `yolo train`: columns of results.csv and two lines on the console.

Only for models with our blocks and for datasets that `yolo-attn convert` wrote; ``YOLO_ATTN_SIZES``
1 or 0 decides otherwise. Ultralytics' own columns of these names (save_json=True) are left alone.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from torch import nn

from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.ground_truth import (
    DatasetTruth,
    dataset_truth,
    find_sidecar,
    from_labels,
)
from yolo_attn.evaluation.notes import Warnings
from yolo_attn.evaluation.predict import image_shapes, labels_of, native_predictions

SWITCH = "YOLO_ATTN_SIZES"
# Column -> title on the console. An even number: results.png of 8.3.253 has no room for an odd one.
# mAP_small, _medium, _large are Ultralytics' names, COCO's sizes and 100 detections; the last four
# are AI-TOD's bins in px (arXiv 2110.13389), 1500 detections.
COLUMNS = {
    "metrics/mAP_COCO(B)": "all",
    "metrics/mAP_small(B)": "small",
    "metrics/mAP_medium(B)": "medium",
    "metrics/mAP_large(B)": "large",
    "metrics/mAP_2-8(B)": "2-8 px",
    "metrics/mAP_8-16(B)": "8-16 px",
    "metrics/mAP_16-32(B)": "16-32 px",
    "metrics/mAP_32-64(B)": "32-64 px",
}
OURS_ALONE = "metrics/mAP_COCO(B)"  # a name that no version of Ultralytics has
_HELD = "_yolo_attn_sizes"


@dataclass
class _Held:
    """What a validator carries from its start to its results."""

    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    truth: DatasetTruth | None = None
    dataset: Any = None
    values: dict[str, float] = field(default_factory=dict)


def init_metrics(original: FunctionType, validator: Any, model: Any) -> None:
    """``DetectionValidator.init_metrics``; decides whether this run gets the columns."""
    original(validator, model)
    before = vars(validator).pop(_HELD, None)
    if getattr(validator, "size_metrics", True) and wanted(validator.args, validator.data, model):
        held = _Held()
        if before is not None and before.dataset is validator.dataloader.dataset:
            held.truth, held.dataset = before.truth, before.dataset
        setattr(validator, _HELD, held)


def update_metrics(original: FunctionType, validator: Any, preds: Any, batch: Any) -> None:
    """``DetectionValidator.update_metrics``; keeps the predictions."""
    original(validator, preds, batch)
    held = _held(validator)
    if held is not None:
        held.predictions.update(native_predictions(validator, preds, batch))
        held.shapes.update(image_shapes(batch))


def gather_stats(original: FunctionType, validator: Any) -> None:
    """``DetectionValidator.gather_stats``; rank 0 gets the predictions of all ranks."""
    from ultralytics.utils import RANK

    original(validator)
    held = _held(validator)
    if held is None or RANK < 0:
        return
    import torch.distributed as dist

    parts: list[Any] | None = [None] * dist.get_world_size() if RANK == 0 else None
    dist.gather_object((held.predictions, held.shapes), parts, dst=0)
    for predictions, shapes in parts or ():
        held.predictions.update(predictions)
        held.shapes.update(shapes)


def get_stats(original: FunctionType, validator: Any) -> dict[str, Any]:
    """``DetectionValidator.get_stats``; adds the columns that are not there yet."""
    stats = original(validator)
    held = _held(validator)
    if held is None:
        return stats
    held.values = _scores(validator, held)
    return {**stats, **{name: v for name, v in held.values.items() if name not in stats}}


def print_results(original: FunctionType, validator: Any) -> None:
    """``DetectionValidator.print_results``; two more lines."""
    original(validator)
    held = _held(validator)
    if held is None:
        return
    from ultralytics.utils import LOGGER

    titles = "".join(f"{title:>11}" for title in COLUMNS.values())
    shown = ("-" if v < 0 else f"{v:.3g}" for v in held.values.values())
    LOGGER.info(f"{'COCO AP by size':>22}{titles}")
    LOGGER.info(f"{'':>22}{''.join(f'{v:>11}' for v in shown)}")


def save_metrics(original: FunctionType, trainer: Any, metrics: dict[str, Any]) -> None:
    """``BaseTrainer.save_metrics``; every row of results.csv has the columns of its header."""
    original(trainer, _fitting(trainer, metrics))


def wanted(args: Any, data: Any, model: Any) -> bool:
    """Whether a validation with these arguments gets the columns."""
    # Trainers of others may hold something else than a dataset YAML.
    if args.task != "detect" or not isinstance(data, Mapping) or not data.get("path"):
        return False
    switch = os.environ.get(SWITCH, "").strip().lower()
    if switch:
        return switch not in ("0", "false", "no")
    return _converted(data, _split(args, data)) or _has_blocks(model)


def _held(validator: Any) -> _Held | None:
    return vars(validator).get(_HELD)


def _split(args: Any, data: Mapping[str, Any]) -> str:
    """The split of a validation; training takes test where there is no val."""
    split = args.split or "val"
    return split if data.get(split) else "test"


def _converted(data: Mapping[str, Any], split: str) -> bool:
    """Whether `yolo-attn convert` wrote this dataset; a file of that name alone says nothing."""
    from yolo_attn.data.layout import MARK
    from yolo_attn.data.report import DATA_YAML

    if find_sidecar(data["path"], split) is None:
        return False
    try:
        with open(Path(data["path"]) / DATA_YAML, encoding="utf-8") as file:
            return file.readline().startswith(MARK)
    except (OSError, UnicodeDecodeError):
        return False


def _has_blocks(model: Any) -> bool:
    from yolo_attn.registry import block_info, list_blocks

    classes = tuple(block_info(name).cls for name in list_blocks())
    # A validation on its own wraps the model.
    parts = [part for part in (model, getattr(model, "model", None)) if isinstance(part, nn.Module)]
    return any(isinstance(module, classes) for part in parts for module in part.modules())


def _scores(validator: Any, held: _Held) -> dict[str, float]:
    """Column -> AP as a fraction, -1 without objects, as in Ultralytics' own columns."""
    from yolo_attn.evaluation.coco import COCO, TINY, evaluate

    if held.truth is None:
        held.truth, held.dataset = _truth(validator, held), validator.dataloader.dataset
    # Ultralytics also validates models of more classes than the dataset has.
    known = list(held.truth.categories)
    found = {path: rows[np.isin(rows[:, 5], known)] for path, rows in held.predictions.items()}
    dets = held.truth.detections(found)
    coco = evaluate(held.truth.gt, dets, COCO)["metrics"]
    tiny = evaluate(held.truth.gt, dets, TINY)["metrics"]
    values = [coco[name] for name in ("AP", "AP_small", "AP_medium", "AP_large")]
    values += [tiny[f"AP_{name}"] for name in TINY.bins]
    return {name: v / 100 if v >= 0 else -1.0 for name, v in zip(COLUMNS, values)}


def _truth(validator: Any, held: _Held) -> DatasetTruth:
    """Sidecar or labels; a sidecar at fault must not end a training."""
    labels, args = labels_of(validator, held.shapes), validator.args
    names = {n: name for n, name in validator.data["names"].items() if _evaluated(n, args)}
    try:
        split = _split(args, validator.data)
        return dataset_truth(validator.data["path"], split, names, labels, Warnings())
    except YoloAttnError as error:
        from ultralytics.utils import LOGGER

        LOGGER.warning(f"yolo_attn: AP by size from the label files: {error}")
        return from_labels(labels, names)


def _evaluated(number: int, args: Any) -> bool:
    return args.classes is None or number in np.atleast_1d(args.classes)


def _fitting(trainer: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics with our columns last, and only those that the file's header has.

    Last, because old versions draw results.png by the number of a column.
    """
    header = _header(trainer.csv)
    if OURS_ALONE not in header and not (
        OURS_ALONE in metrics or wanted(trainer.args, trainer.data, trainer.model)
    ):
        return metrics
    # An epoch without validation (val=False) has Ultralytics' columns as 0, and so ours.
    own = {name: metrics.get(name, 0) for name in COLUMNS}
    fitting = {name: value for name, value in metrics.items() if name not in COLUMNS}
    return {**fitting, **{n: v for n, v in own.items() if not header or n in header}}


def _header(file: Path) -> list[str]:
    try:
        with open(file, encoding="utf-8", newline="") as opened:
            return [name.strip() for name in next(csv.reader(opened), [])]
    except FileNotFoundError:
        return []
