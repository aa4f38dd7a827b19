"""What the statistics read: dataset YAML, image lists, labels, and the COCO file beside them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from yolo_attn.data.layout import SUFFIXES
from yolo_attn.data.report import EXAMPLES
from yolo_attn.errors import YoloAttnError

IMAGE_LOST = "Ultralytics leaves its image out"
SLACK = 1.01  # how far Ultralytics lets a coordinate leave [0, 1]


@dataclass
class Faults:
    """Label rows that cannot be used, by reason, with some places."""

    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        """Count one."""
        self.reasons[reason] += 1
        places = self.examples.setdefault(reason, [])
        if len(places) < EXAMPLES:
            places.append(where)

    def lines(self) -> Iterator[str]:
        """One line a reason."""
        for reason, n in self.reasons.most_common():
            more = ", ..." if n > len(self.examples[reason]) else ""
            yield f"{n} x {reason} ({', '.join(self.examples[reason])}{more})"


@dataclass
class Ignored:
    """What annotations/<split>.json keeps beside the objects.

    Attributes:
        regions: number of ignored regions.
        area: share of all pixels that they cover, overlaps counted once.
        objects: annotations that no label has: crowds, difficult ones, score 0.
        others: boxes of VisDrone's category "others".
        annotated: (n,) square roots of the annotated areas of all other objects, in pixels.
    """

    regions: int
    area: float
    objects: int
    others: int
    annotated: np.ndarray


def load_dataset(data: str | Path) -> dict[str, Any]:
    """The dataset YAML as Ultralytics reads it: absolute paths, names by number."""
    from ultralytics.data.utils import check_det_dataset

    try:
        return check_det_dataset(str(data))
    except YoloAttnError:
        raise
    except Exception as error:  # Ultralytics raises many kinds, some with several lines
        text = " ".join(str(error).split())
        raise YoloAttnError(
            f"{data}: not a dataset YAML that Ultralytics can load ({type(error).__name__}: {text})"
        ) from error


def list_images(place: str | list[str], where: str) -> list[str]:
    """Images of folders and lists, as Ultralytics finds them; errors start with `where`."""
    images: list[str] = []
    for entry in [place] if isinstance(place, str) else place:
        path = Path(entry)
        if path.is_dir():
            images += [str(p) for p in path.rglob("*.*")]
        elif path.is_file():
            try:
                lines = path.read_text(encoding="utf-8").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise YoloAttnError(
                    f"{where}: {path} is no list of images ({error}); expected one path a line"
                ) from error
            lines = [line.strip() for line in lines if line.strip()]
            root = str(path.parent)
            images += [f"{root}/{line[2:]}" if line.startswith("./") else line for line in lines]
        else:
            raise YoloAttnError(f"{where}: no folder or list of images at {path}; correct the path")
    return sorted({image for image in images if Path(image).suffix.lower() in SUFFIXES})


def label_files(images: Sequence[str]) -> list[Path]:
    """The label file of each image, by Ultralytics' rule."""
    from ultralytics.data.utils import img2label_paths

    return [Path(label) for label in img2label_paths(list(images))]


def read_labels(
    file: Path, content: dict[str, Any], faults: Faults
) -> list[tuple[int, float, float]]:
    """Class, width and height (fractions of the image) of the usable rows of a label file."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []  # Ultralytics takes it for an image without objects
    except (OSError, UnicodeDecodeError):
        faults.add(f"label file that is not text ({IMAGE_LOST})", str(file))
        return []
    # Behind the box a row may have keypoints; a longer row is a polygon otherwise.
    keypoints = math.prod(content["kpt_shape"]) if content.get("kpt_shape") else 0
    rows: dict[tuple[float, ...], tuple[int, float, float]] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        fault, row = _parse(fields, len(content["names"]), keypoints)
        fault = fault or ("label row that is there twice" if row in rows else None)
        if fault:
            faults.add(fault, f"{file} line {number}")
            continue
        rows[row] = (int(row[0]), row[3], row[4])
    return list(rows.values())


def _parse(
    fields: Sequence[str], classes: int, keypoints: int
) -> tuple[str | None, tuple[float, ...]]:
    """A fault or None, and class, x, y, w, h."""
    try:
        values = [float(f) for f in fields]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        return f"label row with something else than numbers ({IMAGE_LOST})", ()
    if len(values) > 6 and len(values) % 2 and not keypoints:
        points = np.array(values[1:]).reshape(-1, 2)
        low, high = points.min(0), points.max(0)
        values = [values[0], *((low + high) / 2).tolist(), *(high - low).tolist()]
    elif len(values) != 5 + keypoints:
        return f"label row with a wrong number of columns ({IMAGE_LOST})", ()
    cls, x, y, w, h = values[:5]
    if cls not in range(classes):
        return f"label row of a class that the YAML does not name ({IMAGE_LOST})", ()
    if min(x, y, w, h) < 0 or max(x, y, w, h) > SLACK:
        return f"label row that is not in fractions of the image ({IMAGE_LOST})", ()
    if w == 0 or h == 0:
        return "label row of a box without size", ()
    return None, (cls, x, y, w, h)


def read_ignored(file: Path, images: Sequence[str]) -> Ignored | None:
    """What the COCO file beside the labels keeps, or None if there is none for these images."""
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        listed = {i["id"]: (i["width"], i["height"]) for i in content["images"]}
        if not {Path(i["file_name"]).name for i in content["images"]} & {
            Path(i).name for i in images
        }:
            return None  # a file of that name, but of other images
        regions: dict[Any, list[list[float]]] = {image: [] for image in listed}
        for row in content.get("ignored_regions", ()):
            regions[row["image_id"]].append(row["bbox"])
        covered = sum(_union(boxes, *listed[image]) for image, boxes in regions.items())
        unlabelled = [bool(a.get("iscrowd") or a.get("ignore")) for a in content["annotations"]]
        areas = [a["area"] for a, no in zip(content["annotations"], unlabelled) if not no]
        return Ignored(
            regions=sum(map(len, regions.values())),
            area=covered / sum(w * h for w, h in listed.values()),
            objects=sum(unlabelled),
            others=len(content.get("others", ())),
            annotated=np.sqrt(np.maximum(np.array(areas, float), 0)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise YoloAttnError(
            f"{file}: not COCO annotations ({type(error).__name__}: {error}); convert the set "
            "again, or take the file away"
        ) from error


def _union(boxes: Sequence[Sequence[float]], width: int, height: int) -> int:
    """Pixels of the image that the boxes ``x y w h`` cover together."""
    if not boxes:
        return 0
    covered = np.zeros((height, width), bool)
    for x, y, w, h in boxes:
        x1, y1 = max(round(x), 0), max(round(y), 0)
        x2, y2 = max(min(round(x + w), width), 0), max(min(round(y + h), height), 0)
        covered[y1:y2, x1:x2] = True
    return int(covered.sum())
