"""The brushes of the synthetic sets: backgrounds, clutter and shapes on a float canvas.

A canvas is (size, size, 3) float32 in grey levels 0 to 255; contours are (n, 2) in pixels, the
outer one first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

CLASSES = ("disk", "square", "triangle", "cross", "ring", "bar")
SUPERSAMPLE = 4  # shapes are drawn this much larger and averaged down
MARGIN = 1.0  # pixels between an object and the image's edge
GAP = 2.0  # pixels between two objects
TRIES = 40  # places tried for an object before it is left out


def new_shape(
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


def free_place(
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


def moved(contours: list[np.ndarray], box: np.ndarray) -> list[np.ndarray]:
    """The contours with their outer one in the box x1 y1 x2 y2."""
    centre = box[:2] - contours[0].min(0)
    return [c + centre for c in contours]


def cxcywh(box: np.ndarray) -> tuple[float, float, float, float]:
    """Centre, width and height of a box x1 y1 x2 y2."""
    x1, y1, x2, y2 = box
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def photographed(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Slightly blurred, with sensor noise, as uint8."""
    size = canvas.shape[0]
    canvas = cv2.GaussianBlur(canvas, (3, 3), float(rng.uniform(0.3, 0.6)))
    noise = rng.standard_normal((size, size, 1), dtype=np.float32)
    canvas += np.float32(rng.uniform(1, 5)) * noise
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
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


def distractor(
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
        paint(rng, canvas, [outline + centre], contrast=(25, 70))
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
        paint(rng, canvas, [outline + centre], contrast=(15, 45))


def paint(
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
