"""Intermediate supervision of RevCol: early columns must still know the image, late ones the task.

Section 3 and the compound loss of Cai et al. 2023, arXiv 2212.11696.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import at_least_float32, module_list
from yolo_attn.blocks._revcol_parts import EPS, Decoder
from yolo_attn.errors import YoloAttnError

GROUPS = 4


def supervised_columns(columns: int) -> tuple[int, ...]:
    """The last columns of the first three quarters; fewer where they coincide.

    With a multiple of four these are the paper's; the end of the last quarter has the detection
    loss itself.
    """
    ends = {round(columns * (g + 1) / GROUPS) - 1 for g in range(GROUPS - 1)}
    return tuple(sorted(t for t in ends if 0 <= t < columns - 1))


def compound_loss(
    image_losses: Sequence[Tensor], terms: Sequence[Tensor], f: float, c: float
) -> Tensor:
    """``sum_i f (1 - i/n) image_i + c (i+1)/(n+1) term_i`` over the n supervised columns.

    Reconstruction fades and the task grows from column to column.
    """
    n = len(image_losses)
    parts = [
        f * (1 - i / n) * image + c * (i + 1) / (n + 1) * term
        for i, (image, term) in enumerate(zip(image_losses, terms))
    ]
    return torch.stack(parts).sum()


def image_loss(logits: Tensor, image: Tensor) -> Tensor:
    """Binary cross-entropy of the drawn image, over all of its values."""
    return F.binary_cross_entropy_with_logits(logits, image.clamp(0.01, 0.99))


class Classifier(nn.Sequential):
    """``W LN(.)`` of the mean of a map, or of each of its positions."""

    def __init__(self, channels: int, outputs: int):
        super().__init__(nn.LayerNorm(channels, eps=EPS), nn.Linear(channels, outputs))

    def of_image(self, x: Tensor) -> Tensor:
        """``(B, C, h, w) -> (B, outputs)``."""
        return self(x.mean((2, 3)))

    def of_cells(self, x: Tensor) -> Tensor:
        """``(B, C, h, w) -> (B, h, w, outputs)``."""
        return self(x.permute(0, 2, 3, 1))


class Supervision(nn.Module):
    """Decoders and classifiers on the coarsest maps of some columns, and their loss.

    Args:
        widths: Channels of the four levels.
        kernel_size: Of the decoders' blocks.
        image_channels: Channels of the image.
        count: Number of supervised columns.
        num_classes: Classes of an image; None: whether each cell holds the centre of a box.
        image_weight: f of :func:`compound_loss`.
        term_weight: c of :func:`compound_loss`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        kernel_size: int,
        image_channels: int,
        count: int,
        num_classes: int | None,
        image_weight: float,
        term_weight: float,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.weights = (image_weight, term_weight)
        self.decoders = nn.ModuleList(
            Decoder(widths, kernel_size, image_channels) for _ in range(count)
        )
        self.classifiers = module_list(
            Classifier(widths[-1], num_classes or 1) for _ in range(count)
        )

    def forward(self, tops: Sequence[Tensor], batch: dict[str, Any]) -> Tensor:
        """The loss of coarsest maps ``(B, C_3, h, w)``, one a supervised column."""
        image = batch["img"]
        images, terms = [], []
        target = None
        for x, decode, classify in zip(tops, self.decoders, self.classifiers):
            drawn = decode(x)
            h, w = image.shape[2:]
            if drawn.shape[:2] != image.shape[:2] or drawn.shape[2] != h + -h % 32:
                raise YoloAttnError(
                    f"RevColumns: supervision draws images {tuple(drawn.shape)}, the batch has "
                    f"{tuple(image.shape)} (accepted: RevColumns as the first layer, reading the "
                    "image itself; or supervision=none)"
                )
            drawn = at_least_float32(drawn[:, :, :h, :w])
            images.append(image_loss(drawn, image.to(drawn.dtype)))
            logits = classify.of_cells(x) if self.num_classes is None else classify.of_image(x)
            logits = at_least_float32(logits)
            if target is None:
                target = self._target(batch, logits)
            terms.append(F.binary_cross_entropy_with_logits(logits, target))
        return compound_loss(images, terms, *self.weights) if images else image.new_zeros(())

    def _target(self, batch: dict[str, Any], logits: Tensor) -> Tensor:
        """Ones where a cell holds the centre of a box, or where the image holds a class."""
        target = torch.zeros_like(logits, requires_grad=False)
        needed = ("batch_idx", "bboxes") if self.num_classes is None else ("batch_idx", "cls")
        missing = [key for key in needed if key not in batch]
        if missing:
            raise YoloAttnError(
                f"RevColumns: supervision needs {missing[0]!r} of the batch, which this task does "
                "not have (accepted: a detection, segmentation, pose or OBB model; or "
                "supervision=none)"
            )
        index = batch["batch_idx"].to(target.device).long().view(-1)
        if self.num_classes is None:
            boxes = batch["bboxes"].to(target.device)
            (height, width), (h, w) = batch["img"].shape[2:], target.shape[1:3]
            # A padded map covers 32 h x 32 w pixels, more than the image.
            column = (boxes[:, 0] * width / 32).long().clamp(0, w - 1)
            row = (boxes[:, 1] * height / 32).long().clamp(0, h - 1)
            target[index, row, column] = 1
            return target
        classes = batch["cls"].to(target.device).long().view(-1)
        if len(classes) and int(classes.max()) >= self.num_classes:
            raise YoloAttnError(
                f"RevColumns: num_classes={self.num_classes}, but the data set has class "
                f"{int(classes.max())} (accepted: at least its number of classes)"
            )
        target[index, classes] = 1
        return target
