"""Control pictures for context blocks: a far sign says which small shapes count, or it does not.

Both modes draw the same pictures, so a block that helps in one alone uses context and no other cue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from yolo_attn.data.drawing import (
    GAP,
    background,
    cxcywh,
    distractor,
    free_place,
    moved,
    new_shape,
    paint,
    photographed,
)

SIGN = 1 / 8  # side of the sign, of the image's
STRIPES = 4  # bright ones in a sign, and as many dark
SIGN_MARGIN = 4  # pixels from the image's edges
FLATTEN = 0.5  # of the background's contrast: a shape must be brighter or darker beyond doubt
CONTRAST = (45, 70)


@dataclass(frozen=True)
class Scene:
    """What is in a control picture.

    Attributes:
        image_size: side in pixels.
        counts: what the sign says: "bright" (its stripes lie) or "dark" (they stand).
        sign: its box x1 y1 x2 y2 in pixels.
        shapes: ``(class, x1, y1, x2, y2, "bright" or "dark")`` each, in pixels.
    """

    image_size: int
    counts: str
    sign: tuple[int, int, int, int]
    shapes: tuple[tuple[int, float, float, float, float, str], ...]

    def labels(self, mode: str) -> list[tuple[float, ...]]:
        """Labels ``(class, x, y, w, h)`` of the shapes that count in this mode."""
        wanted = self.counts if mode == "context" else "bright"
        return [
            (cls, *cxcywh(np.array(box) / self.image_size))
            for cls, *box, polarity in self.shapes
            if polarity == wanted
        ]

    def as_dict(self) -> dict[str, Any]:
        """The scene for a JSON file, pixels with three decimals."""
        shapes = [
            [cls, *(round(v, 3) for v in box), polarity] for cls, *box, polarity in self.shapes
        ]
        return {"counts": self.counts, "sign": list(self.sign), "shapes": shapes}


def draw_scene(
    rng: np.random.Generator,
    image_size: int,
    object_size: tuple[float, float],
    objects: tuple[int, int],
    clutter: float,
    classes: int,
    size_distribution: str,
    distance: float,
) -> tuple[np.ndarray, Scene]:
    """Draw one control picture.

    A sign stands in one of the corners; every shape is bright or dark by the toss of a coin, and
    at least `distance` pixels from the sign. The other arguments are those of
    :func:`yolo_attn.data.synthetic.make_smallshapes`.

    Returns:
        The image ``(image_size, image_size, 3)`` uint8 and what is in it.
    """
    canvas = background(rng, image_size)
    canvas = np.float32(127.5) + np.float32(FLATTEN) * (canvas - np.float32(127.5))
    counts = "bright" if rng.integers(2) else "dark"
    sign = _sign_box(rng, image_size)
    n = int(rng.integers(objects[0], objects[1] + 1))
    for _ in range(int(rng.poisson(n * clutter))):
        distractor(rng, canvas, object_size)
    _paint_sign(canvas, sign, lying=counts == "bright")  # over the clutter

    reach = max(distance - GAP, 0.0)
    taken = np.array([sign]) + np.array([-reach, -reach, reach, reach])
    shapes = []
    for _ in range(n):
        cls, contours = new_shape(rng, classes, object_size, size_distribution)
        bright = bool(rng.integers(2))
        box = free_place(rng, contours, image_size, taken)
        if box is not None:
            taken = np.vstack([taken, box])
            paint(rng, canvas, moved(contours, box), CONTRAST, bright)
            shapes.append((cls, *box.tolist(), "bright" if bright else "dark"))
    return photographed(rng, canvas), Scene(image_size, counts, sign, tuple(shapes))


def _sign_box(rng: np.random.Generator, image_size: int) -> tuple[int, int, int, int]:
    side = 2 * STRIPES * max(round(image_size * SIGN / (2 * STRIPES)), 2)
    far = image_size - SIGN_MARGIN - side
    x, y = (int(v) for v in np.where(rng.integers(2, size=2), far, SIGN_MARGIN))
    return x, y, x + side, y + side


def _paint_sign(canvas: np.ndarray, box: tuple[int, int, int, int], lying: bool) -> None:
    """Stripes of equal amounts of bright and dark: only their direction differs."""
    x1, y1, x2, y2 = box
    width = (x2 - x1) // (2 * STRIPES)
    stripe = np.where(np.arange(x2 - x1) // width % 2, 60, 195).astype(np.float32)
    canvas[y1:y2, x1:x2] = stripe[:, None, None] if lying else stripe[None, :, None]
