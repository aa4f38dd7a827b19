"""VisDrone result files, in the official submission format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.boxes import Detections
from yolo_attn.evaluation.visdrone import CLASSES, IGNORED_REGION, MAX_DETS, OTHERS

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def write_visdrone(
    folder: str | Path,
    names: Sequence[str],
    dets: Detections,
    *,
    shift: int = 0,
    cap: int = MAX_DETS[-1],
) -> int:
    """Write one result file an image: left, top, width, height, score, category, -1, -1.

    Rows are sorted by score (equal scores keep their order) and end at `cap`, since the toolkit
    takes an image's first 500 rows whatever their scores. Categories 0 and 11, which are never
    scored, are left out. An image without detections gets an empty file. Numbers are written so
    that reading them back gives the same float64.

    Args:
        folder: made if absent; must hold no other .txt file.
        names: (images,) names, a file each.
        dets: detections with categories 0-11 once `shift` is added.
        shift: added to the category (1 for a model trained on classes 0-9).
        cap: rows a file at most.

    Returns:
        How many detections were left out.

    Raises:
        YoloAttnError: a category outside 0-11; a name that is no file name or occurs twice; a
            folder with text files of other images, which a later evaluation would take up; a file
            that cannot be written.
    """
    folder = Path(folder)
    category = dets.category + shift
    outside = (category < IGNORED_REGION) | (category > OTHERS)
    if outside.any():
        raise YoloAttnError(
            f"category {int(category[outside][0])} has no place in a VisDrone result file "
            f"(accepted: {IGNORED_REGION}-{OTHERS})"
        )
    stems = [_stem(name) for name in names]
    name, images = Counter(stems).most_common(1)[0] if stems else ("", 0)
    if images > 1:
        raise YoloAttnError(f"{images} images are named {name!r}; a result file needs its own name")
    if folder.exists() and not folder.is_dir():
        raise YoloAttnError(f"{folder}: is a file; choose a folder")
    strangers = sorted({p.stem for p in folder.glob("*.txt")} - set(stems))
    if strangers:
        raise YoloAttnError(
            f"{folder / strangers[0]}.txt: belongs to no image of this set; choose an empty folder"
        )
    order = np.lexsort((-dets.score, dets.image))
    order = order[np.isin(category[order], list(CLASSES))]
    written = 0
    edges = np.searchsorted(dets.image[order], np.arange(len(stems) + 1))
    for i, stem in enumerate(stems):
        rows = order[edges[i] : edges[i + 1]][:cap]
        columns = (dets.boxes[rows].tolist(), dets.score[rows].tolist(), category[rows].tolist())
        text = [_line(*row) for row in zip(*columns)]
        _write(folder / f"{stem}.txt", "".join(text))
        written += len(text)
    return len(category) - written


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    except OSError as error:
        raise YoloAttnError(f"{path}: cannot be written ({error.strerror})") from error


def _line(box: list[float], score: float, category: int) -> str:
    return ",".join(_shortest(v) for v in (*box, score)) + f",{category},-1,-1\n"


def _shortest(value: float) -> str:
    """The shortest text that reads back as the same float64; whole numbers without a point."""
    return str(int(value)) if value % 1 == 0 else repr(value)


def _stem(name: str) -> str:
    last = PurePosixPath(name.replace("\\", "/"))
    stem = last.stem if last.suffix.lower() in IMAGE_SUFFIXES else last.name
    if stem in ("", ".", "..") or "\0" in stem:
        raise YoloAttnError(f"image {name!r}: no name for a result file")
    return stem
