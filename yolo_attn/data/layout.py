"""The YOLO layout on disk (images/, labels/, annotations/, data.yaml), written whole or not at all.

``annotations/<split>.json`` beside the labels is a COCO file of the same images: it keeps what YOLO
labels cannot say (crowd and difficult objects, ignored regions, the true area, unclipped boxes).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from yolo_attn.data.report import DATA_YAML, ConversionReport, SplitReport
from yolo_attn.errors import YoloAttnError

SPLITS = ("train", "val", "test")
MARK = "# Written by yolo-attn"
SUFFIXES = frozenset(
    ".avif .bmp .dng .heic .heif .jp2 .jpeg .jpeg2000 .jpg .mpo .png .tif .tiff .webp".split()
)  # what Ultralytics lists as images
KEPT = " (kept in annotations/, not a label)"
MIN_SIDE = 10  # Ultralytics calls a smaller image corrupt
EXIF_ORIENTATION, SIDEWAYS = 274, (5, 6, 7, 8)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LabelledBox:
    """One annotated object.

    Attributes:
        where: place in the source, for the report.
        class_index: YOLO class, or None for a class that the converter does not know.
        xyxy: box edges x1 y1 x2 y2 in pixels of the image, before clipping.
        area: true area in square pixels; None for the area of the box.
        unlabelled: why the box is kept in the COCO file only ("crowd", "difficult"), or None.
        extra: fields that go into the COCO annotation as they are.
    """

    where: str
    class_index: int | None
    xyxy: tuple[float, float, float, float]
    area: float | None = None
    unlabelled: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as Ultralytics will see it (EXIF rotation applied)."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            # JPEG and its multi-picture form carry the rotation that OpenCV applies on reading.
            turned = image.format in ("JPEG", "MPO") and (
                image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS
            )
            image.verify()
    except Exception as error:  # PIL raises many kinds on garbage
        raise YoloAttnError(
            f"{path}: not an image that can be read ({type(error).__name__}: {error}); "
            "replace it or take it out of the annotations"
        ) from error
    return (height, width) if turned else (width, height)


class YoloWriter:
    """Writes images, labels and COCO annotations of the splits below one (temporary) root."""

    def __init__(
        self,
        root: Path,
        report: ConversionReport,
        categories: Sequence[dict[str, Any]],
        *,
        verbatim: bool = False,
    ):
        """Start with nothing written.

        Args:
            root: where to write.
            report: gets the counts.
            categories: the COCO categories, in the order of ``report.classes``.
            verbatim: keep in annotations/ also the boxes that cannot be labels (no size, outside,
                duplicate), because scores against the source's own file count them.
        """
        self.root = root
        self.report = report
        self.categories = list(categories)
        self.verbatim = verbatim
        self._coco: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self._stems: dict[tuple[str, str], Path] = {}

    def add(
        self,
        split: str,
        image: Path,
        boxes: Sequence[LabelledBox],
        *,
        name: str | None = None,
        stated_size: tuple[int, int] | None = None,
        image_id: int | str | None = None,
        beside: Mapping[str, Sequence[LabelledBox]] | None = None,
    ) -> None:
        """Copy `image` and write its label file and its COCO rows.

        Args:
            split: train, val or test.
            image: the source image.
            boxes: its objects.
            name: file name in the new set; default: that of the source.
            stated_size: width and height according to the annotation, compared with the image's.
            image_id: id in the COCO file; default: the running number.
            beside: boxes that are no objects of a class (ignored regions), by the key of the COCO
                file that lists them; `unlabelled` says what each is.
        """
        report = self.report.splits.setdefault(split, SplitReport())
        coco = self._coco.setdefault(split, {"images": [], "annotations": []})
        name = name or image.name
        stem = Path(name).stem
        if Path(name).suffix.lower() not in SUFFIXES:
            raise YoloAttnError(
                f"{image}: Ultralytics does not read {Path(name).suffix or 'files without suffix'}"
                "; convert it to .png or .jpg"
            )
        if (other := self._stems.setdefault((split, stem), image)) != image:
            raise YoloAttnError(
                f"{image}: its label file {stem}.txt would be that of {other} too; rename one"
            )
        width, height = image_size(image)
        if min(width, height) < MIN_SIDE:
            reason = f"side below {MIN_SIDE} px (Ultralytics refuses it)"
            others = sum(map(len, (beside or {}).values()))
            report.drop_image(reason, image.name, len(boxes) + others)
            return
        if stated_size and stated_size != (width, height):
            reason = "annotation states another image size; the image's own was used"
            stated = "x".join(map(str, stated_size))
            report.count("altered", reason, f"{image.name} {width}x{height}, stated {stated}")

        image_id = len(coco["images"]) + 1 if image_id is None else image_id
        rows = self._rows(report, boxes, width, height, image_id, coco["annotations"])
        for key, kept in (beside or {}).items():
            for box in kept:
                report.count("dropped_boxes", f"{box.unlabelled}{KEPT}", box.where)
            coco.setdefault(key, []).extend({"image_id": image_id, **box.extra} for box in kept)
        folders = [self.root / kind / split for kind in ("images", "labels")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, folders[0] / name)
        (folders[1] / f"{stem}.txt").write_text("".join(rows), encoding="utf-8")
        coco["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
        report.images += 1
        report.boxes += len(rows)

    def _rows(
        self,
        report: SplitReport,
        boxes: Sequence[LabelledBox],
        width: int,
        height: int,
        image_id: int | str,
        annotations: list[dict[str, Any]],
    ) -> list[str]:
        rows: list[str] = []
        seen: set[tuple[Any, ...]] = set()
        for box in boxes:
            if box.class_index is None:
                report.count("dropped_boxes", "unknown class", box.where)
                continue
            x1, y1, x2, y2 = box.xyxy
            if not math.isfinite((x2 - x1) * (y2 - y1)):
                report.count("dropped_boxes", "size beyond all bounds", box.where)
                continue
            left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
            key = (box.class_index, box.xyxy, box.unlabelled)
            fault = None
            if x2 <= x1 or y2 <= y1:
                fault = "zero or negative size"
            elif right <= left or bottom <= top:
                fault = "outside the image"
            elif key in seen:
                fault = "duplicate"
            seen.add(key)
            kept = fault is None or self.verbatim
            if kept:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": self.categories[box.class_index]["id"],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1) if box.area is None else box.area,
                        "iscrowd": 0,
                        **box.extra,
                    }
                )
            if reason := fault or box.unlabelled:
                reason += KEPT if kept else ""
                report.count("dropped_boxes", reason, box.where)
                continue
            # A pixel rounded past the edge is ordinary in COCO; still it is counted, never silent.
            if (left, top, right, bottom) != (x1, y1, x2, y2):
                report.count("altered", "box clipped at the image's edge", box.where)
            cxcywh = (
                (left + right) / 2 / width,
                (top + bottom) / 2 / height,
                (right - left) / width,
                (bottom - top) / height,
            )
            rows.append(f"{box.class_index} {' '.join(f'{v:.8g}' for v in cxcywh)}\n")
        return rows

    def finish(self, same_images: dict[str, str] | None = None) -> None:
        """Write annotations/ and data.yaml.

        Args:
            same_images: splits that use the images of another split, e.g. ``{"val": "train"}``.
        """
        report = self.report
        folders = {split: split for split in SPLITS if split in self._coco}
        if not any(report.splits[split].images for split in folders):
            reasons = Counter[str]()
            for converted in report.splits.values():
                reasons.update(converted.dropped_images)
            why = ", ".join(f"{n} x {reason}" for reason, n in reasons.items()) or "nothing listed"
            raise YoloAttnError(f"{report.dst}: no image is left to convert ({why})")
        folders = {s: s for s in folders if report.splits[s].images}
        folders.update(same_images or {})
        for missing, others in (("val", ("test", "train")), ("train", ("val", "test"))):
            if missing not in folders:
                other = next(s for s in others if s in folders)
                folders[missing] = folders[other]
                report.notes.append(f"there is no {missing} split: data.yaml uses {other} for it")
        if folders["train"] == folders["val"]:
            report.notes.append(
                "train and val are the same images: val says nothing about new ones"
            )
        (self.root / "annotations").mkdir()
        for split in folders:
            coco = {**self._coco[folders[split]], "categories": self.categories}
            if _renumbered(coco["annotations"]) and folders[split] == split:
                report.notes.append(
                    f"annotations/{split}.json has new annotation ids: the source's were not all "
                    "different numbers above 0, which COCOeval needs"
                )
            text = json.dumps(coco, ensure_ascii=False)
            (self.root / "annotations" / f"{split}.json").write_text(text, encoding="utf-8")
        content: dict[str, Any] = {s: f"images/{folders[s]}" for s in SPLITS if s in folders}
        content["names"] = dict(enumerate(report.classes))
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        header = f"{MARK}; without `path:` the folders are found beside this file.\n"
        (self.root / DATA_YAML).write_text(header + text, encoding="utf-8")


def _renumbered(annotations: list[dict[str, Any]]) -> bool:
    """COCOeval needs unique ids and takes id 0 for "no match": number again if it must be."""
    ids = [a["id"] for a in annotations]
    if len(set(ids)) == len(ids) and all(type(i) is int and i > 0 for i in ids):
        return False
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    return True


@contextlib.contextmanager
def whole_folder(dst: Path, *, overwrite: bool = False, marker: str = DATA_YAML) -> Iterator[Path]:
    """Give a temporary sibling of `dst` that becomes `dst` when the block ends without error.

    Args:
        dst: the folder to make. A non-empty one is refused unless `overwrite`.
        overwrite: replace it, after the new one is complete. Only a folder that this package
            wrote is ever replaced.
        marker: the file by which such a folder is recognised.

    Yields:
        The temporary folder; removed on any error.
    """
    dst = dst.resolve()
    check_free(dst, overwrite, marker)
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{dst.name}.partial-", dir=dst.parent))
    except OSError as error:
        raise YoloAttnError(f"{dst}: cannot be written ({error}); choose another folder") from error
    old = None
    try:
        partial.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        yield partial
        check_free(dst, overwrite, marker)  # again: it may have been filled meanwhile
        if dst.exists():
            if any(dst.iterdir()):
                old = Path(tempfile.mkdtemp(prefix=f".{dst.name}.old-", dir=dst.parent)) / "old"
                os.replace(dst, old)
            else:
                dst.rmdir()
        try:
            os.replace(partial, dst)
        except BaseException:
            if old is not None and not dst.exists():
                os.replace(old, dst)
            raise
    except OSError as error:
        raise YoloAttnError(
            f"{dst}: could not be made ({error}); nothing was kept, mend that and run it again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if old is not None and dst.exists():
            shutil.rmtree(old.parent, ignore_errors=True)


def check_free(dst: Path, overwrite: bool, marker: str = DATA_YAML) -> None:
    """Refuse a destination that holds something, unless it is ours and may be replaced."""
    if not os.path.lexists(dst):
        return
    if not dst.is_dir():
        raise YoloAttnError(f"{dst}: is a file; the destination must be a folder")
    if not any(dst.iterdir()):
        return
    if not overwrite:
        raise YoloAttnError(
            f"{dst}: is not empty; choose another folder, or overwrite it (--overwrite)"
        )
    try:
        with open(dst / marker, encoding="utf-8") as file:
            ours = MARK.lstrip("# ") in file.read(200)
    except (OSError, UnicodeDecodeError):
        ours = False
    if not ours:
        raise YoloAttnError(
            f"{dst}: was not written by yolo-attn (no {marker} of ours in it), so it is not "
            "overwritten; remove it yourself or choose another folder"
        )


def check_apart(src: Path, dst: Path) -> None:
    """Refuse a destination that is, holds or lies inside the source: sources are never changed."""
    a, b = src.resolve(), dst.resolve()
    if a == b or a in b.parents or b in a.parents:
        raise YoloAttnError(
            f"{dst}: overlaps the source {src}, which is never changed; choose a folder outside it"
        )


def finite(text: object, where: str) -> float:
    """A finite number, or an error that names `where`."""
    try:
        if isinstance(text, bool) or not isinstance(text, (str, int, float)):
            raise TypeError
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        shown = repr(text) if len(repr(text)) < 40 else repr(text)[:37] + "..."
        raise YoloAttnError(f"{where}: expected a number, found {shown}; correct it")
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
