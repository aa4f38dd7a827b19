"""smallshapes: a small-object detection set drawn locally in seconds, the same bytes on every run.

Textured backgrounds (multi-octave noise and gradients), clutter that is no object (strokes, blobs,
irregular patches), and simple shapes of 6-24 px (square root of the box area) as the classes.
Two further modes are controls for context blocks; see :mod:`yolo_attn.data.synthetic_context`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from yolo_attn.data.drawing import (
    CLASSES,
    background,
    cxcywh,
    distractor,
    free_place,
    moved,
    new_shape,
    paint,
    photographed,
)
from yolo_attn.data.layout import MARK, whole_folder
from yolo_attn.data.synthetic_context import draw_scene
from yolo_attn.errors import YoloAttnError, did_you_mean

MODES = ("shapes", "context", "plain")
DISTRIBUTIONS = ("log-uniform", "uniform")
PARAMETERS = "smallshapes.json"
SCENES = "scenes"  # folder of what the control modes know beyond the labels
THREADS = 4


def make_smallshapes(
    root: str | Path,
    *,
    image_size: int = 320,
    train_images: int = 160,
    val_images: int = 40,
    object_size: tuple[float, float] = (6.0, 24.0),
    objects: tuple[int, int] = (8, 24),
    clutter: float = 0.5,
    classes: int = 5,
    seed: int = 0,
    size_distribution: str = "log-uniform",
    mode: str = "shapes",
    distance: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw the set into `root` (images/{train,val}, labels/{train,val}), whole or not at all.

    Calling it again with the same parameters finds the set and does nothing.

    Args:
        root: the folder to make.
        image_size: side of the square images in pixels, at least 64.
        train_images: number of training images.
        val_images: number of validation images.
        object_size: smallest and largest object (square root of the box area, pixels).
        objects: fewest and most objects in an image (uniform); objects do not overlap.
        clutter: distractors for each object, on average; 0 draws none.
        classes: number of classes, the first so many of disk, square, triangle, cross, ring, bar.
        seed: another seed, another set. An image depends on seed, split and its number alone.
        size_distribution: of the sizes between those two: "log-uniform" (half of the objects lie
            below the geometric mean) or "uniform" (half below the middle).
        mode: "shapes": every shape is an object. "context": a sign in a corner says whether
            bright or dark shapes are objects; the others are painted and not labelled. "plain":
            the same pictures, byte for byte, but bright shapes are the objects whatever the sign
            says. In both about half of the shapes count; only in "context" does a detector that
            sees no more than a shape's surroundings have to guess. scenes/<split>.json lists
            the signs and all shapes.
        distance: control modes: least gap between sign and shapes, pixels; default: a quarter
            of the side.
        overwrite: replace a set that was made with other parameters.

    Returns:
        The resolved root.

    Raises:
        YoloAttnError: a parameter is out of range, or `root` holds something else.
    """
    parameters = {
        "image_size": image_size,
        "train_images": train_images,
        "val_images": val_images,
        "object_size": [float(s) for s in object_size],
        "objects": list(objects),
        "clutter": float(clutter),
        "classes": classes,
        "seed": seed,
    }
    _check(image_size, train_images, val_images, object_size, objects, clutter, classes, seed)
    distance = _check_mode(image_size, size_distribution, mode, distance)
    if size_distribution != DISTRIBUTIONS[0]:
        parameters["size_distribution"] = size_distribution
    if mode != MODES[0]:
        parameters.update(mode=mode, distance=distance)
    text = json.dumps({"by": MARK.lstrip("# "), "smallshapes": 1, **parameters}, indent=1) + "\n"
    root = Path(root).resolve()
    if _is_made(root, text):
        return root
    try:
        with whole_folder(root, overwrite=overwrite, marker=PARAMETERS) as partial:
            for number, (split, n) in enumerate((("train", train_images), ("val", val_images))):
                images, labels = partial / "images" / split, partial / "labels" / split
                images.mkdir(parents=True)
                labels.mkdir(parents=True)

                def make(
                    i: int, number=number, images=images, labels=labels
                ) -> dict[str, Any] | None:
                    rng, scene = np.random.default_rng([seed, number, i]), None
                    drawn = (rng, image_size, object_size, objects, clutter, classes)
                    if distance is None:  # the mode without a sign
                        image, rows = draw_image(*drawn, size_distribution)
                    else:
                        image, shapes = draw_scene(*drawn, size_distribution, distance)
                        rows, scene = shapes.labels(mode), shapes.as_dict()
                    _write_png(images / f"{i:05d}.png", image)
                    lines = [f"{int(c)} " + " ".join(f"{v:.6f}" for v in b) for c, *b in rows]
                    _write_text(labels / f"{i:05d}.txt", lines)
                    return scene and {"image": f"{i:05d}.png", **scene}

                with ThreadPoolExecutor(THREADS) as pool:  # NumPy and OpenCV free the GIL
                    scenes = list(pool.map(make, range(n)))
                if mode != "shapes":
                    (partial / SCENES).mkdir(exist_ok=True)
                    _write_text(partial / SCENES / f"{split}.json", [json.dumps(scenes)])
            names = dict(enumerate(CLASSES[:classes]))
            content = {"train": "images/train", "val": "images/val", "names": names}
            _write_text(
                partial / "data.yaml",
                [MARK, *yaml.safe_dump(content, sort_keys=False).splitlines()],
            )
            _write_text(partial / PARAMETERS, text.splitlines())
    except YoloAttnError:
        # Two processes that start at once draw the same set; the second finds the first one's.
        if not _is_made(root, text):
            raise
    return root


def draw_image(
    rng: np.random.Generator,
    image_size: int,
    object_size: tuple[float, float],
    objects: tuple[int, int],
    clutter: float,
    classes: int,
    size_distribution: str = DISTRIBUTIONS[0],
) -> tuple[np.ndarray, list[tuple[float, ...]]]:
    """Draw one image; the arguments are those of :func:`make_smallshapes`.

    Returns:
        The image ``(image_size, image_size, 3)`` uint8 and the labels, one
        ``(class, x, y, w, h)`` an object, centre and size as fractions of the side.
    """
    canvas = background(rng, image_size)
    n = int(rng.integers(objects[0], objects[1] + 1))
    for _ in range(int(rng.poisson(n * clutter))):
        distractor(rng, canvas, object_size)
    rows: list[tuple[float, ...]] = []
    taken = np.zeros((0, 4))
    for _ in range(n):
        cls, contours = new_shape(rng, classes, object_size, size_distribution)
        box = free_place(rng, contours, image_size, taken)
        if box is not None:
            taken = np.vstack([taken, box])
            paint(rng, canvas, moved(contours, box), contrast=(60, 120))
            rows.append((cls, *cxcywh(box / image_size)))
    return photographed(rng, canvas), rows


def _check(
    image_size: int,
    train_images: int,
    val_images: int,
    object_size: tuple[float, float],
    objects: tuple[int, int],
    clutter: float,
    classes: int,
    seed: int,
) -> None:
    faults = {
        f"image_size={image_size}: at least 64": image_size < 64,
        f"train_images={train_images}: at least 1": train_images < 1,
        f"val_images={val_images}: at least 1": val_images < 1,
        f"object_size={object_size}: two sizes, 2 <= smallest <= largest <= image_size / 4": not (
            2 <= object_size[0] <= object_size[1] <= image_size / 4
        ),
        f"objects={objects}: two counts, 0 <= fewest <= most": not 0 <= objects[0] <= objects[1],
        f"clutter={clutter}: 0 or more": not 0 <= clutter < math.inf,
        f"classes={classes}: 1 to {len(CLASSES)} ({', '.join(CLASSES)})": (
            not 1 <= classes <= len(CLASSES)
        ),
        f"seed={seed}: 0 or more": seed < 0,
    }
    for fault, holds in faults.items():
        if holds:
            raise YoloAttnError(f"smallshapes: {fault}")


def _check_mode(
    image_size: int, size_distribution: str, mode: str, distance: float | None
) -> float | None:
    """The distance in force: None in the mode that has no sign."""
    for name, value, known in (
        ("size_distribution", size_distribution, DISTRIBUTIONS),
        ("mode", mode, MODES),
    ):
        if value not in known:
            raise YoloAttnError(
                f"smallshapes: {name}={value!r}: expected one of {', '.join(known)}"
                f"{did_you_mean(value, known)}"
            )
    if mode == "shapes":
        if distance is not None:
            raise YoloAttnError(
                f"smallshapes: distance={distance}: only the modes context and plain have a sign"
            )
        return None
    distance = image_size / 4 if distance is None else float(distance)
    if not 0 <= distance <= image_size / 2:
        raise YoloAttnError(f"smallshapes: distance={distance}: 0 to half of the side")
    return distance


def _is_made(root: Path, parameters: str) -> bool:
    try:
        return (root / PARAMETERS).read_text(encoding="utf-8") == parameters
    except (OSError, UnicodeDecodeError):
        return False


def _write_png(path: Path, image: np.ndarray) -> None:
    ok, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not ok:
        raise OSError(f"{path}: OpenCV could not encode the image")
    path.write_bytes(data.tobytes())


def _write_text(path: Path, lines: Sequence[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
