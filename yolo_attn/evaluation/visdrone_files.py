"""Reading VisDrone folders: what is odd is counted, what is broken is an error naming its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.boxes import Detections, Floats, GroundTruth, Ints
from yolo_attn.evaluation.coco_files import FARTHEST, read_json
from yolo_attn.evaluation.notes import EXAMPLES, Warnings
from yolo_attn.evaluation.visdrone import CLASSES, IGNORED_REGION, MAX_DETS, OTHERS

COLUMNS = ("left", "top", "width", "height", "score", "category", "truncation", "occlusion")
NEEDED = 6  # truncation and occlusion are never read
MOST_SIDE = 1_000_000  # px


def read_visdrone(
    gt_dir: str | Path, pred_dir: str | Path, sizes: str | Path | None = None
) -> tuple[GroundTruth, Detections, Warnings]:
    """Read a folder of VisDrone annotations and one of result files with the same names.

    Args:
        gt_dir: one text file an image, columns as in `COLUMNS`.
        pred_dir: likewise; every image needs its file, empty if there is no detection.
        sizes: sizes.json, {name: [width, height]}; needed if there are ignored regions.

    Returns:
        Ground truth (images in the order of their names), detections in file order, warnings.

    Raises:
        YoloAttnError: broken input; names file and line.
    """
    warnings = Warnings()
    gt = read_annotations(gt_dir, sizes, warnings)
    return gt, read_results(pred_dir, gt.names, warnings), warnings


def read_annotations(
    folder: str | Path, sizes: str | Path | None, warnings: Warnings
) -> GroundTruth:
    """Read a folder of VisDrone annotations; see `read_visdrone`."""
    folder = Path(folder)
    files = _text_files(folder, warnings)
    if not files:
        raise YoloAttnError(f"{folder}: no .txt file there; give a folder of VisDrone annotations")
    names = sorted(files, key=lambda name: f"{name}.txt")  # as a listing has them: a-b before a
    image, rows, lines = _stack([_read_rows(files[n], warnings) for n in names])
    where = _Places([files[n] for n in names], image, lines, warnings)
    category, score = rows[:, 5], rows[:, 4]
    regions = category == IGNORED_REGION
    where.count((category < 0) | (category > OTHERS), "annotation of a category outside 0-11")
    where.count(~np.isin(score, (0, 1)), "annotation with a score other than 0 or 1, taken as 0")
    # Others and regions are no objects; an odd size there changes nothing or is clamped.
    where.count(
        (rows[:, 2:4] <= 0).any(1) & ~regions & (category != OTHERS),
        "annotation without width or height (counts as an object that nothing can match)",
    )
    where.count(
        (rows[:, :4] % 1 != 0).any(1) & regions,
        "ignored region with fractions (rounded; the official toolkit stops there)",
    )
    image_sizes = None
    if sizes is not None:
        image_sizes = _pick_sizes(Path(sizes), names, warnings)
    elif regions.any():
        raise YoloAttnError(
            f"{folder}: its annotations have ignored regions; give the images' sizes "
            "(--sizes sizes.json, {name: [width, height]})"
        )
    return GroundTruth(
        names,
        CLASSES,
        image[~regions],
        rows[~regions, :4],
        category[~regions],
        score[~regions] != 1,
        region_image=image[regions],
        region_boxes=rows[regions, :4],
        sizes=image_sizes,
    )


def read_results(folder: str | Path, names: Sequence[str], warnings: Warnings) -> Detections:
    """Read a folder of VisDrone result files for the images `names`; see `read_visdrone`."""
    folder = Path(folder)
    files = _text_files(folder, warnings)
    for name in names:
        if name not in files:
            raise YoloAttnError(
                f"{folder / name}.txt: no such file; every annotated image needs one (empty if "
                "nothing was detected)"
            )
    for extra in sorted(set(files) - set(names)):
        warnings.count("result file without an annotation file, not read", str(files[extra]))
    image, rows, lines = _stack([_read_rows(files[n], warnings) for n in names])
    where = _Places([files[n] for n in names], image, lines, warnings)
    category, score = rows[:, 5], rows[:, 4]
    where.count(
        (category < 0) | (category > OTHERS),
        "detection of a category outside 0-11 (not scored, counts for the cap)",
    )
    where.count((score < 0) | (score > 1), "detection with a score outside 0-1")
    where.count((rows[:, 2:4] <= 0).any(1), "detection without width or height")
    rising = np.r_[False, (np.diff(score) > 0) & (np.diff(image) == 0)]
    for i in np.unique(image[rising]):
        what = "result file not sorted by score (the caps take its first rows)"
        warnings.count(what, str(files[names[i]]))
    for i in np.flatnonzero(np.bincount(image, minlength=len(names)) > MAX_DETS[-1]).tolist():
        what = f"result file with more than {MAX_DETS[-1]} rows (the rest is not scored)"
        warnings.count(what, str(files[names[i]]))
    return Detections(image, rows[:, :4], category.astype(np.int64), score)


def read_sizes(path: str | Path) -> dict[str, tuple[int, int]]:
    """Read sizes.json: {name: [width, height]} in pixels.

    Raises:
        YoloAttnError: names file and entry.
    """
    content = read_json(Path(path))
    if not isinstance(content, dict):
        raise YoloAttnError(f"{path}: expected an object {{name: [width, height]}}")
    sizes = {}
    for name, size in content.items():
        good = isinstance(size, list) and len(size) == 2 and all(_is_side(v) for v in size)
        if not good:
            raise YoloAttnError(
                f"{path}: {name!r}: {repr(size)[:60]} should be [width, height], whole numbers "
                f"of 1 to {MOST_SIDE}"
            )
        sizes[name] = (int(size[0]), int(size[1]))
    return sizes


def _is_side(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 1 <= value <= MOST_SIDE and value % 1 == 0


def _pick_sizes(path: Path, names: list[str], warnings: Warnings) -> Floats:
    known: Mapping[str, tuple[int, int]] = read_sizes(path)
    for name in names:
        if name not in known:
            raise YoloAttnError(
                f"{path}: no size for {name!r}, which has an annotation file; add it"
            )
    for extra in sorted(set(known) - set(names)):
        warnings.count(f"size in {path} of an image without an annotation file", repr(extra))
    return np.array([known[name] for name in names], np.float64).reshape(-1, 2)


def _text_files(folder: Path, warnings: Warnings) -> dict[str, Path]:
    if not folder.is_dir():
        raise YoloAttnError(f"{folder}: no such folder")
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".txt" and path.is_file():
            files[path.stem] = path
        else:
            warnings.count("file that is not a .txt, not read", str(path))
    return files


def _stack(tables: list[tuple[list[list[float]], list[int]]]) -> tuple[Ints, Floats, Ints]:
    """Image index, rows and line numbers of all files."""
    image = np.repeat(np.arange(len(tables)), [len(rows) for rows, _ in tables])
    rows = np.array([row for table, _ in tables for row in table], np.float64)
    lines = np.array([line for _, numbers in tables for line in numbers], np.int64)
    return image, rows.reshape(-1, NEEDED), lines


@dataclass
class _Places:
    """Says file and line of the rows that a mask picks."""

    files: list[Path]
    image: Ints
    lines: Ints
    warnings: Warnings

    def count(self, rows: np.ndarray | np.bool_, what: str) -> None:
        for n, row in enumerate(np.flatnonzero(rows)):
            if n < EXAMPLES:
                where = f"{self.files[self.image[row]]} line {self.lines[row]}"
                self.warnings.count(what, where)
        self.warnings.counts[what] += max(0, int(rows.sum()) - EXAMPLES)
        if not self.warnings.counts[what]:
            del self.warnings.counts[what]


def _read_rows(path: Path, warnings: Warnings) -> tuple[list[list[float]], list[int]]:
    """The first six columns of every line that is not blank, and the line numbers."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise YoloAttnError(f"{path}: cannot be read ({error})") from error
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
        warnings.count("file that starts with a byte order mark", str(path))
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        at = data.count(b"\n", 0, error.start) + 1
        raise YoloAttnError(
            f"{path} line {at}: byte {data[error.start]:#04x} is no plain text; expected numbers"
        ) from error
    rows, lines = [], []
    short = 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        fields = line.strip().rstrip(",").split(",") if "," in line else line.split()
        if not NEEDED <= len(fields) <= len(COLUMNS):
            raise YoloAttnError(
                f"{path} line {number}: {len(fields)} columns; expected {len(COLUMNS)}: "
                f"{', '.join(COLUMNS)}"
            )
        short += len(fields) < len(COLUMNS)
        rows.append(_numbers(fields, path, number))
        lines.append(number)
    if short:
        what = f"line with fewer than {len(COLUMNS)} columns (truncation, occlusion are not read)"
        warnings.count(what, str(path), short)
    return rows, lines


def _numbers(fields: list[str], path: Path, line: int) -> list[float]:
    row = []
    for name, text in zip(COLUMNS, fields[:NEEDED]):
        try:
            value = float(text) if "_" not in text else np.nan
        except ValueError:
            value = np.nan
        # The comparison is false for NaN.
        if not abs(value) <= FARTHEST:
            raise YoloAttnError(
                f"{path} line {line}: {name} {text.strip()!r:.40} is not a number up to "
                f"{FARTHEST:g}"
            )
        row.append(value)
    if row[5] % 1:
        raise YoloAttnError(f"{path} line {line}: category {fields[5]!r} is not a whole number")
    return row
