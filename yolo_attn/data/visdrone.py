"""VisDrone-DET to YOLO layout; what the official protocol needs stays in annotations/<split>.json.

Zhu et al., "Detection and Tracking Meet Drones Challenge", TPAMI 2021 (arXiv 2001.06303).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from yolo_attn.data.layout import (
    LabelledBox,
    Progress,
    YoloWriter,
    check_apart,
    check_free,
    finite,
    whole_folder,
)
from yolo_attn.data.report import ConversionReport, SplitReport
from yolo_attn.data.visdrone_source import Source, find_sources, local_image
from yolo_attn.errors import YoloAttnError

# Official categories 1..10 in order; 0 is an ignored region, 11 is "others".
CLASSES = (
    "pedestrian",
    "people",
    "bicycle",
    "car",
    "van",
    "truck",
    "tricycle",
    "awning-tricycle",
    "bus",
    "motor",
)
IGNORED_REGION, OTHERS = 0, 11
COLUMNS = "left,top,width,height,score,category,truncation,occlusion"
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
# Keys of the COCO file for rows that are not of classes 1..10.
REGIONS_KEY, OTHERS_KEY = "ignored_regions", "others"
GREY = 114  # what Ultralytics pads with
JPEG_QUALITY = 95


@dataclass(frozen=True)
class _Row:
    """One line of an annotation file, the numbers as they stand there."""

    line: int
    box: tuple[float, float, float, float]
    score: float
    category: float
    truncation: float
    occlusion: float

    def extra(self) -> dict[str, Any]:
        """Fields of the COCO file, from which :func:`official_ground_truth` gets the row back."""
        return {
            "bbox": list(self.box),
            "line": self.line,
            "score": self.score,
            "truncation": self.truncation,
            "occlusion": self.occlusion,
        }


def convert_visdrone(
    src: str | Path,
    dst: str | Path,
    *,
    split: str | None = None,
    grey_ignored: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert VisDrone-DET (annotations of 8 numbers a line) into the YOLO layout.

    `src` is a folder that holds the official folders or zips (VisDrone2019-DET-train, -val,
    -test-dev), one such folder (images/ and annotations/), or one such zip.

    Categories 1..10 become classes 0..9. Labels are the boxes with score 1, clipped to the image,
    without boxes of no size and duplicates. annotations/<split>.json keeps every row as it was:
    `annotations` those of categories 1..10 (category ids are the official ones; score 0 has
    iscrowd 1, whose COCO rule is the official one for such boxes), `ignored_regions` those of
    category 0, `others` those of category 11; :func:`official_ground_truth` gives the rows back.

    Args:
        src: the source; never changed.
        dst: the folder to make, outside `src`.
        split: train, val or test, for one folder or zip whose name does not say it.
        grey_ignored: paint ignored regions grey in the training images (labelled objects stay
            visible), never in others. Those images are encoded anew, JPEG at quality 95.
        overwrite: replace a `dst` that this package wrote, once the new one is complete.
        progress: called with (images done, images in all).

    Returns:
        What was kept, dropped and altered, by split.

    Raises:
        YoloAttnError: input at fault; names file and line.
    """
    src, dst = Path(src), Path(dst)
    if src.is_dir():
        check_apart(src, dst)
    elif src.resolve().is_relative_to(dst.resolve()):
        raise YoloAttnError(f"{dst}: holds the source {src}; choose another folder")
    check_free(dst, overwrite)
    report = ConversionReport(dst.resolve(), list(CLASSES))
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    painted = 0
    with ExitStack() as stack:
        sources = find_sources(src, split, report.notes, stack)
        if grey_ignored and [source.split for source in sources] == ["train"]:
            raise YoloAttnError(
                f"grey_ignored: {src} has training images alone, so those painted would serve for "
                "validation too; give the folder that holds val as well, or leave it out"
            )
        done, total = 0, sum(len(source.annotations) for source in sources)
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="yolo-attn-")))
        partial = stack.enter_context(whole_folder(dst, overwrite=overwrite))
        writer = YoloWriter(partial, report, categories, verbatim=True)
        for source in sources:
            counts = report.splits.setdefault(source.split, SplitReport())
            _count_images_without_annotation(source, counts)
            # The toolkit's order: by file name, suffix included. It breaks ties between scores.
            for name in sorted(source.annotations):
                done += 1
                if progress:
                    progress(done, total)
                rows = _read(source, name, counts)
                image = source.images.get(Path(name).stem)
                if image is None:
                    counts.drop_image("image missing", name, len(rows))
                    continue
                path = local_image(image, scratch)
                objects, beside = _sorted_out(rows, name)
                if grey_ignored and source.split == "train" and beside[REGIONS_KEY]:
                    path = _painted(path, beside[REGIONS_KEY], objects, scratch)
                    painted += 1
                    reason = "ignored regions painted grey"
                    counts.count("altered", reason, image.name)
                try:
                    writer.add(source.split, path, objects, name=image.name, beside=beside)
                except YoloAttnError as error:  # a copy's path means nothing to the user
                    raise YoloAttnError(str(error).replace(str(path), str(image))) from error
                if path.parent == scratch:
                    path.unlink()
        if grey_ignored:
            report.notes.append(f"training images with ignored regions painted grey: {painted}")
        writer.finish()
    return report


def official_ground_truth(
    annotations: str | Path,
) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, int]]]:
    """The rows of the source again, from annotations/<split>.json of a conversion.

    Args:
        annotations: the JSON file.

    Returns:
        ``{image stem: (n, 8) float64}`` in the official columns (left, top, width, height in
        pixels, score, category, truncation, occlusion), images and rows in the official order,
        without rows of categories that the protocol does not know; and
        ``{image stem: (width, height)}``.

    Raises:
        YoloAttnError: the file is not one that :func:`convert_visdrone` wrote.
    """
    path = Path(annotations)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stems = {image["id"]: Path(image["file_name"]).stem for image in content["images"]}
        sizes = {stems[i["id"]]: (i["width"], i["height"]) for i in content["images"]}
        rows: dict[str, list[tuple[float, ...]]] = {stem: [] for stem in sizes}
        for key, category in (("annotations", None), (REGIONS_KEY, 0), (OTHERS_KEY, 11)):
            for row in content[key]:
                rows[stems[row["image_id"]]].append(
                    (
                        row["line"],
                        *row["bbox"],
                        row["score"],
                        row["category_id"] if category is None else category,
                        row["truncation"],
                        row["occlusion"],
                    )
                )
        return {
            stem: np.array(sorted(r), dtype=np.float64).reshape(-1, 9)[:, 1:]
            for stem, r in rows.items()
        }, sizes
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise YoloAttnError(
            f"{path}: not the annotations of a VisDrone conversion ({type(error).__name__}: "
            f"{error}); make them with `yolo-attn convert visdrone`"
        ) from error


def _count_images_without_annotation(source: Source, counts: SplitReport) -> None:
    stems = {Path(name).stem for name in source.annotations}
    for stem in sorted(set(source.images) - stems):
        counts.count("dropped_images", "annotation missing", source.images[stem].name)


def _read(source: Source, name: str, counts: SplitReport) -> list[_Row]:
    """Rows of one annotation file; oddities that the official toolkit accepts are counted."""
    path = source.annotations[name]
    data = source.read(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = data.count(b"\n", 0, error.start) + 1
        raise YoloAttnError(
            f"{path} line {at}: not text (byte {error.start}: {error.reason}); expected {COLUMNS}"
        ) from None
    if text.startswith("\ufeff"):
        text = text[1:]
        counts.count("altered", "byte order mark at the start of the file", name)
    if "\r" in text:
        counts.count("altered", "Windows line ends", name)
    lines = re.split(r"\r\n|\r|\n", text)
    if not lines[-1]:
        lines.pop()
    rows = []
    for number, raw in enumerate(lines, 1):
        where = f"{name} line {number}"
        line = raw.strip(" \t")
        if not line:
            counts.count("altered", "blank line", where)
            continue
        if line.endswith(","):
            line = line[:-1]
            counts.count("altered", "trailing comma", where)
        fields = [f.strip(" \t") for f in line.split(",")]
        if "," not in line:
            fields = line.split()
            counts.count("altered", "spaces instead of commas", where)
        rows.append(_row(fields, number, f"{path} line {number}"))
        if rows[-1].score not in (0, 1):
            reason = "score neither 0 nor 1 (taken for 0)"
            counts.count("altered", reason, where)
    if not rows:
        counts.count("altered", "annotation file without a row", name)
    return rows


def _row(fields: Sequence[str], line: int, where: str) -> _Row:
    names = COLUMNS.split(",")
    if len(fields) != len(names):
        raise YoloAttnError(
            f"{where}: expected the 8 numbers {COLUMNS}, found {len(fields)}; correct the line"
        )
    values = []
    for field, column in zip(fields, names):
        # Python also takes 1_000 and digits of other scripts for numbers; the toolkit does not.
        value = finite(field if NUMBER.fullmatch(field) else ascii(field), f"{where}: {column}")
        values.append(int(value) if value.is_integer() and abs(value) < 2**53 else value)
    left, top, width, height, *rest = values
    return _Row(line, (left, top, width, height), *rest)


def _sorted_out(
    rows: Sequence[_Row], name: str
) -> tuple[list[LabelledBox], dict[str, list[LabelledBox]]]:
    """Objects of classes 0..9, and what is none, by its key in the COCO file."""
    objects: list[LabelledBox] = []
    beside: dict[str, list[LabelledBox]] = {REGIONS_KEY: [], OTHERS_KEY: []}
    for row in rows:
        x, y, w, h = row.box
        box: dict[str, Any] = {"where": f"{name} line {row.line}", "xyxy": (x, y, x + w, y + h)}
        if row.category == IGNORED_REGION:
            region = LabelledBox(
                **box, class_index=None, unlabelled="ignored region", extra=row.extra()
            )
            beside[REGIONS_KEY].append(region)
        elif row.category == OTHERS:
            other = LabelledBox(
                **box, class_index=None, unlabelled="category 'others'", extra=row.extra()
            )
            beside[OTHERS_KEY].append(other)
        else:
            known = row.category in range(1, len(CLASSES) + 1)
            counts = row.score == 1
            objects.append(
                LabelledBox(
                    **box,
                    class_index=int(row.category) - 1 if known else None,
                    area=w * h,
                    unlabelled=None if counts else "score 0",
                    extra={**row.extra(), "iscrowd": int(not counts)},
                )
            )
    return objects, beside


def _painted(
    image: Path, regions: Sequence[LabelledBox], objects: Sequence[LabelledBox], scratch: Path
) -> Path:
    """A copy of the image in `scratch`, grey in its regions except on labelled objects."""
    import cv2

    try:
        pixels = cv2.imdecode(np.fromfile(image, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise YoloAttnError(f"{image}: not an image that OpenCV can read; replace it")
    height, width = pixels.shape[:2]
    grey = np.zeros((height, width), bool)
    labelled = (o for o in objects if o.class_index is not None and o.unlabelled is None)
    for boxes, value in ((regions, True), (labelled, False)):
        for box in boxes:
            x1, y1, x2, y2 = (
                int(min(max(v, 0), limit))
                for v, limit in zip(box.xyxy, (width, height, width, height))
            )
            grey[y1:y2, x1:x2] = value
    pixels[grey] = GREY
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    try:
        _, data = cv2.imencode(image.suffix.lower(), pixels, quality)
    except cv2.error:
        raise YoloAttnError(
            f"{image}: OpenCV cannot write {image.suffix}; convert it to .jpg, or leave out the "
            "grey regions"
        ) from None
    target = scratch / image.name
    target.write_bytes(data.tobytes())
    return target
