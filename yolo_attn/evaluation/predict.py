"""Predictions of a checkpoint through Ultralytics' own validator, as arrays.

With predict_sliced.py the only module of this folder that knows Ultralytics.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yolo_attn.devices import parse
from yolo_attn.devices import torch_device as torch_device  # its name here is public
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.boxes import Detections
from yolo_attn.evaluation.ground_truth import DatasetTruth, dataset_truth
from yolo_attn.evaluation.notes import Warnings

CONFIDENCE, NMS_IOU = 0.001, 0.7  # what `yolo val` takes by default
ONE_CLASS = "item"  # what Ultralytics calls it with single_cls
MAX_DET = 500  # an image; Ultralytics' 300 cut dense scenes


@dataclass(frozen=True)
class Prediction:
    """What a model found in a split, and what there is.

    Attributes:
        truth: ground truth of the images.
        dets: detections, in an image by descending score.
        ultralytics: what `yolo val` prints: "metrics" in percent (AP50, AP75, AP and the
            precision P and recall R at the best F1), and "per_class"; empty for slices.
        notes: how the detections were made, for a person.
        warnings: what was odd.
        slicing: for slices, their size and overlap, and what an image costs
            (`slicing.Sliced.cost`); else empty.
    """

    truth: DatasetTruth
    dets: Detections
    ultralytics: dict[str, Any]
    notes: list[str]
    warnings: Warnings = field(default_factory=Warnings)
    slicing: dict[str, Any] = field(default_factory=dict)


def predict(
    model: str,
    data: str,
    *,
    split: str = "val",
    imgsz: int | None = None,
    max_det: int = MAX_DET,
    batch: int = 16,
    device: str | None = None,
    single_cls: bool = False,
    classes: int | Sequence[int] | None = None,
) -> Prediction:
    """Run a model on a split of a dataset as `yolo val` does.

    Args:
        model: a checkpoint or an exported model, ours or stock, for detection.
        data: a dataset YAML.
        split: train, val or test.
        imgsz: side of the input in pixels; by default that of the training, as in `yolo val`.
        max_det: detections an image at most.
        batch: images at once.
        device: as in Ultralytics; by default the first GPU, else the CPU.
        single_cls: take all classes for one, as a training with that argument does.
        classes: numbers of the only classes that count, as in such a training.

    Raises:
        YoloAttnError: an unknown device; a model or dataset that cannot be loaded, whose classes
            differ in number, or whose sidecar does not fit.
    """
    parse(device)
    with output_on_stderr():
        from yolo_attn.data.stats_read import load_dataset

        content = load_dataset(data)
        check_split(content, data, split)
        kept = seen_classes(content, data, single_cls, classes)
        more = {} if kept is None else {"single_cls": single_cls, "classes": list(kept)}
        validator = _validate(model, data, split, imgsz, max_det, batch, device, more)
    warnings = Warnings()
    names = {0: ONE_CLASS} if single_cls else dict(validator.data["names"])
    compare_names(names, dict(validator.names), warnings)
    labels = labels_of(validator, validator.shapes)
    given = names if single_cls else content["names"]
    truth = dataset_truth(content["path"], split, given, labels, warnings, content["names"], kept)
    found = validator.found
    if kept is not None:  # the model may know, and find, more classes than those that count
        found = {p: rows[np.isin(rows[:, 5], list(truth.categories))] for p, rows in found.items()}
    dets = truth.detections(found)
    removal = "no NMS (end to end)" if getattr(validator, "end2end", False) else f"NMS {NMS_IOU}"
    notes = [
        f"predictions as of `yolo val` at imgsz={validator.args.imgsz}: confidence {CONFIDENCE}, "
        f"{removal}, at most {max_det} detections an image (--max-det), boxes in pixels of the "
        "original images",
        source_note(truth),
    ]
    return Prediction(truth, dets, _ultralytics(validator, truth), notes, warnings)


def seen_classes(
    content: Mapping[str, Any], data: str, single_cls: bool, classes: int | Sequence[int] | None
) -> list[int] | None:
    """Numbers of the dataset's classes that a training with these arguments sees; None: all.

    Raises:
        YoloAttnError: a number that the dataset does not have.
    """
    if classes is None:
        return list(content["names"]) if single_cls else None
    kept = [classes] if isinstance(classes, int) else [int(number) for number in classes]
    for number in kept:
        if number not in content["names"]:
            raise YoloAttnError(
                f"classes={number}: {data} has no class of that number (it has 0 to "
                f"{len(content['names']) - 1})"
            )
    return sorted(set(kept))


def image_paths(data: str, split: str) -> list[str]:
    """The images of a split in Ultralytics' order.

    Raises:
        YoloAttnError: a dataset that cannot be loaded or lacks the split.
    """
    from yolo_attn.data.stats_read import list_images, load_dataset

    content = load_dataset(data)
    check_split(content, data, split)
    return list_images(content[split], f"{data}: {split}")


def native_predictions(validator: Any, preds: Any, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    """A batch's predictions in pixels of the original images.

    Args:
        validator: an Ultralytics `DetectionValidator`.
        preds: what its `update_metrics` gets.
        batch: likewise.

    Returns:
        {image path: (n, 6) x1, y1, x2, y2, score, class}.
    """
    import torch

    found = {}
    for i, pred in enumerate(preds):
        placed = validator._prepare_batch(i, batch)
        if hasattr(validator, "scale_preds"):  # in 8.3.253, not yet in 8.3.100
            copy = {name: column.clone() for name, column in pred.items()}
            scaled = validator.scale_preds(validator._prepare_pred(copy), placed)
        else:
            copy = (
                pred.clone() if hasattr(pred, "clone") else {k: v.clone() for k, v in pred.items()}
            )
            scaled = validator._prepare_pred(copy, placed)
        if isinstance(scaled, dict):
            columns = (scaled["bboxes"], scaled["conf"][:, None], scaled["cls"][:, None])
            scaled = torch.cat([column.float() for column in columns], 1)
        found[str(batch["im_file"][i])] = scaled[:, :6].double().cpu().numpy()
    return found


def image_shapes(batch: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Image path -> height and width of the original image, of a batch."""
    return {
        str(path): (int(shape[0]), int(shape[1]))
        for path, shape in zip(batch["im_file"], batch["ori_shape"])
    }


def labels_of(validator: Any, shapes: Mapping[str, tuple[int, int]]) -> list[dict[str, Any]]:
    """Labels of the images that a validator ran on, with `shape`, which it may have taken out."""
    dataset = validator.dataloader.dataset
    rows = [row for part in getattr(dataset, "datasets", [dataset]) for row in part.labels]
    paths = [str(row["im_file"]) for row in rows]
    return [{**row, "shape": shapes[path]} for path, row in zip(paths, rows) if path in shapes]


def check_split(content: Mapping[str, Any], data: str, split: str) -> None:
    """Raise if a loaded dataset lacks a split."""
    if not content.get(split):
        splits = [s for s in ("train", "val", "test") if content.get(s)]
        raise YoloAttnError(f"{data}: no split {split!r} (it has {', '.join(splits)})")


def check_classes(model: str, predicted: int, data: str, known: int) -> None:
    """Raise if a model predicts more classes than the dataset knows."""
    if predicted > known:
        raise YoloAttnError(
            f"{model}: predicts {predicted} classes, but {data} has {known}; train it on that "
            "dataset first"
        )


def source_note(truth: DatasetTruth) -> str:
    """Where the ground truth is from, for a person."""
    unknown = "" if ".json" in truth.source else " (crowds and ignored regions are not known)"
    return f"ground truth: {truth.source}{unknown}"


def _validate(
    model: str,
    data: str,
    split: str,
    imgsz: int | None,
    max_det: int,
    batch: int,
    device: str | None,
    more: Mapping[str, Any],
) -> Any:
    """The validator after its run; `found` holds the predictions."""
    from ultralytics import YOLO

    try:
        net = YOLO(model)
        if net.task != "detect":
            raise YoloAttnError(f"{model}: is a model for {net.task}; evaluated are detectors")
        with tempfile.TemporaryDirectory(prefix="yolo-attn-") as scratch:
            held: list[Any] = []
            side = {} if imgsz is None else {"imgsz": imgsz}
            net.val(
                validator=_recorder(net._smart_load("validator"), held),
                data=data, split=split, max_det=max_det, batch=batch, device=device, **side, **more,
                conf=CONFIDENCE, iou=NMS_IOU, plots=False, save_json=False, save_txt=False,
                project=scratch, name="val", exist_ok=True,
            )  # fmt: skip
        return held[0]
    except YoloAttnError:
        raise
    except Exception as error:  # Ultralytics raises many kinds, some with several lines
        text = " ".join(str(error).split())
        raise YoloAttnError(
            f"{model} on {data}: Ultralytics could not run it ({type(error).__name__}: {text})"
        ) from error


def _recorder(validator: type, held: list[Any]) -> type:
    """The task's validator, which also keeps every prediction in `found`."""

    class Recorder(validator):  # type: ignore[misc, valid-type]
        size_metrics = False  # this run has its own tables (seam/size_metrics.py)

        def init_metrics(self, model: Any) -> None:
            super().init_metrics(model)
            self.found: dict[str, np.ndarray] = {}
            self.shapes: dict[str, tuple[int, int]] = {}
            held.append(self)
            known = len(self.data["names"])
            check_classes(self.args.model, len(self.names), self.args.data, known)

        def update_metrics(self, preds: Any, batch: dict[str, Any]) -> None:
            super().update_metrics(preds, batch)
            self.found.update(native_predictions(self, preds, batch))
            self.shapes.update(image_shapes(batch))

    return Recorder


def compare_names(ours: dict[int, str], theirs: dict[int, str], warnings: Warnings) -> None:
    """Count the classes that the dataset (`ours`) and the model (`theirs`) name differently."""
    for number, name in ours.items():
        if number not in theirs:
            warnings.count(
                "class of the dataset that the model does not have", f"{number} {name!r}"
            )
        elif theirs[number] != name:
            what = "class that model and dataset name differently (paired by number)"
            warnings.count(what, f"{number} {theirs[number]!r} and {name!r}")


def _ultralytics(validator: Any, truth: DatasetTruth) -> dict[str, Any]:
    box = validator.metrics.box
    values = {"AP": box.map, "AP50": box.map50, "AP75": box.map75, "P": box.mp, "R": box.mr}
    metrics = {name: 100 * float(value) for name, value in values.items()}
    per_class: dict[str, dict[str, Any]] = {
        str(number): {"name": truth.gt.classes[number], "AP": None, "AP50": None}
        for number in truth.gt.classes
    }
    for i, index in enumerate(box.ap_class_index):
        row = per_class[str(truth.categories[int(index)])]
        row.update(AP=100 * float(box.ap[i]), AP50=100 * float(box.ap50[i]))
    return {
        "protocol": "Ultralytics",
        **metrics,
        "metrics": metrics,
        "per_class": per_class,
        "max_dets": [validator.args.max_det],
    }


@contextlib.contextmanager
def output_on_stderr() -> Iterator[None]:
    """Ultralytics prints to stdout, which belongs to our table or JSON."""
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        from ultralytics.utils import LOGGER  # its first import prints, too

        streams = (h for h in LOGGER.handlers if isinstance(h, logging.StreamHandler))
        handlers = [h for h in streams if h.stream is stdout]
        for handler in handlers:
            handler.setStream(sys.stderr)
        try:
            yield
        finally:
            for handler in handlers:
                handler.setStream(stdout)
