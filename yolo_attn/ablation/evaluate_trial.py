"""Evaluate a trained trial: predictions, match records, metrics.

The only place of this folder that knows how predictions and ground truth are made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolo_attn.ablation.store import TrialFolder, write_json
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation import protocols
from yolo_attn.evaluation.boxes import Detections, GroundTruth
from yolo_attn.evaluation.records import save_records
from yolo_attn.evaluation.slicing import OVERLAP

PREDICTIONS, RECORDS, METRICS = "predictions.npz", "records.npz", "metrics.json"


def evaluate_trial(
    folder: Path,
    data: str,
    split: str,
    protocols: list[str],
    device: str | None = None,
    slice_size: int | None = None,
    slice_overlap: float = OVERLAP,
    single_cls: bool = False,
    classes: int | list[int] | None = None,
    into: str | None = None,
) -> None:
    """Predict and evaluate a trial; `write_results` says what is written.

    Args:
        folder: of the trial; its best checkpoint is evaluated at its training size.
        data: a dataset YAML.
        split: of the dataset.
        protocols: their names.
        device: as in Ultralytics.
        slice_size: side of the slices that are predicted; None: whole images.
        slice_overlap: share of a slice that its neighbour has too.
        single_cls: the training took all classes for one, so does the evaluation.
        classes: numbers of the classes that the training saw, and no others are compared.
        into: folder to write to; by default that of the trial.

    Raises:
        YoloAttnError: the checkpoint or the dataset is at fault.
    """
    from yolo_attn.evaluation.predict import predict
    from yolo_attn.evaluation.predict_sliced import predict_sliced

    best = str(TrialFolder(folder).best)
    more: dict[str, Any] = {}
    if slice_size is None:
        found = predict(
            best, data, split=split, device=device, single_cls=single_cls, classes=classes
        )
        more["ultralytics"] = {"metrics": found.ultralytics["metrics"]}
    else:
        found = predict_sliced(
            best, data, slice_size, overlap=slice_overlap, split=split, device=device
        )
        more["slicing"] = found.slicing
    more["notes"] = [*found.notes, *found.warnings.lines()]
    try:
        more["blocks"] = _use_of_blocks(best, list(found.truth.image), device)
    except YoloAttnError as error:  # images of other than three channels
        more["notes"].append(f"the use of the blocks is not measured: {error}")
    folder = folder if into is None else Path(into)
    write_results(folder, found.truth.gt, found.dets, found.truth.image, protocols, more)


def _use_of_blocks(best: str, images: list[str], device: str | None) -> list[dict[str, Any]]:
    """What the table after the training says, for every block of the checkpoint."""
    from yolo_attn.devices import torch_device
    from yolo_attn.explain import hooks, use

    subject = hooks.load(best)
    subject.model.to(torch_device(device))
    return [block.as_dict() for block in use.measure(subject, use.spread(images))[0]]


def write_results(
    folder: Path,
    truth: GroundTruth,
    dets: Detections,
    images: Mapping[str, int],
    names: list[str],
    more: Mapping[str, Any],
) -> None:
    """Write predictions.npz, records.npz and metrics.json into a trial's folder.

    Args:
        folder: of the trial.
        truth: ground truth.
        dets: detections.
        images: path of an image -> its index.
        names: protocols.
        more: entries of metrics.json beside the protocols and "errors".
    """
    from yolo_attn.evaluation.errors import error_analysis

    chosen = protocols.pick(names)
    results = protocols.evaluate(truth, dets, chosen)
    _save_arrays(
        folder / PREDICTIONS,
        paths=np.array(list(images)),
        index=np.array(list(images.values())),
        classes=np.array(json.dumps({str(k): v for k, v in truth.classes.items()})),
        **{f"gt_{key}": getattr(truth, key) for key in ("image", "boxes", "category", "ignored")},
        **{f"det_{key}": getattr(dets, key) for key in ("image", "boxes", "category", "score")},
    )
    draft = folder / f".{RECORDS}"
    save_records(draft, protocols.match_records(truth, dets, chosen))
    os.replace(draft, folder / RECORDS)
    metrics: dict[str, Any] = {
        name: {"metrics": result["metrics"], "per_class": result["per_class"]}
        for name, result in results.items()
    }
    metrics.update(more, errors=error_analysis(truth, dets))
    write_json(folder / METRICS, _plain(metrics))  # last: it says that the others are whole


def _save_arrays(path: Path, **arrays: Any) -> None:
    draft = path.with_name(f".{path.name}")
    with open(draft, "wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(draft, path)


def _plain(value: Any) -> Any:
    """JSON types only; a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
