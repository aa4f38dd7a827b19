"""COCO JSON to YOLO layout; crowd regions and true areas stay in annotations/<split>.json."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from yolo_attn.data.layout import (
    SPLITS,
    LabelledBox,
    Progress,
    YoloWriter,
    check_apart,
    check_free,
    finite,
    whole_folder,
)
from yolo_attn.data.report import ConversionReport, SplitReport
from yolo_attn.errors import YoloAttnError


@dataclass(frozen=True)
class _Source:
    file: Path
    images: Path
    splits: tuple[str, ...]


@dataclass(frozen=True)
class _Image:
    id: int | str
    file_name: str
    size: tuple[int, int] | None


def convert_coco(
    src: str | Path,
    dst: str | Path,
    *,
    images: str | Path | None = None,
    split: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert a set with COCO annotations into the YOLO layout.

    `src` is one of: a folder with annotations.json and images/; a JSON file (its images in
    `images`, by default images/ beside it); a folder with COCO's own layout
    (annotations/instances_train*.json, instances_val*.json, images in folders train*, val*).

    Classes are numbered in the order of their category ids. Boxes are clipped to the image in the
    labels only; annotations/<split>.json keeps every box of the images and categories in the set
    as it was, with crowd regions, true areas and the original ids, so that scores against it are
    scores against the source.

    Args:
        src: the source; never changed.
        dst: the folder to make, outside `src`.
        images: the folder of the images, where it is not the usual one.
        split: the splits that the images of one JSON file serve for, separated by commas.
            Default "train,val": the same images for both (stored once), as for COCO128.
        overwrite: replace a `dst` that this package wrote, once the new one is complete.
        progress: called with (images done, images in all).

    Returns:
        What was kept, dropped and altered, by split.

    Raises:
        YoloAttnError: input at fault; names file and element.
    """
    src, dst = Path(src), Path(dst)
    sources = _sources(src, None if images is None else Path(images), split)
    for source in sources:
        check_apart(source.images, dst)
        if source.file.resolve().is_relative_to(dst.resolve()):
            raise YoloAttnError(f"{dst}: holds the source {source.file}; choose another folder")
    if src.is_dir():
        check_apart(src, dst)
    check_free(dst, overwrite)

    read = [_read(source.file) for source in sources]
    categories = _categories(sources[0].file, read[0])
    for source, content in zip(sources[1:], read[1:]):
        if _categories(source.file, content) != categories:
            raise YoloAttnError(
                f"{source.file}: 'categories' are not those of {sources[0].file}; make them equal"
            )
    names = [category["name"] for category in categories]
    report = ConversionReport(dst.resolve(), names)
    same = {s: source.splits[0] for source in sources for s in source.splits[1:]}
    index = {category["id"]: i for i, category in enumerate(categories)}
    done, total = 0, sum(len(content["images"]) for content in read)
    with whole_folder(dst, overwrite=overwrite) as partial:
        writer = YoloWriter(partial, report, categories, verbatim=True)
        for source, content in zip(sources, read):
            first = source.splits[0]
            counts = report.splits.setdefault(first, SplitReport())
            listed = _images(source.file, content)
            boxes = _boxes(source.file, content, listed, index, counts)
            for image in listed.values():
                done += 1
                if progress:
                    progress(done, total)
                path = source.images / image.file_name
                if not os.path.isfile(path):  # unlike Path.is_file, False for a name too long
                    counts.drop_image(
                        "image missing", image.file_name, len(boxes.get(image.id, ()))
                    )
                    continue
                writer.add(
                    first,
                    path,
                    boxes.get(image.id, ()),
                    # Flat: a folder named "images" inside would lead Ultralytics to wrong labels.
                    name=image.file_name.replace("/", "_"),
                    stated_size=image.size,
                    image_id=image.id,
                )
        writer.finish(same)
    return report


def _sources(src: Path, images: Path | None, split: str | None) -> list[_Source]:
    splits = tuple(s.strip() for s in ("train,val" if split is None else split).split(","))
    if not set(splits) <= set(SPLITS) or len(set(splits)) != len(splits):
        raise YoloAttnError(f"split={split!r}: expected some of {','.join(SPLITS)}, with commas")
    file = src / "annotations.json" if src.is_dir() else src
    standard = sorted((src / "annotations").glob("instances_*.json"))
    if standard and not file.is_file():
        if split is not None or images is not None:
            raise YoloAttnError(
                f"{src}: its files name their splits and folders; leave out split and images, or "
                "give one JSON file"
            )
        return _standard(src, standard)
    if not file.is_file():
        raise YoloAttnError(
            f"{file}: no such file; give a COCO JSON file, or a folder with annotations.json and "
            "images/ or with annotations/instances_*.json"
        )
    folder = images if images is not None else file.parent / "images"
    if not folder.is_dir():
        raise YoloAttnError(f"{folder}: no such folder; say where the images are (images)")
    return [_Source(file, folder, splits)]


def _standard(src: Path, files: list[Path]) -> list[_Source]:
    sources: dict[str, _Source] = {}
    for file in files:
        folder = file.stem[len("instances_") :]
        split = next((s for s in SPLITS if folder.startswith(s)), None)
        if split is None or split in sources:
            why = "is a second file of its split" if split else "names no split"
            raise YoloAttnError(f"{file}: {why}; convert one JSON file at a time")
        places = [src / folder, src / "images" / folder]
        place = next((p for p in places if p.is_dir()), None)
        if place is None:
            raise YoloAttnError(f"{file}: its images are not in {places[0]} nor in {places[1]}")
        sources[split] = _Source(file, place, (split,))
    return [sources[s] for s in SPLITS if s in sources]


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise YoloAttnError(f"{file}: not JSON that can be read ({error}); repair it") from error
    if not isinstance(content, dict):
        raise YoloAttnError(
            f"{file}: expected an object with images, annotations and categories, found a "
            f"{type(content).__name__} (a results file?)"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise YoloAttnError(f"{file}: no list '{key}'; COCO annotations need it")
        for i, row in enumerate(content[key]):
            if not isinstance(row, dict):
                raise YoloAttnError(f"{file}: {key}[{i}]: expected an object, found {row!r:.40}")
    return content


def _get(row: dict[str, Any], key: str, kinds: tuple[type, ...], where: str) -> Any:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, kinds):
        wanted = " or ".join(k.__name__ for k in kinds)
        found = repr(value)[:40] if key in row else "nothing"
        raise YoloAttnError(f"{where}: '{key}' should be {wanted}, found {found}; correct it")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # "\\ud800" is a JSON string, but no text that a file can hold
            raise YoloAttnError(
                f"{where}: '{key}' {value!r:.40} is not valid Unicode; correct it"
            ) from None
    return value


def _categories(file: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    categories: list[dict[str, Any]] = []
    for i, row in enumerate(content["categories"]):
        where = f"{file}: categories[{i}]"
        category = {"id": _get(row, "id", (int,), where), "name": _get(row, "name", (str,), where)}
        for key in ("id", "name"):
            if any(category[key] == other[key] for other in categories):
                raise YoloAttnError(f"{where}: {key} {category[key]!r} is there twice; rename one")
        categories.append(category)
    if not categories:
        raise YoloAttnError(f"{file}: 'categories' is empty; list the classes")
    return sorted(categories, key=lambda category: category["id"])


def _images(file: Path, content: dict[str, Any]) -> dict[int | str, _Image]:
    listed: dict[int | str, _Image] = {}
    for i, row in enumerate(content["images"]):
        where = f"{file}: images[{i}]"
        image_id = _get(row, "id", (int, str), where)
        name = _get(row, "file_name", (str,), where)
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise YoloAttnError(
                f"{where}: file_name {name!r} should be a path below the images' folder"
            )
        size = None
        if row.get("width") is not None and row.get("height") is not None:
            size = (
                int(finite(row["width"], f"{where}: 'width'")),
                int(finite(row["height"], f"{where}: 'height'")),
            )
        if image_id in listed:
            raise YoloAttnError(f"{where}: id {image_id!r} is there twice; ids must be unique")
        listed[image_id] = _Image(image_id, name, size)
    return listed


def _boxes(
    file: Path,
    content: dict[str, Any],
    images: dict[int | str, _Image],
    index: dict[int, int],
    counts: SplitReport,
) -> dict[int | str, list[LabelledBox]]:
    boxes: dict[int | str, list[LabelledBox]] = {}
    for i, row in enumerate(content["annotations"]):
        where = f"{file}: annotations[{i}]"
        image_id = _get(row, "image_id", (int, str), where)
        category = _get(row, "category_id", (int,), where)
        bbox = _get(row, "bbox", (list,), where)
        if len(bbox) != 4:
            raise YoloAttnError(f"{where}: 'bbox' should be [x, y, w, h], found {bbox!r:.60}")
        x, y, w, h = (finite(v, f"{where}: 'bbox'") for v in bbox)
        area = None if row.get("area") is None else finite(row["area"], f"{where}: 'area'")
        crowd = row.get("iscrowd") or 0
        if crowd not in (0, 1):
            raise YoloAttnError(f"{where}: 'iscrowd' should be 0 or 1, found {crowd!r:.40}")
        if image_id not in images:
            reason = "its image_id is not in 'images'"
            counts.count("dropped_boxes", reason, f"annotations[{i}]")
            continue
        extra: dict[str, Any] = {"bbox": [x, y, w, h], "iscrowd": int(crowd)}
        if isinstance(row.get("id"), int):
            extra["id"] = row["id"]
        boxes.setdefault(image_id, []).append(
            LabelledBox(
                where=f"annotations[{i}] in {images[image_id].file_name}",
                class_index=index.get(category),
                xyxy=(x, y, x + w, y + h),
                area=area,
                unlabelled="crowd" if crowd else None,
                extra=extra,
            )
        )
    return boxes
