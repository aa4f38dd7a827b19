"""PASCAL-VOC XML (the standard layout, or images/ annotations/ splits/ as SIRST) to YOLO layout."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from yolo_attn.data.layout import (
    SPLITS,
    SUFFIXES,
    LabelledBox,
    Progress,
    YoloWriter,
    check_apart,
    check_free,
    finite,
    whole_folder,
)
from yolo_attn.data.report import ConversionReport, SplitReport
from yolo_attn.errors import YoloAttnError, did_you_mean

# What (xmin, ymin) and (xmax, ymax) mean, as what to add to get edges in [0, width] x [0, height].
BOXES = {
    "one-based": (-1.0, -1.0),  # SIRST, and how darknet and Ultralytics read VOC files
    "inclusive": (-1.0, 0.0),  # the PASCAL VOC devkit: xmax is the last pixel, counted from 1
    "zero-based": (0.0, 0.0),  # LabelImg, CVAT and most tools: edges counted from 0
}
# images, annotations, splits: folder names; and how the boxes of such a set are given.
LAYOUTS = (
    ("JPEGImages", "Annotations", "ImageSets/Main", "inclusive"),
    ("images", "annotations", "splits", "one-based"),
)


@dataclass(frozen=True)
class _Object:
    where: str
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class _Annotation:
    filename: str
    size: tuple[int, int] | None
    objects: list[_Object]


def convert_voc(
    src: str | Path,
    dst: str | Path,
    *,
    classes: Sequence[str] | None = None,
    boxes: str | None = None,
    difficult: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert a set with PASCAL-VOC XML annotations into the YOLO layout.

    `src` holds JPEGImages/ Annotations/ ImageSets/Main/ (the standard) or images/ annotations/
    splits/ (SIRST). Splits are text files train.txt, val.txt, test.txt with one name a line.

    Args:
        src: the source folder; never changed.
        dst: the folder to make, outside `src`.
        classes: class names in the order wanted; objects of other names are dropped and counted.
            Default: all names found, sorted.
        boxes: what the corners mean. "inclusive": pixels counted from 1, xmax the last one (the
            VOC devkit; default for the standard layout). "one-based": edges counted from 1, so
            one is subtracted from all four (SIRST: its boxes fit its targets this way; default
            for that layout). "zero-based": edges as they are (LabelImg, CVAT).
        difficult: write objects marked difficult as labels; by default they are kept in
            annotations/<split>.json alone, as VOC leaves them out of training and score.
        overwrite: replace a `dst` that this package wrote, once the new one is complete.
        progress: called with (images done, images in all).

    Returns:
        What was kept, dropped and altered, by split.

    Raises:
        YoloAttnError: input at fault; names file and element.
    """
    src, dst = Path(src), Path(dst)
    if boxes is not None and boxes not in BOXES:
        raise YoloAttnError(
            f"boxes={boxes!r}: expected one of {', '.join(BOXES)}{did_you_mean(boxes, BOXES)}"
        )
    image_dir, annotation_dir, split_dir, usual = _layout(src)
    check_apart(src, dst)
    check_free(dst, overwrite)
    convention = boxes or usual
    images = _index_images(image_dir)
    report = ConversionReport(dst.resolve(), [])

    listed = _read_splits(split_dir, annotation_dir, report)
    parsed: dict[str, _Annotation] = {}
    for name in sorted({name for names in listed.values() for name in names}):
        xml = annotation_dir / f"{name}.xml"
        if os.path.isfile(xml):  # unlike Path.is_file, False for a name too long for a file
            parsed[name] = _read_xml(xml)
    found = Counter(o.name for a in parsed.values() for o in a.objects)
    names = _classes(classes, found, annotation_dir)
    report.classes = names
    report.notes.append(f"boxes read as {convention!r} (option boxes: {', '.join(BOXES)})")
    unlisted = sum(not any(stem in split for split in listed.values()) for stem in images)
    if unlisted:
        report.notes.append(f"images of {image_dir} in no split: {unlisted}")

    index = {name: i for i, name in enumerate(names)}
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    done, total = 0, sum(map(len, listed.values()))
    with whole_folder(dst, overwrite=overwrite) as partial:
        writer = YoloWriter(partial, report, categories)
        for split, split_names in listed.items():
            for name in split_names:
                done += 1
                if progress:
                    progress(done, total)
                counts = report.splits[split]
                if name not in parsed:
                    counts.count("dropped_images", "annotation missing", f"{name}.xml")
                    continue
                annotation = parsed[name]
                image = _find_image(images, name, annotation.filename, annotation_dir)
                if image is None:
                    counts.drop_image("image missing", name, len(annotation.objects))
                    continue
                if image.stem != name:
                    reason = "image found by the XML's filename, not by the annotation's name"
                    counts.count("altered", reason, f"{name}.xml: {image.name}")
                writer.add(
                    split,
                    image,
                    [_labelled(o, index, convention, difficult) for o in annotation.objects],
                    stated_size=annotation.size,
                )
        writer.finish()
    return report


def _layout(src: Path) -> tuple[Path, Path, Path, str]:
    if not src.is_dir():
        raise YoloAttnError(f"{src}: no such folder; give the one that holds images/ annotations/")
    for images, labels, splits, boxes in LAYOUTS:
        if (src / images).is_dir() and (src / labels).is_dir():
            if not (src / splits).is_dir():
                raise YoloAttnError(
                    f"{src / splits}: missing; make it, with train.txt and val.txt that list one "
                    "image name a line"
                )
            return src / images, src / labels, src / splits, boxes
    wanted = " or ".join(f"{a}/ {b}/ {c}/" for a, b, c, _ in LAYOUTS)
    raise YoloAttnError(f"{src}: not a VOC set; it should hold {wanted}")


def _index_images(folder: Path) -> dict[str, list[Path]]:
    images: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            images.setdefault(path.stem, []).append(path)
    return images


def _read_splits(
    split_dir: Path, annotation_dir: Path, report: ConversionReport
) -> dict[str, list[str]]:
    files = {split: split_dir / f"{split}.txt" for split in SPLITS}
    if not files["train"].is_file() and (split_dir / "trainval.txt").is_file():
        files["train"] = split_dir / "trainval.txt"
        if files["val"].is_file():
            del files["val"]  # it is part of trainval
        report.notes.append("there is no train.txt: trainval.txt is used")
    listed: dict[str, list[str]] = {}
    for split, file in files.items():
        if not file.is_file():
            continue
        counts = report.splits.setdefault(split, SplitReport())
        names: dict[str, None] = {}
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise YoloAttnError(
                f"{file}: cannot be read as text ({error}); expected one image name a line"
            ) from error
        for line in filter(None, map(str.strip, text.splitlines())):
            name = line
            if not os.path.isfile(annotation_dir / f"{name}.xml"):
                name = PureWindowsPath(line).name  # a path or a file name instead of a bare name
                if Path(name).suffix.lower() in SUFFIXES | {".xml"}:
                    name = Path(name).stem
            if name in names:
                counts.count("dropped_images", "listed twice", name)
            names[name] = None
        listed[split] = list(names)
    if not listed:
        raise YoloAttnError(
            f"{split_dir}: no train.txt, val.txt or test.txt; write them, one image name a line"
        )
    splits = list(listed)
    for i, a in enumerate(splits):
        for b in splits[i + 1 :]:
            if both := set(listed[a]) & set(listed[b]):
                report.notes.append(f"images both in {a} and in {b}: {len(both)}")
    return listed


def _classes(classes: Sequence[str] | None, found: Counter[str], annotation_dir: Path) -> list[str]:
    if classes is None:
        if not found:
            raise YoloAttnError(
                f"{annotation_dir}: no object in any listed file; give the class names (classes)"
            )
        return sorted(found)
    if isinstance(classes, str) or not classes or len(set(classes)) != len(classes):
        raise YoloAttnError(f"classes={classes!r}: expected a list of distinct names")
    return list(classes)


def _find_image(
    images: dict[str, list[Path]], name: str, filename: str, annotation_dir: Path
) -> Path | None:
    stated = PureWindowsPath(filename).name
    for stem in (name, stated, Path(stated).stem):
        paths = images.get(stem, [])
        if len(paths) > 1:
            paths = [p for p in paths if p.name == stated] or paths
        if len(paths) > 1:
            raise YoloAttnError(
                f"{annotation_dir / name}.xml: <filename> {filename!r} leaves open which of "
                f"{', '.join(p.name for p in paths)} is meant; add the suffix"
            )
        if paths:
            return paths[0]
    return None


class _NoDoctype(ET.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        # Entities could name local files or grow without bound; annotations need neither.
        raise YoloAttnError("has a DOCTYPE, which is not accepted; remove that line")


def _read_xml(path: Path) -> _Annotation:
    try:
        root = ET.fromstring(path.read_bytes(), parser=ET.XMLParser(target=_NoDoctype()))
    except YoloAttnError as error:
        raise YoloAttnError(f"{path}: {error}") from None
    except (ET.ParseError, OSError, ValueError, LookupError) as error:
        raise YoloAttnError(
            f"{path}: not well-formed XML ({error}); repair it or take it out of the splits"
        ) from error
    if root.tag != "annotation":
        raise YoloAttnError(f"{path}: the root is <{root.tag}>, expected <annotation>")
    size = None
    if (element := root.find("size")) is not None:
        width, height = (
            finite(_text(element, tag, f"{path}: <size>"), f"{path}: <size><{tag}>")
            for tag in ("width", "height")
        )
        # Some tools write 0 x 0 for "unknown".
        size = (int(width), int(height)) if width or height else None
    objects = []
    for number, element in enumerate(root.findall("object"), 1):
        place = f"{path}: <object> {number}"
        box = element.find("bndbox")
        if box is None:
            raise YoloAttnError(f"{place}: no <bndbox>; add it or remove the object")
        x1, y1, x2, y2 = (
            finite(_text(box, tag, f"{place}: <bndbox>"), f"{place}: <{tag}>")
            for tag in ("xmin", "ymin", "xmax", "ymax")
        )
        marked = (element.findtext("difficult") or "0").strip().lower() in ("1", "true")
        objects.append(
            _Object(
                f"{path.name} object {number}",
                _text(element, "name", place),
                (x1, y1, x2, y2),
                marked,
            )
        )
    return _Annotation((root.findtext("filename") or "").strip(), size, objects)


def _text(element: ET.Element, tag: str, place: str) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise YoloAttnError(f"{place}: no <{tag}>, or an empty one; add it")
    return text


def _labelled(o: _Object, index: dict[str, int], convention: str, difficult: bool) -> LabelledBox:
    low, high = BOXES[convention]
    x1, y1, x2, y2 = o.corners
    return LabelledBox(
        where=o.where,
        class_index=index.get(o.name),
        xyxy=(x1 + low, y1 + low, x2 + high, y2 + high),
        unlabelled="difficult" if o.difficult and not difficult else None,
        extra={"ignore": 1} if o.difficult and not difficult else {},
    )
