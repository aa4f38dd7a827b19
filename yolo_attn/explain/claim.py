"""A claim, measured: "at 14 x 14 and 7 x 7 a Non-local block does not enlarge the receptive field".

The same backbone with and without the block: the effective receptive field before and behind it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from yolo_attn.errors import YoloAttnError
from yolo_attn.explain.hooks import Subject, run, subject
from yolo_attn.explain.receptive_field import SHARES, Field, block_fields, square_inputs
from yolo_attn.explain.use import relative_change

SIDES = (224, 640)  # 224: P4 is 14 x 14 and P5 is 7 x 7
LEVELS = ("P3", "P4", "P5")
MATTERS = 0.05  # a radius that grows by less is called the same


@dataclass(frozen=True)
class ClaimRow:
    """One place of the block.

    Attributes:
        weights: Where the weights come from.
        place: Tap or layer.
        side: Side of the input in pixels.
        grid: Height and width of the block's map.
        before: ``(runs, 3)`` radii in pixels that hold 50, 90 and 99 % before the block.
        after: The same behind it.
        reached: Share of the input that the centre before the block depends on at all.
        block: Its name, e.g. ``NonLocal``.
        strength: ``|z - x| / |x|``, what the block adds to its input x; near 0 it does nothing,
            and cannot enlarge anything.
    """

    weights: str
    place: str
    side: int
    grid: tuple[int, int]
    before: npt.NDArray[np.float64]
    after: npt.NDArray[np.float64]
    reached: float
    block: str
    strength: float

    @property
    def growth(self) -> npt.NDArray[np.float64]:
        """Growth of the three radii as a share, from their means over the runs."""
        return self.after.mean(0) / self.before.mean(0) - 1

    @property
    def answer(self) -> str:
        """In words; the claim is that nothing grows."""
        grown = [f"r{round(100 * share)}" for share, g in zip(SHARES, self.growth) if g >= MATTERS]
        shrunk = [
            f"r{round(100 * share)}" for share, g in zip(SHARES, self.growth) if g <= -MATTERS
        ]
        words = [f"larger ({', '.join(grown)})"] if grown else []
        words += [f"smaller ({', '.join(shrunk)})"] if shrunk else []
        return "; ".join(words) or "not enlarged"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        names = [f"r{round(100 * share)}" for share in SHARES]
        return {
            "weights": self.weights,
            "block": self.block,
            "place": self.place,
            "side": self.side,
            "grid": list(self.grid),
            "without": dict(zip(names, self.before.mean(0).tolist())),
            "with": dict(zip(names, self.after.mean(0).tolist())),
            "runs": len(self.before),
            "reached_without": self.reached,
            "strength": self.strength,
            "answer": self.answer,
        }


def check_untrained(
    base: str,
    images: Sequence[npt.NDArray[np.uint8]],
    sides: Sequence[int] = SIDES,
    seeds: int = 3,
    progress: Callable[[], None] | None = None,
) -> list[ClaimRow]:
    """A base with random weights, with a Non-local block at P3, P4 or P5 that is switched on.

    The block starts as the identity, which enlarges nothing by construction: the scale of its last
    batch norm is set to 1 instead of 0, and all batch norms take their statistics from the images,
    so that the block's branch is as strong as its shortcut.

    Args:
        base: A model YAML with its scale, e.g. ``yolov8n.yaml``.
        images: Blue first; without any, uniform noise.
        sides: Of the square input.
        seeds: Number of random networks.
        progress: Called after each network and side.
    """
    rows = []
    for tap in LEVELS:
        networks = [_with_block(base, tap, seed) for seed in range(seeds)]
        for side in sides:
            inputs = square_inputs(images, side)
            runs, added = [], []
            for network in networks:
                _open_branches(network.model)
                _calibrate(network.model, torch.cat(inputs))
                runs.append(block_fields(network, inputs)[0])
                added.append(_strengths(network, inputs)[0])
                if progress:
                    progress()
            rows.append(_row("random", tap, side, runs, float(np.mean(added))))
    return rows


def check_trained(
    network: Subject,
    images: Sequence[npt.NDArray[np.uint8]],
    sides: Sequence[int],
    progress: Callable[[], None] | None = None,
) -> list[ClaimRow]:
    """A trained model: before and behind each of its blocks with one input.

    Raises:
        YoloAttnError: It has none.
    """
    rows = []
    for side in sides:
        inputs = square_inputs(images, side)
        found = block_fields(network, inputs)
        if not found:
            raise YoloAttnError(f"{network.name}: has no block with one input and one output")
        weights = Path(network.name).stem
        for fields, added in zip(found, _strengths(network, inputs)):
            place = f"layer {fields[0].split()[0]}"
            rows.append(_row(weights, place, side, [fields], added))
        if progress:
            progress()
    return rows


def _row(
    weights: str,
    place: str,
    side: int,
    runs: Sequence[tuple[str, Field, Field]],
    strength: float,
) -> ClaimRow:
    name, first, _ = runs[0]
    radii = np.array([[list(f.radii.values()) for f in fields] for _, *fields in runs])
    reached = float(np.mean([before.reached for _, before, _ in runs]))
    block = name.split()[-1]
    before, after = radii[:, 0], radii[:, 1]
    return ClaimRow(weights, place, side, first.grid, before, after, reached, block, strength)


def _strengths(network: Subject, inputs: Sequence[torch.Tensor]) -> list[float]:
    """``|z - x| / |x|`` of the blocks that :func:`block_fields` measures, mean of the images."""
    layers = [layer for layer in network.layers if layer.info.min_inputs == 1]
    added = []
    for x in inputs:
        run(network, x, layers)
        same = [la for la in layers if getattr(la.output, "shape", None) == la.first.shape]
        added.append([float(relative_change(la.first, la.output)) for la in same])
    return np.mean(added, axis=0).tolist()


def _with_block(base: str, tap: str, seed: int) -> Subject:
    """The base with one Non-local block behind a tap; the same backbone for the same seed."""
    from ultralytics import YOLO

    known = str(Path(base).resolve()) if Path(base).is_file() else base
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        path = Path(folder) / f"{Path(base).stem}-nonlocal.yaml"
        overlay = {"base": known, "insert": [[tap, 1, "NonLocal", []]]}
        path.write_text(json.dumps(overlay), encoding="utf-8")  # JSON is YAML
        torch.manual_seed(seed)
        model: Any = YOLO(str(path), verbose=False).model
        return subject(model, f"{base} + NonLocal at {tap}")


def _open_branches(model: nn.Module) -> None:
    for module in model.modules():
        norm = getattr(module, "norm", None)
        if type(module).__name__ == "NonLocal" and norm is not None:
            nn.init.ones_(norm.weight)


def _calibrate(model: nn.Module, x: torch.Tensor) -> None:
    """Give every batch norm the statistics of these images."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a plain mean
        m.train()
    with torch.no_grad():
        model(x)
    for m, momentum in zip(norms, kept):
        m.momentum = momentum
        m.eval()


def page(rows: Sequence[ClaimRow], command: str, images: str) -> str:
    """The answer as Markdown (docs/receptive-field.md)."""
    small = [r for r in rows if r.block == "NonLocal" and r.grid in ((14, 14), (7, 7))]
    lines = [
        "# Does a Non-local block enlarge the receptive field?",
        "",
        f"Printed by `{command}`; {images}.",
        "",
        "One of the source articles says that at 14 x 14 and 7 x 7 a Non-local block does not "
        "enlarge the receptive field,",
        "because the CNN's is global already. Measured is the effective receptive field (Luo et "
        "al. 2016, arXiv 1701.04128):",
        "the absolute gradient of the map's central cell with respect to the image, averaged over "
        "the images, and the radius",
        "in input pixels that holds 50, 90 and 99 % of it; before the block (the same network, the "
        "same weights, without it)",
        "and behind it. *Reached* is the share of the image on which the cell before the block "
        "depends at all, *adds* what the",
        "block adds to its input, |z - x| / |x|: near 0 it does nothing, whatever its map.",
        "",
        "*random*: random weights, the mean of several networks; the block's last batch norm is set"
        " to 1 (it starts at 0, as the",
        "identity), and all batch norms take their statistics from the images. Other rows are "
        "trained checkpoints as they are.",
        "",
        *table(rows),
        "",
        "## Answer",
        "",
        *[f"- {line}" for line in answers(rows)],
    ]
    if small:
        held = sum(r.answer == "not enlarged" for r in small)
        lines += [
            "",
            f"Of the {len(small)} rows with a Non-local block at 14 x 14 or 7 x 7 the claim holds "
            f"in {held} (a radius counts as larger from {MATTERS:.0%} on).",
        ]
    return "\n".join(lines) + "\n"


def answers(rows: Sequence[ClaimRow]) -> list[str]:
    """One sentence a row."""
    return [
        f"{r.weights}, {r.block} at {r.place}, {r.grid[0]} x {r.grid[1]} of a {r.side} px image: "
        f"the layers before it reach {r.reached:.0%} of it; behind the block "
        + ", ".join(
            f"r{round(100 * share)} {growth:+.0%}" for share, growth in zip(SHARES, r.growth)
        )
        + f": {r.answer}"
        for r in rows
    ]


def table(rows: Sequence[ClaimRow]) -> list[str]:
    """Markdown rows."""
    head = [
        "weights",
        "block",
        "image",
        "map",
        "adds",
        "reached",
        "r50",
        "r90",
        "r99",
        "behind: r50",
    ]
    head += ["r90", "r99", "answer"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        cells = [r.weights, f"{r.block}, {r.place}", f"{r.side}", f"{r.grid[0]} x {r.grid[1]}"]
        cells += [f"{r.strength:.3f}", f"{r.reached:.0%}"]
        cells += [f"{v:.0f}" for v in (*r.before.mean(0), *r.after.mean(0))]
        lines.append("| " + " | ".join([*cells, r.answer]) + " |")
    return lines
