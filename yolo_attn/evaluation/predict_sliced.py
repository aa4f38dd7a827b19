"""Predictions of a checkpoint on slices of the images, merged by SAHI."""

from __future__ import annotations

from typing import Any, Callable

from yolo_attn.devices import torch_device
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.ground_truth import dataset_truth
from yolo_attn.evaluation.notes import Warnings
from yolo_attn.evaluation.predict import (
    CONFIDENCE,
    MAX_DET,
    NMS_IOU,
    Prediction,
    check_classes,
    check_split,
    compare_names,
    output_on_stderr,
    source_note,
)
from yolo_attn.evaluation.slicing import (
    MERGE,
    OVERLAP,
    check_slices,
    require_sahi,
    sliced_detections,
)


def predict_sliced(
    model: str,
    data: str,
    slice_size: int,
    *,
    overlap: float = OVERLAP,
    split: str = "val",
    imgsz: int | None = None,
    max_det: int = MAX_DET,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Run a model on slices of the images of a split, and on the whole images; see `slicing`.

    Args:
        model: a checkpoint, ours or stock, for detection.
        data: a dataset YAML.
        slice_size: side of the slices in pixels of the image.
        overlap: share of a slice that its neighbour has too.
        split: train, val or test.
        imgsz: side of the input for a slice (and for the whole image); by default that of the
            training, so that smaller slices are enlarged.
        max_det: detections an image at most.
        device: as in Ultralytics; by default the first GPU, else the CPU.
        progress: called with images done and in all.

    Returns:
        The same ground truth as `predict`; `slicing` has the cost of an image.

    Raises:
        YoloAttnError: as `predict`; SAHI is not installed, or a number is out of range.
    """
    check_slices(slice_size, overlap)
    require_sahi()
    with output_on_stderr():
        from yolo_attn.data.stats_read import load_dataset

        content = load_dataset(data)
        check_split(content, data, split)
        names, side = _names_and_side(model)
        check_classes(model, len(names), data, len(content["names"]))
        warnings = Warnings()
        compare_names(dict(content["names"]), names, warnings)
        labels = _labels_without_run(content, data, split)
        truth = dataset_truth(content["path"], split, content["names"], labels, warnings)
        images = sorted(truth.image, key=lambda path: truth.image[path])
        try:
            found = sliced_detections(
                model, images, slice_size, overlap=overlap, conf=CONFIDENCE, imgsz=imgsz or side,
                max_dets=max_det, device=torch_device(device), categories=truth.categories,
                progress=progress,
            )  # fmt: skip
        except YoloAttnError:
            raise
        except Exception as error:  # SAHI and Ultralytics raise many kinds
            text = " ".join(str(error).split())
            raise YoloAttnError(
                f"{model} on {data}: SAHI could not run it ({type(error).__name__}: {text})"
            ) from error
    cost = found.cost
    notes = [
        f"predictions through SAHI: slices of {slice_size} px, overlap {overlap:g}, and the whole "
        f"image, each at imgsz={imgsz or side}: confidence {CONFIDENCE}, NMS {NMS_IOU} in a slice, "
        f"merged by {MERGE['postprocess_type']} at {MERGE['postprocess_match_metric']} "
        f"{MERGE['postprocess_match_threshold']}, at most {max_det} detections an image "
        "(--max-det)",
        f"latency of an image: median {cost['latency_ms']:.1f} ms, 95 % below "
        f"{cost['latency_p95_ms']:.1f} ms, on {torch_device(device)}, reading, "
        f"{cost['slices']:.1f} slices (mean), whole image and merging counted",
        source_note(truth),
    ]
    slicing = {"slice": slice_size, "slice_overlap": overlap, "imgsz": imgsz or side, **cost}
    return Prediction(truth, found.detections, {}, notes, warnings, slicing)


def _labels_without_run(content: dict[str, Any], data: str, split: str) -> list[dict[str, Any]]:
    """The labels that `yolo val` would read, with `shape`, which rectangles would take out."""
    from ultralytics.data.dataset import YOLODataset

    try:
        dataset = YOLODataset(
            img_path=content[split], data=content, task="detect", augment=False, rect=False
        )
    except Exception as error:  # no labels, no images, broken files
        text = " ".join(str(error).split())
        raise YoloAttnError(f"{data}: {split} cannot be read ({text})") from error
    return dataset.labels


def _names_and_side(model: str) -> tuple[dict[int, str], int]:
    """Class names of a checkpoint and the side that it was trained with."""
    from ultralytics import YOLO

    if not str(model).endswith(".pt"):
        raise YoloAttnError(f"{model}: slices need a checkpoint (.pt)")
    try:
        net = YOLO(model)
    except Exception as error:
        text = " ".join(str(error).split())
        raise YoloAttnError(
            f"{model}: cannot be loaded ({type(error).__name__}: {text})"
        ) from error
    if net.task != "detect":
        raise YoloAttnError(f"{model}: is a model for {net.task}; evaluated are detectors")
    side = net.overrides.get("imgsz", 640)
    return dict(net.names), int(max(side) if isinstance(side, (list, tuple)) else side)
