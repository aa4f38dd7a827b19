"""Ground truth of a dataset that Ultralytics reads: its sidecar if it has one, else its labels.

The sidecar is annotations/<split>.json below the dataset's root, as `yolo-attn convert` writes it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.evaluation.boxes import Detections, GroundTruth
from yolo_attn.evaluation.coco_files import read_ground_truth
from yolo_attn.evaluation.notes import Warnings

DECIMALS = 2  # of a size in px: labels are fractions, and 8 x 8 px must not become 7.9999


@dataclass(frozen=True)
class DatasetTruth:
    """Ground truth of the images that a model was run on.

    Attributes:
        gt: the objects.
        categories: class number of the dataset YAML -> category number of `gt`.
        image: path of an image as Ultralytics lists it -> its index in `gt`.
        source: where the objects are from, for a person.
    """

    gt: GroundTruth
    categories: Mapping[int, int]
    image: Mapping[str, int]
    source: str

    def detections(self, predictions: Mapping[str, npt.ArrayLike]) -> Detections:
        """Predictions as `Detections`, each image's by descending score (equal ones stay).

        Args:
            predictions: image path -> (n, 6) x1, y1, x2, y2 in pixels of the original image,
                score, class number of the dataset YAML. An image may be absent.

        Raises:
            YoloAttnError: an image or a class that the dataset does not have.
        """
        rows, image = [np.zeros((0, 6))], [np.zeros(0, np.int64)]
        for path, found in predictions.items():
            if path not in self.image:
                raise YoloAttnError(
                    f"{path}: there are predictions, but {self.source} has no entry"
                )
            rows.append(np.asarray(found, np.float64).reshape(-1, 6))
            image.append(np.full(len(rows[-1]), self.image[path]))
        table, index = np.concatenate(rows), np.concatenate(image)
        order = np.lexsort((-table[:, 4], index))
        table, index = table[order], index[order]
        unknown = sorted(set(table[:, 5].astype(int).tolist()) - set(self.categories))
        if unknown:
            raise YoloAttnError(
                f"the model predicts class {unknown[0]}, which the dataset does not name (it has "
                f"{len(self.categories)} classes)"
            )
        numbers = np.full(max(self.categories, default=-1) + 1, -1)
        numbers[list(self.categories)] = list(self.categories.values())
        boxes = np.c_[table[:, :2], table[:, 2:4] - table[:, :2]]
        return Detections(index, boxes, numbers[table[:, 5].astype(int)], table[:, 4])


def find_sidecar(root: str | Path, split: str) -> Path | None:
    """annotations/<split>.json below a dataset's root, or None."""
    file = Path(root) / "annotations" / f"{split}.json"
    return file if file.is_file() else None


def dataset_truth(
    root: str | Path,
    split: str,
    names: Mapping[int, str],
    labels: Sequence[Mapping[str, Any]],
    warnings: Warnings,
    every: Mapping[int, str] | None = None,
    kept: Sequence[int] | None = None,
) -> DatasetTruth:
    """Ground truth from the sidecar if there is one for these images, else from the labels.

    Args:
        root: folder of the dataset (`path` of its YAML).
        split: train, val or test.
        names: classes of the dataset YAML, or the one that they were all taken for.
        labels: of the images that the model was run on, as Ultralytics holds them; see
            `from_labels`.
        warnings: gets what is odd.
        every: classes of the dataset YAML, where `names` is less.
        kept: numbers of those that count; None: all.

    Raises:
        YoloAttnError: a sidecar that is broken, or lacks some of the images or classes.
    """
    file = find_sidecar(root, split)
    if file is not None:
        images = [str(row["im_file"]) for row in labels]
        truth = from_sidecar(file, images, every or names, warnings)
        if truth is not None:
            return truth if kept is None else _as_seen(truth, names, kept)
        warnings.count("sidecar of other images than the dataset's, not used", str(file))
    truth = from_labels(labels, names)
    return truth if kept is None else _as_seen(truth, names, kept)


def from_sidecar(
    file: Path, images: Sequence[str], names: Mapping[int, str], warnings: Warnings
) -> DatasetTruth | None:
    """The sidecar's objects of these images, in its order; None if it has none of the images.

    Raises:
        YoloAttnError: broken; lacks an image or a class; two images of one name.
    """
    gt, _ = read_ground_truth(file, warnings)
    listed = _unique([Path(name).name for name in gt.names], str(file))
    wanted = _unique([Path(image).name for image in images], "the dataset")
    if not set(listed) & set(wanted):
        return None
    missing = [image for image, name in zip(images, wanted) if name not in listed]
    if missing:
        raise YoloAttnError(
            f"{file}: no entry for {missing[0]} ({len(missing)} of the {len(images)} images); "
            "convert the set again, or take the file away to evaluate by the label files"
        )
    for name in listed:
        if name not in wanted:
            warnings.count(f"image of {file} that was not evaluated", name)
    numbers = _categories(file, gt.classes, names)
    for number in sorted(set(gt.classes) - set(numbers.values())):
        what = f"category of {file} that the dataset does not name, not scored"
        warnings.count(what, f"{number} {gt.classes[number]!r}")
    kept = [index for name, index in listed.items() if name in wanted]
    gt = replace(_only_images(gt, kept), classes={n: gt.classes[n] for n in numbers.values()})
    place = {name: i for i, name in enumerate(name for name in listed if name in wanted)}
    index = {image: place[name] for image, name in zip(images, wanted)}
    return DatasetTruth(gt, numbers, index, str(file))


def from_labels(labels: Iterable[Mapping[str, Any]], names: Mapping[int, str]) -> DatasetTruth:
    """Ground truth from labels as Ultralytics holds them.

    Args:
        labels: one an image: `im_file`, `shape` (height, width in pixels), `cls` (n, 1) and
            `bboxes` (n, 4), centre, width and height in fractions of the image.
        names: classes of the dataset YAML; their numbers are the categories.
    """
    labels = sorted(labels, key=lambda row: str(row["im_file"]))
    paths = [str(row["im_file"]) for row in labels]
    common = os.path.commonpath([os.path.dirname(p) for p in paths]) if paths else ""
    boxes, category, image = [np.zeros((0, 4))], [np.zeros(0)], [np.zeros(0, np.int64)]
    for i, row in enumerate(labels):
        height, width = row["shape"]
        scale = np.array([width, height, width, height], np.float64)
        cxcywh = np.asarray(row["bboxes"], np.float64).reshape(-1, 4) * scale
        boxes.append(np.c_[cxcywh[:, :2] - cxcywh[:, 2:] / 2, cxcywh[:, 2:]])
        category.append(np.asarray(row["cls"], np.float64).reshape(-1))
        image.append(np.full(len(cxcywh), i))
    table = np.concatenate(boxes)
    gt = GroundTruth(
        [Path(os.path.relpath(p, common)).as_posix() for p in paths],
        names,
        np.concatenate(image),
        table,
        np.concatenate(category).astype(np.int64),
        area=np.sqrt(table[:, 2] * table[:, 3]).round(DECIMALS) ** 2,
        sizes=np.array([row["shape"][::-1] for row in labels], np.float64).reshape(-1, 2),
    )
    index = {path: i for i, path in enumerate(paths)}
    return DatasetTruth(gt, {n: n for n in names}, index, "the label files")


def _as_seen(truth: DatasetTruth, names: Mapping[int, str], kept: Sequence[int]) -> DatasetTruth:
    """The objects of some classes only; all of one class if `names` is but one."""
    one = len(names) == 1
    if one and set(truth.categories) == {0}:  # labels, which Ultralytics has renumbered already
        return truth
    numbers = {n: truth.categories[n] for n in kept}
    gt = truth.gt.keep(np.isin(truth.gt.category, list(numbers.values())))
    if one:
        gt = replace(gt, classes=dict(names), category=np.zeros(len(gt.boxes), np.int64))
    else:
        gt = replace(gt, classes={c: gt.classes[c] for c in numbers.values()})
    return replace(truth, gt=gt, categories={0: 0} if one else numbers)


def _unique(names: Sequence[str], where: str) -> dict[str, int]:
    """Name -> place."""
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise YoloAttnError(
            f"{where}: {times} images are named {name!r}, so the sidecar cannot tell them apart; "
            "rename them and convert the set again"
        )
    return {name: i for i, name in enumerate(names)}


def _categories(file: Path, classes: Mapping[int, str], names: Mapping[int, str]) -> dict[int, int]:
    by_name = {name: number for number, name in classes.items()}
    for number, name in names.items():
        if name not in by_name:
            raise YoloAttnError(
                f"{file}: no category {name!r}, which is class {number} of the dataset"
                f"{did_you_mean(name, by_name)}; convert the set again, or correct the names"
            )
    return {number: by_name[name] for number, name in names.items()}


def _only_images(gt: GroundTruth, kept: Sequence[int]) -> GroundTruth:
    """The ground truth of these images, in this order (rising)."""
    new = np.full(len(gt.names), -1)
    new[list(kept)] = np.arange(len(kept))
    rows, regions = new[gt.image] >= 0, new[gt.region_image] >= 0
    return GroundTruth(
        [gt.names[i] for i in kept],
        gt.classes,
        new[gt.image[rows]],
        gt.boxes[rows],
        gt.category[rows],
        gt.ignored[rows],
        gt.area[rows],
        new[gt.region_image[regions]],
        gt.region_boxes[regions],
        None if gt.sizes is None else gt.sizes[list(kept)],
    )
