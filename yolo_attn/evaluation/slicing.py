"""Predictions on overlapping slices of an image, merged by SAHI: the cheap alternative.

Akyon, Altinuc, Temizel: Slicing Aided Hyper Inference and Fine-tuning for Small Object Detection,
ICIP 2022, arXiv 2202.06934; https://github.com/obss/sahi
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
import numpy.typing as npt

from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.boxes import Detections

OVERLAP = 0.2
MOST_OVERLAP = 0.9  # beyond, the slices of an image run into the thousands
# SAHI's default (GREEDYNMM) joins boxes to their union; at the low confidence of an evaluation,
# where boxes of every size overlap, that spoils the good ones. NMS keeps the best box and drops
# those that lie in it to a half (IOS), such as the parts of an object that a slice cut.
MERGE = {
    "postprocess_type": "NMS",
    "postprocess_match_metric": "IOS",
    "postprocess_match_threshold": 0.5,
}


@dataclass(frozen=True)
class Sliced:
    """Detections of a set of images, and what they cost.

    Attributes:
        detections: In pixels of the original images.
        seconds: (images,) wall time of each image: all its slices, the whole image, the merging.
        slices: (images,) number of slices of each image, besides the whole image.
    """

    detections: Detections
    seconds: npt.NDArray[np.float64]
    slices: npt.NDArray[np.int64]

    @property
    def cost(self) -> dict[str, float]:
        """Milliseconds an image (median and 95th percentile) and slices an image (mean)."""
        return {
            "latency_ms": 1000 * float(np.median(self.seconds)),
            "latency_p95_ms": 1000 * float(np.percentile(self.seconds, 95)),
            "slices": float(self.slices.mean()),
            "images": len(self.slices),
        }


def sliced_detections(
    checkpoint: str | Path,
    images: Sequence[str | Path],
    slice_size: int,
    *,
    overlap: float = OVERLAP,
    conf: float = 0.01,
    imgsz: int | None = None,
    max_dets: int = 500,
    device: str = "cpu",
    categories: Mapping[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sliced:
    """Predict each image in slices, and as a whole where there is more than one, and merge.

    Args:
        checkpoint: A detection checkpoint of Ultralytics.
        images: Files; their order numbers the images.
        slice_size: Side of the square slices in pixels of the image.
        overlap: Share of a slice that its neighbour has too.
        conf: Lowest confidence.
        imgsz: Side of the model's input for a slice; by default the slice's own.
        max_dets: Detections kept an image, the best first.
        device: As for torch.
        categories: Class index of the model -> category number; by default the index itself.
        progress: Called with images done and in all.

    Returns:
        The detections, with times that count all slices.

    Raises:
        YoloAttnError: SAHI is not installed, a number is out of range, or a file is missing.
    """
    _check(slice_size, overlap, conf)
    for path in (checkpoint, *images):
        if not Path(path).is_file():
            raise YoloAttnError(f"{path}: no such file")
    predict = slicer(checkpoint, slice_size, overlap=overlap, conf=conf, imgsz=imgsz, device=device)
    for path in images[:1]:
        predict(path)  # the first run of a model pays for its set-up
    columns: dict[str, Any] = {"image": [], "boxes": [], "category": [], "score": []}
    seconds, slices = [], []
    for number, path in enumerate(images):
        start = time.perf_counter()
        result = predict(path)
        seconds.append(time.perf_counter() - start)
        slices.append(count_slices(result.image_width, result.image_height, slice_size, overlap))
        found = sorted(result.object_prediction_list, key=lambda p: -p.score.value)[:max_dets]
        for one in found:
            x1, y1, x2, y2 = one.bbox.to_xyxy()
            index = int(one.category.id)
            columns["image"].append(number)
            columns["boxes"].append((x1, y1, x2 - x1, y2 - y1))
            columns["category"].append(categories[index] if categories else index)
            columns["score"].append(float(one.score.value))
        if progress:
            progress(number + 1, len(images))
    return Sliced(Detections(**columns), np.array(seconds), np.array(slices, np.int64))


def slicer(
    checkpoint: str | Path,
    slice_size: int,
    *,
    overlap: float = OVERLAP,
    conf: float = 0.01,
    imgsz: int | None = None,
    device: str = "cpu",
) -> Callable[[str | Path], Any]:
    """A function from an image file to SAHI's prediction; arguments as `sliced_detections`.

    Raises:
        YoloAttnError: SAHI is not installed, or a number is out of range.
    """
    _check(slice_size, overlap, conf)
    auto_model, predict = require_sahi()
    model = auto_model.from_pretrained(
        model_type="ultralytics",
        model_path=str(checkpoint),
        confidence_threshold=conf,
        device=device,
        image_size=imgsz or slice_size,
    )

    def one(path: str | Path) -> Any:
        return predict(
            str(path),
            model,
            slice_height=slice_size,
            slice_width=slice_size,
            overlap_height_ratio=overlap,
            overlap_width_ratio=overlap,
            verbose=0,
            **MERGE,
        )

    return one


def count_slices(width: int, height: int, slice_size: int, overlap: float = OVERLAP) -> int:
    """Number of slices of an image: steps of a slice less its overlap, the last flush right."""
    step = slice_size - int(overlap * slice_size)

    def along(side: int) -> int:
        return 1 + max(0, -(-(side - slice_size) // step))

    return along(width) * along(height)


def check_slices(slice_size: Any, overlap: Any = OVERLAP) -> None:
    """Raise unless slices can be cut like that.

    Raises:
        YoloAttnError: a number is out of range.
    """
    if isinstance(slice_size, bool) or not isinstance(slice_size, int) or slice_size < 32:
        raise YoloAttnError(f"slice: {slice_size!r} (accepted: a whole number of 32 or more)")
    number = isinstance(overlap, (int, float)) and not isinstance(overlap, bool)
    if not number or not 0 <= overlap <= MOST_OVERLAP:
        raise YoloAttnError(f"overlap of slices: {overlap!r} (accepted: from 0 to {MOST_OVERLAP})")


def _check(slice_size: Any, overlap: Any, conf: float) -> None:
    check_slices(slice_size, overlap)
    if not 0 <= conf < 1:
        raise YoloAttnError(f"conf: {conf!r} (accepted: from 0 to below 1)")


def require_sahi() -> tuple[Any, Any]:
    """SAHI's model class and its function for one image.

    Raises:
        YoloAttnError: it is not installed.
    """
    try:
        from sahi import AutoDetectionModel
        from sahi.predict import get_sliced_prediction
    except ImportError as error:
        raise YoloAttnError(
            "slicing needs SAHI: pip install 'yolo-attn[slice]', or leave `slice` out "
            f"({' '.join(str(error).split())})"
        ) from error
    return AutoDetectionModel, get_sliced_prediction
