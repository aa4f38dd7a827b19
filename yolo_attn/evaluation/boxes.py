"""The two inputs of every protocol: ground truth and detections of a set of images, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from yolo_attn.errors import YoloAttnError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class GroundTruth:
    """The objects of a set of images, in file order; boxes are in pixels of the original image.

    Attributes:
        names: one name an image; their order decides between detections of equal score.
        classes: category number -> name of the classes that are scored, in ascending order.
        image: (n,) index into `names`.
        boxes: (n, 4) left, top, width, height.
        category: (n,); a category that is not in `classes` is never scored.
        ignored: (n,) True for a box that neither rewards nor punishes: score 0 in VisDrone,
            iscrowd in COCO. By default none.
        area: (n,) px^2, what decides the size bin. By default width times height.
        region_image, region_boxes: (r,) and (r, 4), the ignored regions (VisDrone category 0).
        sizes: (images, 2) width and height in pixels; needed only where there are regions.
    """

    names: Sequence[str]
    classes: Mapping[int, str]
    image: Ints
    boxes: Floats
    category: Ints
    ignored: Bools = None  # type: ignore[assignment]
    area: Floats = None  # type: ignore[assignment]
    region_image: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    region_boxes: Floats = field(default_factory=lambda: np.zeros((0, 4)))
    sizes: Floats | None = None

    def __post_init__(self) -> None:
        put = _setter(self)
        put("names", tuple(self.names))
        put("classes", dict(sorted(self.classes.items())))
        put("boxes", _boxes(self.boxes))
        n = len(self.boxes)
        put("image", _image_index(self.image, n, len(self.names), "image"))
        put("category", _column(self.category, n, np.int64, "category"))
        ignored = np.zeros(n, bool) if self.ignored is None else self.ignored
        put("ignored", _column(ignored, n, np.bool_, "ignored"))
        area = box_area(self.boxes) if self.area is None else self.area
        put("area", _column(area, n, np.float64, "area"))
        put("region_boxes", _boxes(self.region_boxes))
        index = _image_index(
            self.region_image, len(self.region_boxes), len(self.names), "region_image"
        )
        put("region_image", index)
        if self.sizes is not None:
            put("sizes", np.asarray(self.sizes, np.float64).reshape(-1, 2))
            if len(self.sizes) != len(self.names):
                raise YoloAttnError(f"{len(self.sizes)} sizes for {len(self.names)} images")

    def keep(self, rows: Bools) -> GroundTruth:
        """The same images with only the boxes of `rows` ((n,) bool); regions stay."""
        return replace(
            self,
            image=self.image[rows],
            boxes=self.boxes[rows],
            category=self.category[rows],
            ignored=self.ignored[rows],
            area=self.area[rows],
        )


@dataclass(frozen=True)
class Detections:
    """The detections of a set of images, in file order (the VisDrone cap reads it).

    Attributes:
        image: (n,) index into the ground truth's `names`.
        boxes: (n, 4) left, top, width, height in pixels of the original image.
        category: (n,), numbered as in the ground truth.
        score: (n,) confidence.
    """

    image: Ints
    boxes: Floats
    category: Ints
    score: Floats

    def __post_init__(self) -> None:
        put = _setter(self)
        put("boxes", _boxes(self.boxes))
        n = len(self.boxes)
        put("image", _column(self.image, n, np.int64, "image"))
        put("category", _column(self.category, n, np.int64, "category"))
        put("score", _column(self.score, n, np.float64, "score"))
        if not np.isfinite(self.score).all():
            raise YoloAttnError("a detection's score is not a finite number")

    def keep(self, rows: Bools | Ints) -> Detections:
        """Only the detections of `rows`: (n,) bool, or their numbers, in whose order they come."""
        return Detections(self.image[rows], self.boxes[rows], self.category[rows], self.score[rows])


def box_area(boxes: Floats) -> Floats:
    """(n,) width times height of (n, 4) boxes."""
    with np.errstate(over="ignore"):
        return boxes[:, 2] * boxes[:, 3]


def check_images(gt: GroundTruth, dets: Detections) -> None:
    """Raise unless every detection belongs to one of the images.

    Raises:
        YoloAttnError: names the first that does not.
    """
    outside = (dets.image < 0) | (dets.image >= len(gt.names))
    if outside.any():
        i = int(outside.argmax())
        raise YoloAttnError(
            f"detection {i} is of image {int(dets.image[i])}, but there are {len(gt.names)} images"
        )


def _setter(instance: object):
    return lambda name, value: object.__setattr__(instance, name, value)


def _boxes(boxes: npt.ArrayLike) -> Floats:
    array = np.asarray(boxes, np.float64).reshape(-1, 4)
    if not np.isfinite(array).all():
        row = int((~np.isfinite(array)).any(1).argmax())
        raise YoloAttnError(f"box {row} is not finite: {array[row].tolist()}")
    return array


def _column(values: npt.ArrayLike, n: int, kind: type, name: str) -> npt.NDArray:
    array: npt.NDArray = np.asarray(values, kind).reshape(-1)
    if len(array) != n:
        raise YoloAttnError(f"{name} has {len(array)} entries for {n} boxes")
    return array


def _image_index(values: npt.ArrayLike, n: int, images: int, name: str) -> Ints:
    index = _column(values, n, np.int64, name)
    if n and (index.min() < 0 or index.max() >= images):
        raise YoloAttnError(f"{name} holds an index outside the {images} images")
    return index
