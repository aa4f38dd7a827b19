"""Reading COCO ground truth and detections (JSON) with every element checked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.boxes import Detections, GroundTruth
from yolo_attn.evaluation.notes import Warnings

FARTHEST = 1e7  # px; a coordinate beyond it is no coordinate


def read_coco(
    gt_file: str | Path, pred_file: str | Path
) -> tuple[GroundTruth, Detections, Warnings]:
    """Read COCO annotations and a COCO results list.

    Returns:
        Ground truth (images in the order of their ids, as COCOeval takes them), detections in file
        order, warnings.

    Raises:
        YoloAttnError: broken input; names file and element (or line, if it is not JSON).
    """
    warnings = Warnings()
    gt, images = read_ground_truth(gt_file, warnings)
    dets = _read_results(Path(pred_file), Path(gt_file), gt, images, warnings)
    return gt, dets, warnings


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        YoloAttnError: names file and line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise YoloAttnError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise YoloAttnError(
            f"{path} line {line}: byte {data[error.start]:#04x} is not UTF-8; JSON must be"
        ) from error
    except json.JSONDecodeError as error:
        raise YoloAttnError(
            f"{path} line {error.lineno}: not JSON from column {error.colno} on ({error.msg})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise YoloAttnError(f"{path}: not JSON that can be read ({error})") from error


def read_ground_truth(
    gt_file: str | Path, warnings: Warnings
) -> tuple[GroundTruth, dict[Any, int]]:
    """Read COCO annotations; a VisDrone conversion's `ignored_regions` too.

    Returns:
        Ground truth (images in the order of their ids) and {image id: index}.

    Raises:
        YoloAttnError: broken input; names file and element.
    """
    path = Path(gt_file)
    content = read_json(path)
    if not isinstance(content, dict):
        raise YoloAttnError(
            f"{path}: expected an object with images, annotations and categories, found a "
            f"{type(content).__name__} (a results file?)"
        )
    table = {}
    for key in ("images", "annotations", "categories"):
        table[key] = _objects(content.get(key), f"{path}: '{key}'", f"{path}: {key}")
    classes = _unique(table["categories"], f"{path}: categories", (int,))
    names = {}
    for number, at in classes.items():
        where = f"{path}: categories[{at}]"
        names[number] = str(_get(table["categories"][at], "name", (str, int), where))
    listed = _unique(table["images"], f"{path}: images", (int, str))
    # COCOeval walks through the images by id.
    ids = sorted(listed, key=lambda i: (isinstance(i, str), i))
    index = {image_id: i for i, image_id in enumerate(ids)}
    images = [table["images"][listed[i]] for i in ids]
    image_names = []
    for i, row in zip(ids, images):
        where = f"{path}: images[{listed[i]}]"
        image_names.append(_get(row, "file_name", (str,), where) if "file_name" in row else str(i))
    image, boxes, category, crowd, area = _annotations(
        path, table["annotations"], index, names, warnings
    )
    region_image, region_boxes = _regions(path, content.get("ignored_regions", []), index)
    truth = GroundTruth(
        image_names, names, image, boxes, category, crowd, area, region_image, region_boxes,
        _sizes(images),
    )  # fmt: skip
    return truth, index


def _regions(path: Path, rows: Any, index: dict[Any, int]) -> tuple[Any, Any]:
    image, boxes = [], []
    for i, row in enumerate(_objects(rows, f"{path}: 'ignored_regions'", f"{path}: regions")):
        where = f"{path}: ignored_regions[{i}]"
        image_id = _get(row, "image_id", (int, str), where)
        if image_id not in index:
            raise YoloAttnError(f"{where}: image_id {image_id!r:.40} is not in 'images'")
        image.append(index[image_id])
        boxes.append(_box(row, where))
    return image, boxes


def _annotations(
    path: Path, rows: list[Any], index: dict[Any, int], classes: dict[int, str], warnings: Warnings
) -> tuple[Any, ...]:
    image, boxes, category, crowd, area = [], [], [], [], []
    seen: dict[Any, int] = {}
    for i, row in enumerate(rows):
        where = f"{path}: annotations[{i}]"
        image_id = _get(row, "image_id", (int, str), where)
        number = _get(row, "category_id", (int,), where)
        box = _box(row, where)
        if row.get("area") is None:
            warnings.count("annotation without 'area' (width times height taken)", where)
        size = box[2] * box[3] if row.get("area") is None else _number(row, "area", where, 1e14)
        flag = row.get("iscrowd", 0)
        if flag not in (0, 1):
            raise YoloAttnError(f"{where}: 'iscrowd' {repr(flag)[:40]} should be 0 or 1")
        if isinstance(row.get("id"), (int, str)):
            if row["id"] in seen:
                raise YoloAttnError(
                    f"{where}: id {row['id']!r:.40} is that of annotations[{seen[row['id']]}] too; "
                    "ids must be unique"
                )
            seen[row["id"]] = i
        if row.get("id") == 0:
            warnings.count("annotation with id 0 (pycocotools would not count its match)", where)
        if image_id not in index:
            warnings.count("annotation of an image that is not in 'images', left out", where)
            continue
        if number not in classes:
            warnings.count("annotation of a category not in 'categories', not scored", where)
        if box[2] <= 0 or box[3] <= 0:
            warnings.count("annotation without width or height", where)
        image.append(index[image_id])
        boxes.append(box)
        category.append(number)
        crowd.append(bool(flag))
        area.append(size)
    return image, boxes, category, crowd, area


def _read_results(
    path: Path, gt_file: Path, gt: GroundTruth, index: dict[Any, int], warnings: Warnings
) -> Detections:
    content = read_json(path)
    if isinstance(content, dict):
        raise YoloAttnError(
            f"{path}: expected a list of detections, found an object (the annotations file?)"
        )
    columns: tuple[Any, ...] = ([], [], [], [])
    image, boxes, category, score = columns
    for i, row in enumerate(_objects(content, f"{path}: the file", f"{path}: detection ")):
        where = f"{path}: detection [{i}]"
        image_id = _get(row, "image_id", (int, str), where)
        if image_id not in index:
            raise YoloAttnError(
                f"{where}: image_id {image_id!r:.40} is no image of {gt_file}; the two files do "
                "not belong together"
            )
        number = _get(row, "category_id", (int,), where)
        if number not in gt.classes:
            warnings.count("detection of a category not in the ground truth, not scored", where)
        box = _box(row, where)
        if box[2] <= 0 or box[3] <= 0:
            warnings.count("detection without width or height", where)
        value = _number(row, "score", where, math.inf)
        if not 0 <= value <= 1:
            warnings.count("detection with a score outside 0-1", where)
        image.append(index[image_id])
        boxes.append(box)
        category.append(number)
        score.append(value)
    return Detections(*columns)


def _objects(rows: Any, what: str, where: str) -> list[dict[str, Any]]:
    if not isinstance(rows, list):
        raise YoloAttnError(f"{what} should be a list, found {type(rows).__name__}")
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise YoloAttnError(f"{where}[{i}]: expected an object, found {repr(row)[:40]}")
    return rows


def _unique(rows: list[dict[str, Any]], where: str, kinds: tuple[type, ...]) -> dict[Any, int]:
    """Id -> position of each row."""
    found: dict[Any, int] = {}
    for i, row in enumerate(rows):
        number = _get(row, "id", kinds, f"{where}[{i}]")
        if number in found:
            raise YoloAttnError(
                f"{where}[{i}]: id {number!r:.40} is that of [{found[number]}] too; ids must be "
                "unique"
            )
        found[number] = i
    if not found:
        raise YoloAttnError(f"{where}: an empty list; there is nothing to evaluate")
    return found


def _get(row: dict[str, Any], key: str, kinds: tuple[type, ...], where: str) -> Any:
    value = row.get(key)
    # Numbers beyond 64 bits do not fit into the arrays.
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if not good or (isinstance(value, int) and abs(value) >= 2**62):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        found = repr(value)[:40] if key in row else "nothing"
        raise YoloAttnError(f"{where}: '{key}' should be {wanted}, found {found}")
    if isinstance(value, str) and not _is_text(value):
        raise YoloAttnError(f"{where}: '{key}' {value!r:.40} is not valid Unicode")
    return value


def _is_text(value: str) -> bool:
    """False for a lone surrogate (U+D800): a JSON string, but nothing to print or to save."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _number(row: dict[str, Any], key: str, where: str, most: float) -> float:
    return _finite(row.get(key), f"{where}: '{key}'", most)


def _finite(value: Any, where: str, most: float) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Whole numbers of JSON have no limit; those of 400 digits are no float.
    if not good or not abs(value) <= most or abs(value) > 1e300:
        limit = f" up to {most:g}" if most < math.inf else ""
        raise YoloAttnError(f"{where}: {repr(value)[:40]} is not a finite number{limit}")
    return float(value)


def _box(row: dict[str, Any], where: str) -> list[float]:
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise YoloAttnError(f"{where}: 'bbox' {repr(box)[:60]} should be [x, y, width, height]")
    return [_finite(v, f"{where}: 'bbox'", FARTHEST) for v in box]


def _sizes(images: list[dict[str, Any]]) -> np.ndarray | None:
    """Width and height of all images; None if any lacks them (only ignored regions need them)."""
    sizes = [(row.get("width"), row.get("height")) for row in images]
    if not all(isinstance(v, int) and 0 < v < 2**31 for size in sizes for v in size):
        return None
    return np.array(sizes, np.float64)
