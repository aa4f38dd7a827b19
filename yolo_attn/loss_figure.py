"""``yolo-attn losses --plot``: losses and their gradients against shift and scale, box by box.

A square target in the middle of an image; the prediction is the same box moved to the right, or
scaled about its centre. All in pixels of the network's input.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from yolo_attn.errors import YoloAttnError
from yolo_attn.losses import BoxLoss
from yolo_attn.losses.options import expand

SIDES = (6, 12, 32, 96)  # px
IMAGE = 640
DEFAULT = ("ciou", "siou", "mpdiou", "wiou-v1", "inner-ciou", "nwd")
SHIFTS = (0.0, 2.0)  # in sides of the box
SCALES = (0.4, 2.5)
POINTS = 161
SHIFTED = 4.0  # px, of the table
AWAY = 1.5  # sides, of the table


def curve(name: str, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each pair, and the L2 norm of its gradient by the predicted corners, per px."""
    pred = pred.double().requires_grad_()
    loss = BoxLoss(expand(name).spec)(pred, target.double(), 1.0, (IMAGE, IMAGE), train=False)
    (grad,) = torch.autograd.grad(loss.sum(), pred)
    return loss.detach(), grad.norm(dim=1)


def shifted(side: float, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions moved to the right by `shift` px, and their target."""
    target = _square(torch.full_like(shift, side))
    move = torch.stack([shift, torch.zeros_like(shift)], 1).repeat(1, 2)
    return target + move, target


def scaled(side: float, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions `factor` times as large, and their target."""
    return _square(side * factor), _square(torch.full_like(factor, side))


def _square(sides: Tensor) -> Tensor:
    half = torch.stack([-sides, -sides, sides, sides], 1) / 2
    return IMAGE / 2 + half


def table(names: tuple[str, ...] = DEFAULT) -> list[str]:
    """Gradient norms per px at two shifts, for each size of box."""
    lines = []
    for title, shift_of in (
        (f"moved by {SHIFTED:g} px", lambda side: SHIFTED),
        (f"moved by {AWAY:g} sides (no overlap)", lambda side: AWAY * side),
    ):
        lines.append(f"gradient norm per px, prediction {title}")
        lines.append("  " + f"{'box':<14}" + "".join(f"{f'{side} px':>10}" for side in SIDES))
        for name in names:
            norms = []
            for side in SIDES:
                shift = torch.tensor([shift_of(side)], dtype=torch.float64)
                norms.append(float(curve(name, *shifted(side, shift))[1]))
            lines.append("  " + f"{name:<14}" + "".join(f"{norm:>10.4f}" for norm in norms))
    return lines


def plot(file: Path, names: tuple[str, ...] = DEFAULT) -> None:
    """Draw loss and gradient norm against shift and scale, a column for each size.

    Raises:
        YoloAttnError: matplotlib is not there, or the file's ending is none that it knows.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 11), layout="constrained")
    axes = figure.subplots(4, len(SIDES), sharey="row")
    shift = torch.linspace(*SHIFTS, POINTS, dtype=torch.float64)
    factor = torch.linspace(*SCALES, POINTS, dtype=torch.float64)
    for column, side in enumerate(SIDES):
        rows = ((shift, shifted(side, shift * side)), (factor, scaled(side, factor)))
        for i, (x, pairs) in enumerate(rows):
            for name in names:
                loss, norm = curve(name, *pairs)
                axes[2 * i, column].plot(x, loss, label=name, linewidth=1.4)
                # Times the side: a gradient per px of a box twice as large is half as large.
                axes[2 * i + 1, column].plot(x, norm * side, label=name, linewidth=1.4)
        axes[0, column].set_title(f"box of {side} px")
        for row, text in enumerate(("shift / side", "shift / side", "scale", "scale")):
            axes[row, column].set_xlabel(text)
            axes[row, column].grid(alpha=0.3)
    for row, text in enumerate(("loss", "gradient norm x side", "loss", "gradient norm x side")):
        axes[row, 0].set_ylabel(text)
    axes[0, 0].legend(fontsize=8)
    try:
        figure.savefig(file, dpi=80)
    except ValueError as error:
        raise YoloAttnError(f"--plot {file}: {str(error).splitlines()[0]}") from None
