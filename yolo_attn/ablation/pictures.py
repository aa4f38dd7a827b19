"""The same few images with each arm's detections side by side."""

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

SHOWN = 3  # images
SCORE = 0.25  # lowest score that is drawn
WIDTH = 420  # px of a panel
TRUE_COLOUR, FOUND_COLOUR = (0, 158, 115), (213, 94, 0)


@dataclass(frozen=True)
class Picture:
    """One image: its name, and (title, PNG bytes) of the ground truth and of each arm."""

    name: str
    panels: list[tuple[str, bytes]]


def pictures_of(results: Results) -> list[Picture]:
    """The images with most objects, by the first seed that each arm has; none if they are gone."""
    first = {
        arm: next(iter(by_seed.values())) for arm, by_seed in results.trials.items() if by_seed
    }
    if not first:
        return []
    arrays = {arm: _load(trial) for arm, trial in first.items()}
    base = next(iter(arrays.values()))
    paths = {int(i): str(p) for p, i in zip(base["paths"], base["index"])}
    count = np.bincount(base["gt_image"], minlength=max(paths, default=0) + 1)
    out: list[Picture] = []
    for index in np.argsort(-count, kind="stable"):
        path = paths.get(int(index))
        if len(out) == SHOWN:
            break
        if path is None or not Path(path).is_file():
            continue
        truth = base["gt_boxes"][base["gt_image"] == index]
        panels = [(f"objects ({len(truth)})", _draw(path, truth, [], []))]
        for arm, found in arrays.items():
            rows = (found["det_image"] == index) & (found["det_score"] >= SCORE)
            names = [found["names"].get(str(c), "?") for c in found["det_category"][rows]]
            labels = [f"{n} {s:.2f}" for n, s in zip(names, found["det_score"][rows])]
            title = f"{arm}, seed {first[arm].seed} ({int(rows.sum())} above {SCORE})"
            panels.append((title, _draw(path, [], found["det_boxes"][rows], labels)))
        out.append(Picture(Path(path).name, panels))
    return out


def data_uri(png: bytes) -> str:
    """For an ``img`` of a page that opens offline."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _load(trial: Trial) -> dict[str, Any]:
    with np.load(trial.folder.path / PREDICTIONS, allow_pickle=False) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files}
    arrays["names"] = json.loads(str(arrays.pop("classes")))
    return arrays


def _draw(path: str, truth: Any, found: Any, labels: list[str]) -> bytes:
    from PIL import Image, ImageDraw

    with Image.open(path) as file:
        image = file.convert("RGB")
    scale = WIDTH / image.width
    image = image.resize((WIDTH, max(1, round(image.height * scale))))
    pen = ImageDraw.Draw(image)
    for boxes, colour in ((truth, TRUE_COLOUR), (found, FOUND_COLOUR)):
        for x, y, w, h in np.asarray(boxes, float).reshape(-1, 4) * scale:
            pen.rectangle((x, y, x + max(w, 1), y + max(h, 1)), outline=colour, width=2)
    for (x, y, *_), label in zip(np.asarray(found, float).reshape(-1, 4) * scale, labels):
        pen.text((x, max(0, y - 11)), label, fill=FOUND_COLOUR)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
