"""The same few images with what each arm found and missed, and where its attention looks."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolo_attn.ablation.evaluate_trial import PREDICTIONS
from yolo_attn.ablation.results import Results, Trial
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.boxes import Bools, Detections, Floats, GroundTruth, box_area
from yolo_attn.evaluation.matching import matches_at

SHOWN = 3  # images
SCORE = 0.25  # lowest score that is drawn
IOU = 0.5  # of a true positive
WIDTH = 420  # px of a panel
LABELLED = 15  # detections; more labels would hide the boxes
OUTSET = 5  # px between an object and its frame, which would hide a small one
# Okabe and Ito's colours, which the colour-blind can tell apart; misses are dashed as well.
TRUE, FALSE, MISSED = (86, 180, 233), (213, 94, 0), (240, 228, 66)
OBJECT = (0, 158, 115)
QUERY = (0, 229, 255)
OPAQUE = 0.65  # of a map over its image
GAP, CROSS = 6, 10  # px between maps, and length of the query's cross
LEGEND = (
    (OBJECT, "solid", "object"),
    (TRUE, "solid", f"true positive (IoU of {IOU} or more)"),
    (FALSE, "solid", "false positive"),
    (MISSED, "dashed", "missed object"),
)


@dataclass(frozen=True)
class Picture:
    """One image: its name, and (title, PNG bytes) of the ground truth, of each arm, of maps."""

    name: str
    panels: list[tuple[str, bytes]]


@dataclass(frozen=True)
class Found:
    """A trial's detections from `SCORE` on, matched at `IOU`.

    Attributes:
        truth: ground truth of all images.
        dets: detections.
        true, false: (n,) which detections are true and false positives; neither: they took an
            ignored box.
        missed: (g,) which objects no detection took.
    """

    truth: GroundTruth
    dets: Detections
    true: Bools
    false: Bools
    missed: Bools


def pictures_of(results: Results) -> list[Picture]:
    """The images with most objects, by the first seed that each arm has; none if they are gone."""
    first = {
        arm: next(iter(by_seed.values())) for arm, by_seed in results.trials.items() if by_seed
    }
    if not first:
        return []
    arrays = {arm: _load(trial) for arm, trial in first.items()}
    found = {arm: _match(columns) for arm, columns in arrays.items()}
    base = next(iter(arrays.values()))
    paths = {int(i): str(p) for p, i in zip(base["paths"], base["index"])}
    count = np.bincount(base["gt_image"], minlength=max(paths, default=0) + 1)
    order = [int(i) for i in np.argsort(-count, kind="stable")]
    shown = [i for i in order if i in paths and Path(paths[i]).is_file()][:SHOWN]
    maps = _query_maps(results, first, found.get(results.study.baseline), paths, shown)
    out = []
    for i in shown:
        truth = base["gt_boxes"][base["gt_image"] == i]
        panels = [(f"objects ({len(truth)})", _draw(paths[i], [(truth, OBJECT, ())]))]
        panels += [
            _panel(paths[i], i, f"{arm}, seed {first[arm].seed}", one) for arm, one in found.items()
        ]
        out.append(Picture(Path(paths[i]).name, [*panels, *maps.get(i, [])]))
    return out


def data_uri(png: bytes) -> str:
    """For an ``img`` of a page that opens offline."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def smallest_missed(found: Found, image: int) -> Floats | None:
    """Box (4,) left, top, width, height of the smallest missed object of an image, if any."""
    rows = np.flatnonzero(found.missed & (found.truth.image == image))
    if not len(rows):
        return None
    boxes = found.truth.boxes[rows]
    return boxes[box_area(boxes).argmin()]


def _load(trial: Trial) -> dict[str, Any]:
    with np.load(trial.folder.path / PREDICTIONS, allow_pickle=False) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files}
    arrays["names"] = json.loads(str(arrays.pop("classes")))
    return arrays


def _match(arrays: dict[str, Any]) -> Found:
    images = range(int(arrays["index"].max(initial=-1)) + 1)
    classes = {int(number): name for number, name in arrays["names"].items()}
    truth = GroundTruth(
        [str(i) for i in images], classes,
        *(arrays[f"gt_{key}"] for key in ("image", "boxes", "category", "ignored")),
    )  # fmt: skip
    dets = Detections(*(arrays[f"det_{key}"] for key in ("image", "boxes", "category", "score")))
    dets = dets.keep(dets.score >= SCORE)
    took = matches_at(truth, dets, IOU)
    hit = took >= 0
    true = hit & ~np.r_[truth.ignored, True][took]
    missed = ~truth.ignored & np.isin(truth.category, list(classes))
    missed[took[hit]] = False
    return Found(truth, dets, true, ~hit, missed)


def _panel(path: str, image: int, name: str, found: Found) -> tuple[str, bytes]:
    here = found.dets.image == image
    missed = found.missed & (found.truth.image == image)
    layers: list[Any] = [(found.truth.boxes[missed], MISSED, ())]
    counts: list[int] = []
    for rows, colour in ((found.false & here, FALSE), (found.true & here, TRUE)):
        labels = [
            f"{found.truth.classes.get(int(c), '?')} {s:.2f}"
            for c, s in zip(found.dets.category[rows], found.dets.score[rows])
        ]
        shown = labels if here.sum() <= LABELLED else ()
        layers.append((found.dets.boxes[rows], colour, shown))
        counts.append(int(rows.sum()))
    title = f"{name}: {counts[1]} true, {counts[0]} false, {int(missed.sum())} missed"
    return f"{title} (scores from {SCORE})", _draw(path, layers)


def _draw(path: str, layers: list[tuple[Floats, tuple[int, int, int], Any]]) -> bytes:
    """The image with boxes; a layer is boxes (n, 4), their colour, and labels or none."""
    from PIL import Image, ImageDraw

    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = WIDTH / image.width
    image = image.resize((WIDTH, max(1, round(image.height * scale))))
    pen = ImageDraw.Draw(image)
    for boxes, colour, labels in layers:
        corners = np.asarray(boxes, float).reshape(-1, 4) * scale
        for x, y, w, h in corners:
            frame = (x - OUTSET, y - OUTSET, x + w + OUTSET, y + h + OUTSET)
            # A dark rim keeps bright frames visible on bright images.
            pen.rectangle([*np.add(frame, (-1, -1, 1, 1))], outline=(0, 0, 0), width=4)
            if colour == MISSED:
                _dashed(pen, frame, colour)
            else:
                pen.rectangle(frame, outline=colour, width=2)
        for (x, y, *_), label in zip(corners, labels):
            where = (x - OUTSET, max(0, y - OUTSET - 13))
            pen.text(where, label, fill=colour, stroke_width=1, stroke_fill=(0, 0, 0))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _dashed(pen: Any, frame: tuple[float, ...], colour: tuple[int, int, int]) -> None:
    left, top, right, bottom = frame
    for (x0, y0), (x1, y1) in (
        ((left, top), (right, top)), ((right, top), (right, bottom)),
        ((right, bottom), (left, bottom)), ((left, bottom), (left, top)),
    ):  # fmt: skip
        # An odd number of parts, so that every corner is drawn.
        parts = 2 * max(1, round((abs(x1 - x0) + abs(y1 - y0)) / 16)) + 1
        at = np.linspace(0, 1, parts + 1)
        for a, b in zip(at[::2], at[1::2]):
            line = [x0 + a * (x1 - x0), y0 + a * (y1 - y0), x0 + b * (x1 - x0), y0 + b * (y1 - y0)]
            pen.line(line, fill=colour, width=2)


def _query_maps(
    results: Results,
    first: dict[str, Trial],
    baseline: Found | None,
    paths: dict[int, str],
    shown: list[int],
) -> dict[int, list[tuple[str, bytes]]]:
    """Image -> panels: for each arm with spatial attention, where it looks from that object.

    The object is the smallest that the baseline missed. Arms without weights have no panel.
    """
    out: dict[int, list[tuple[str, bytes]]] = {i: [] for i in shown}
    missed = {}
    for i in shown:
        box = smallest_missed(baseline, i) if baseline else None
        if box is not None:
            missed[i] = box
    if not missed:
        return out
    for arm, trial in first.items():
        # Torch is loaded for arms that have something to show, and not otherwise. An arm that took
        # another's weights would show the same map again.
        idle = trial.record.get("weights_of") or not results.arms[arm].get("blocks")
        if idle or not trial.folder.best.is_file():
            continue
        try:
            from yolo_attn.explain.hooks import load

            subject = load(trial.folder.best)
            subject.layers = [la for la in subject.layers if hasattr(la.block, "attention")]
            for i, box in missed.items():
                drawn = _query_map(subject, paths[i], box) if subject.layers else None
                if drawn:
                    what = f"{results.study.baseline} missed ({box[2]:.0f} x {box[3]:.0f} px)"
                    title = (
                        f"{arm}, {drawn[0]}: where it looks from the smallest object that {what}"
                    )
                    out[i].append((title, drawn[1]))
        except Exception as error:  # a checkpoint of another version may raise anything
            text = " ".join(str(error).split())
            kind = "" if isinstance(error, YoloAttnError) else f"{type(error).__name__}: "
            results.flags.append(f"no query maps of {arm} ({kind}{text})")
    return out


def _query_map(subject: Any, path: str, box: Floats) -> tuple[str, bytes] | None:
    """Names of the blocks and their maps side by side, drawn without a plotting library's time."""
    from PIL import Image

    from yolo_attn.explain.hooks import read_image
    from yolo_attn.explain.query_maps import ROWS, explain_image

    image = read_image(path)
    height, width = image.shape[:2]
    x, y, w, h = box
    centre = np.clip([x + w / 2, y + h / 2], 0, [width - 1e-3, height - 1e-3])
    looks = [look for look in explain_image(subject, image, [centre]).looks if look.kind == ROWS]
    if not looks:
        return None
    scale = WIDTH / width
    grey = Image.fromarray(image).convert("L").resize((WIDTH, max(1, round(height * scale))))
    maps = [_mark(_overlay(grey, look, scale), box * scale) for look in looks]
    sheet = Image.new("RGB", (len(maps) * (WIDTH + GAP) - GAP, grey.height), (255, 255, 255))
    for i, one in enumerate(maps):
        sheet.paste(one, (i * (WIDTH + GAP), 0))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    names = [f"{look.layer} {look.grid[0]} x {look.grid[1]}" for look in looks]
    return ", ".join(names), out.getvalue()


def _overlay(grey: Any, look: Any, scale: float) -> Any:
    """A query's map over the image; white to yellow is its peak, blue negative where it can be."""
    from matplotlib import colormaps
    from PIL import Image

    from yolo_attn.explain.query_maps import to_image

    place = tuple(edge * scale for edge in look.extent)
    values = to_image(look.values[0], place, grey.size)
    signed = bool((look.values[0] < 0).any())
    share = values / (float(np.abs(look.values[0]).max()) or 1.0)
    colours = colormaps["RdBu_r" if signed else "inferno"]((share + 1) / 2 if signed else share)
    # NaN where the map has no cell: the image alone.
    alpha = np.where(np.isnan(values), 0.0, OPAQUE)[..., None]
    below = np.asarray(grey, float)[..., None]
    mixed = np.where(alpha > 0, alpha * 255 * colours[..., :3], 0) + (1 - alpha) * below
    return Image.fromarray(mixed.astype(np.uint8))


def _mark(image: Any, box: Floats) -> Any:
    """The object that asks: a frame and a cross that leaves it free."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(image)
    x, y, w, h = box
    frame = (x - OUTSET, y - OUTSET, x + w + OUTSET, y + h + OUTSET)
    cx, cy = x + w / 2, y + h / 2
    arms = (
        (frame[0] - CROSS, cy, frame[0], cy), (frame[2], cy, frame[2] + CROSS, cy),
        (cx, frame[1] - CROSS, cx, frame[1]), (cx, frame[3], cx, frame[3] + CROSS),
    )  # fmt: skip
    for colour, width in (((0, 0, 0), 4), (QUERY, 2)):
        pen.rectangle(frame, outline=colour, width=width)
        for line in arms:
            pen.line(line, fill=colour, width=width)
    return image
