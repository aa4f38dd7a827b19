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

from yolo_attn.data.layout import MARK, whole_folder
from yolo_attn.errors import YoloAttnError, did_you_mean

MODES = ("shapes", "context", "plain")
DISTRIBUTIONS = ("log-uniform", "uniform")
CLASSES = ("disk", "square", "triangle", "cross", "ring", "bar")
PARAMETERS = "smallshapes.json"
SCENES = "scenes"  # folder of what the control modes know beyond the labels
SUPERSAMPLE = 4  # shapes are drawn this much larger and averaged down
MARGIN = 1.0  # pixels between an object and the image's edge
THREADS = 4
GAP = 2.0  # pixels between two objects
TRIES = 40  # places tried for an object before it is left out


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
    from yolo_attn.data.synthetic_context import draw_scene  # it draws with this file's brushes

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
    canvas = _background(rng, image_size)
    n = int(rng.integers(objects[0], objects[1] + 1))
    for _ in range(int(rng.poisson(n * clutter))):
        _distractor(rng, canvas, object_size)
    rows: list[tuple[float, ...]] = []
    taken = np.zeros((0, 4))
    for _ in range(n):
        cls, contours = _new_shape(rng, classes, object_size, size_distribution)
        box = _free_place(rng, contours, image_size, taken)
        if box is not None:
            taken = np.vstack([taken, box])
            _paint(rng, canvas, _moved(contours, box), contrast=(60, 120))
            rows.append((cls, *_cxcywh(box / image_size)))
    return _photographed(rng, canvas), rows


def _new_shape(
    rng: np.random.Generator, classes: int, object_size: tuple[float, float], distribution: str
) -> tuple[int, list[np.ndarray]]:
    """A class and the contours of such a shape about the origin, in its size."""
    cls = int(rng.integers(classes))
    if distribution == "uniform":
        size = float(rng.uniform(*object_size))
    else:
        size = float(np.exp(rng.uniform(np.log(object_size[0]), np.log(object_size[1]))))
    contours = _unit_shape(CLASSES[cls], rng)
    span = np.ptp(contours[0], axis=0)  # the outer contour comes first
    return cls, [c * (size / math.sqrt(span[0] * span[1])) for c in contours]


def _free_place(
    rng: np.random.Generator, contours: list[np.ndarray], image_size: int, taken: np.ndarray
) -> np.ndarray | None:
    """A box x1 y1 x2 y2 for the contours, apart from all `taken` (n, 4); None if none is found."""
    lo, hi = contours[0].min(0), contours[0].max(0)
    for _ in range(TRIES):
        centre = rng.uniform(MARGIN - lo, image_size - MARGIN - hi)
        box = np.concatenate([centre + lo, centre + hi])
        gap = np.maximum(box[:2] - taken[:, 2:], taken[:, :2] - box[2:]).max(1)
        if (gap > GAP).all():
            return box
    return None


def _moved(contours: list[np.ndarray], box: np.ndarray) -> list[np.ndarray]:
    centre = box[:2] - contours[0].min(0)
    return [c + centre for c in contours]


def _cxcywh(box: np.ndarray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def _photographed(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Slightly blurred, with sensor noise, as uint8."""
    size = canvas.shape[0]
    canvas = cv2.GaussianBlur(canvas, (3, 3), float(rng.uniform(0.3, 0.6)))
    noise = rng.standard_normal((size, size, 1), dtype=np.float32)
    canvas += np.float32(rng.uniform(1, 5)) * noise
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Multi-octave noise, mostly grey with a tint, plus a linear gradient: (size, size, 3)."""
    roughness, amplitude, cells = rng.uniform(0.3, 0.6), rng.uniform(25, 45), 2
    canvas: np.ndarray = np.zeros((cells, cells, 3), np.float32)
    while cells < size:
        octave = rng.uniform(-1, 1, (cells, cells, 1))
        if cells <= 6:  # coarse octaves have a tint, fine ones are grey
            octave = octave + 0.25 * rng.uniform(-1, 1, (cells, cells, 3))
        canvas += (amplitude * octave).astype(np.float32)
        amplitude, cells = amplitude * roughness, min(cells * 3, size)
        canvas = cv2.resize(canvas, (cells, cells), interpolation=cv2.INTER_CUBIC)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 50)
    axis = slope * (np.arange(size) / size - 0.5)
    ramp = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    colour = rng.uniform(80, 170) + rng.uniform(-15, 15, 3)
    canvas += ramp.astype(np.float32)[..., None]
    canvas += colour.astype(np.float32)
    return canvas


def _unit_shape(name: str, rng: np.random.Generator) -> list[np.ndarray]:
    """Contours of a shape about the origin, outer one first: each (n, 2)."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    tilt = rng.uniform(-0.3, 0.3)
    if name == "disk":
        return [circle * [1, rng.uniform(0.85, 1.15)]]
    if name == "ring":
        return [circle, circle * rng.uniform(0.5, 0.6)]
    if name == "square":
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    elif name == "triangle":
        points = np.array([[0, -1], [1, 0.9], [-1, 0.9]], float)
    elif name == "cross":
        a = rng.uniform(0.26, 0.36)
        points = np.array(
            [[-a, -1], [a, -1], [a, -a], [1, -a], [1, a], [a, a]]
            + [[a, 1], [-a, 1], [-a, a], [-1, a], [-1, -a], [-a, -a]]
        )
    else:  # bar
        points = np.array([[-1, -0.3], [1, -0.3], [1, 0.3], [-1, 0.3]])
        tilt += np.pi / 2 * int(rng.integers(2))
    cos, sin = np.cos(tilt), np.sin(tilt)
    return [points @ np.array([[cos, sin], [-sin, cos]])]


def _distractor(
    rng: np.random.Generator, canvas: np.ndarray, object_size: tuple[float, float]
) -> None:
    """Paint a stroke, a soft blob or a ragged patch somewhere."""
    size = canvas.shape[0]
    centre = rng.uniform(0, size, 2)
    kind = int(rng.integers(3))
    if kind == 0:  # a curved stroke, longer than any object
        t = np.linspace(-1, 1, 12)
        length, bend = rng.uniform(1.5, 4) * object_size[1], rng.uniform(-0.3, 0.3)
        line = np.stack([t * length / 2, bend * length * t * t], 1)
        width = rng.uniform(1, 2.5)
        outline = np.vstack([line, line[::-1] + [0, width]])
        angle = rng.uniform(0, 2 * np.pi)
        cos, sin = np.cos(angle), np.sin(angle)
        outline = outline @ np.array([[cos, sin], [-sin, cos]])
        _paint(rng, canvas, [outline + centre], contrast=(25, 70))
    elif kind == 1:  # a soft blob without an edge
        sigma = rng.uniform(1.0, 2.5) * object_size[1] / 3
        reach = int(3 * sigma)
        x, y = np.rint(centre).astype(int)
        ys = slice(max(y - reach, 0), min(y + reach + 1, size))
        xs = slice(max(x - reach, 0), min(x + reach + 1, size))
        yy, xx = np.mgrid[ys, xs]
        bump = np.exp(-((xx - x) ** 2 + (yy - y) ** 2) / (2 * sigma**2))
        canvas[ys, xs] += bump[..., None] * rng.choice([-1, 1]) * rng.uniform(25, 60)
    else:  # a ragged patch, larger than any object
        turn = np.sort(rng.uniform(0, 2 * np.pi, 14))
        radius = rng.uniform(0.4, 1.0, 14) * rng.uniform(0.9, 1.6) * object_size[1]
        outline = np.stack([np.cos(turn), np.sin(turn)], 1) * radius[:, None]
        _paint(rng, canvas, [outline + centre], contrast=(15, 45))


def _paint(
    rng: np.random.Generator,
    canvas: np.ndarray,
    contours: Sequence[np.ndarray],
    contrast: tuple[float, float],
    bright: bool | None = None,
) -> None:
    """Fill contours (even-odd, so a second one is a hole), antialiased, off the local grey."""
    size = canvas.shape[0]
    lo = np.maximum(np.floor(contours[0].min(0)).astype(int) - 1, 0)
    hi = np.minimum(np.ceil(contours[0].max(0)).astype(int) + 1, size)
    width, height = hi - lo
    if width <= 0 or height <= 0:
        return
    mask = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE), np.uint8)
    # Minus a half: OpenCV counts from pixel centres, our coordinates from pixel edges.
    points = [np.rint(((c - lo) * SUPERSAMPLE - 0.5) * 16).astype(np.int32) for c in contours]
    cv2.fillPoly(mask, points, 255, shift=4)
    mask = cv2.resize(mask, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    cover = mask[..., None] / np.float32(255)
    patch = canvas[lo[1] : hi[1], lo[0] : hi[0]]
    local = patch.mean()
    if bright is None:
        # Away from the nearer end of the range, mostly, so that the step is visible.
        bright = rng.uniform(60, 195) > local
    sign = 1 if bright else -1
    colour = local + sign * rng.uniform(*contrast) + rng.uniform(-25, 25, 3)
    patch += cover * (np.clip(colour, 0, 255).astype(np.float32) - patch)


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
