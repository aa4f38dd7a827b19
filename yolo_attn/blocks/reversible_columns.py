"""RevCol: a backbone of reversible columns.

Yuxuan Cai, Yizhuang Zhou, Qi Han, Jianjian Sun, Xiangwen Kong, Jun Li, Xiangyu Zhang.
Reversible Column Networks. ICLR 2023. https://arxiv.org/abs/2212.11696
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    WIDEST,
    check_channels,
    check_choice,
    check_flag,
    check_int,
    check_kernel,
    check_number,
    module_list,
)
from yolo_attn.blocks._revcol_parts import PAPER, Column, Downsample, reset
from yolo_attn.blocks._revcol_supervision import Supervision, supervised_columns
from yolo_attn.errors import YoloAttnError
from yolo_attn.ops.reversible import run_plain, run_reversible
from yolo_attn.registry import register

# widths of the levels, blocks a level, columns, drop-path rate
VARIANTS: dict[str, tuple[list[int], list[int], int, float]] = {
    "nano": ([16, 32, 64, 128], [1, 1, 2, 1], 4, 0.0),
    "T": ([64, 128, 256, 512], [2, 2, 4, 2], 4, 0.1),
    "S": ([64, 128, 256, 512], [2, 2, 4, 2], 8, 0.3),
    "B": ([72, 144, 288, 576], [1, 1, 3, 2], 16, 0.4),
}


@register(
    paper=PAPER,
    cost="time O(T N C (8 C + k^2)) for T columns, a third more in training; memory of one column "
    "in training, whatever T",
    placement="the backbone itself: reads the image; Index rows pick its outputs of stride 4, 8, "
    "16 and 32",
    width_options=("widths",),
)
class RevColumns(nn.Module):
    """T columns of four levels (stride 4 to 32): ``c_i = alpha_i p_i + F_i(c_{i-1}, p_{i+1})``.

    p are the maps of the column before, c this column's, ``c_{-1}`` the stem (4 x 4 convolution of
    stride 4 and layer norm) that every column reads. ``F_i`` is a 2 x 2 convolution of stride 2 of
    the finer map plus a linear map of the coarser one repeated 2 x 2 (each with layer norm),
    followed by ConvNeXt-style blocks. Output: the four maps of the last column, a list.

    Columns can be computed backwards, ``p_i = (c_i - F_i) / alpha_i``, so training keeps the maps
    of the last one only (the authors' code keeps those of every column). ``|alpha|`` has a floor;
    unlike there, the stored parameter is not overwritten. Sides that 32 does not divide are
    continued by zeros (``border: drop`` drops the rest at each level, as there).

    Args:
        channels: Channels of the input ``(B, channels, H, W)``; 3 for an image.
        variant: nano, or T, S, B of the paper; fixes what the next options do not.
        widths: Channels of the four levels.
        depths: Blocks of the four levels in each column.
        columns: T.
        kernel_size: k of the blocks' depthwise convolutions.
        drop_path: Probability that the last block of a column is skipped in training; rises
            linearly from 0 at the first.
        alpha_floor: Least magnitude of alpha. The smaller, the sooner the maps of columns in
            between must be kept as well (noticed in training, with a warning; gradients stay
            right). The authors' code has 0.001.
        reversible: Whether training rebuilds the columns in the backward pass; false is ordinary
            autograd (faster by about a quarter, memory grows with T).
        supervision: Auxiliary training loss of the columns at 1/4, 2/4 and 3/4 of T: none,
            objectness (image reconstruction, and whether a cell holds the centre of a box) or
            classification (reconstruction, and which classes the image holds).
        num_classes: Classes, for classification.
        image_weight: f: reconstruction counts f, 2/3 f, 1/3 f in the three columns.
        term_weight: c: the other term counts 1/4 c, 2/4 c, 3/4 c.
        layer_scale_init: Start value of the blocks' layer scale; 0 leaves it out.
        border: ``pad``, or ``drop``: a stride that does not divide a side drops the last rows and
            columns. The authors' code cannot fuse such maps from the second column on; here the
            coarser map's last row counts there once more. Not together with supervision.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    border = "pad"  # of checkpoints from before there was a choice

    def __init__(
        self,
        channels: int,
        variant: str = "nano",
        widths: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
        columns: int | None = None,
        kernel_size: int = 3,
        drop_path: float | None = None,
        alpha_floor: float = 0.05,
        reversible: bool = True,
        supervision: str = "none",
        num_classes: int | None = None,
        image_weight: float = 3.0,
        term_weight: float = 0.7,
        layer_scale_init: float = 1e-6,
        border: str = "pad",
    ):
        super().__init__()
        name = "RevColumns"
        check_channels(name, channels)
        check_choice(name, "variant", variant, VARIANTS)
        table = VARIANTS[variant]
        widths = _four(name, "widths", table[0] if widths is None else widths, WIDEST)
        depths = _four(name, "depths", table[1] if depths is None else depths, 64)
        count = check_int(name, "columns", table[2] if columns is None else columns, maximum=32)
        check_kernel(name, "kernel_size", kernel_size)
        rate = check_number(
            name, "drop_path", table[3] if drop_path is None else drop_path, 0, 0.99
        )
        self.alpha_floor = check_number(name, "alpha_floor", alpha_floor, 1e-6, 1.0)
        self.reversible = check_flag(name, "reversible", reversible)
        self.rebuilt_in_a_row = count  # the backward pass lowers it where precision is lost
        blocks = sum(depths)
        self.drop_rates = [rate * k / max(blocks - 1, 1) for k in range(blocks)]
        self.out_channels = list(widths)
        scale = check_number(name, "layer_scale_init", layer_scale_init, high=10.0)
        self.border = check_choice(name, "border", border, ("pad", "drop"))
        self.stem = Downsample(channels, widths[0], 4, border)
        self.columns = module_list(
            Column(widths, depths, kernel_size, t == 0, scale, border) for t in range(count)
        )
        check_choice(name, "supervision", supervision, ("none", "objectness", "classification"))
        self.supervised: tuple[int, ...] = ()
        self.supervision: Supervision | None = None
        if supervision != "none":
            if border == "drop":
                raise YoloAttnError(
                    f"{name}: border='drop' is not accepted with supervision={supervision!r}, "
                    "which draws whole images (accepted: 'pad')"
                )
            if supervision == "classification":
                check_int(name, "num_classes", num_classes, maximum=100_000)
            self.supervised = supervised_columns(count)
            self.supervision = Supervision(
                widths,
                kernel_size,
                channels,
                len(self.supervised),
                num_classes if supervision == "classification" else None,
                check_number(name, "image_weight", image_weight, high=1000.0),
                check_number(name, "term_weight", term_weight, high=1000.0),
            )
        self._tops: list[Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the paper does."""
        reset(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(B, channels, H, W) -> [(B, C_i, H / 2^(i+2), W / 2^(i+2)) for i in 0..3]``."""
        # The coarsest map is as large as the padded image needs it.
        h, w = -x.shape[2] % 32, -x.shape[3] % 32
        if (h or w) and self.border == "pad":
            x = torch.nn.functional.pad(x, (0, w, 0, h))
        given = (self.columns, self.stem(x), self.alpha_floor, self.supervised, self._drop_path(x))
        maps, tops = run_reversible(*given, self) if self.reversible else run_plain(*given)
        if self.supervision is not None and not torch.jit.is_tracing():
            self._tops = tops
        return maps

    def _drop_path(self, x: Tensor) -> list[list[Tensor] | None]:
        """Factors of every residual branch, drawn before the columns run: backward needs them."""
        if not self.training or not self.drop_rates[-1]:
            return [None] * len(self.columns)
        keep = 1 - torch.tensor(self.drop_rates, dtype=torch.float32)
        shape = (len(self.columns), len(keep), x.shape[0])
        drawn = torch.rand(shape, device=x.device)
        keep = keep.to(x.device)[:, None]
        return [list(((draws < keep) / keep).to(x.dtype).unbind()) for draws in drawn]

    @property
    def has_aux_loss(self) -> bool:
        """Whether training adds a loss of this block's own."""
        return self.supervision is not None

    def aux_loss(self, batch: dict[str, Any]) -> Tensor | None:
        """The auxiliary loss of the images that ran last; None without supervision.

        Args:
            batch: Ultralytics' batch: ``img`` (B, 3, H, W) in 0..1, ``batch_idx`` (n,), ``cls``
                (n, 1), ``bboxes`` (n, 4) x y w h as shares of the image.

        Raises:
            YoloAttnError: The block did not read the image itself, or the batch has no boxes.
        """
        if self.supervision is None or self._tops is None:
            return None
        tops, self._tops = self._tops, None
        return self.supervision(tops, batch)

    def __getstate__(self) -> dict[str, Any]:
        # What the last forward left belongs to its graph, which can be neither copied nor stored.
        return {**self.__dict__, "_tops": None}


def _four(block: str, option: str, value: Any, most: int) -> list[int]:
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise YoloAttnError(
            f"{block}: {option}={value!r} is not accepted (accepted: a list of four whole numbers "
            f"from 1 to {most})"
        )
    return [check_int(block, option, v, maximum=most) for v in value]
