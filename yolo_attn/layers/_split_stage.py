"""C2f with another unit in place of its bottlenecks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import check_channels, check_flag, check_int
from yolo_attn.errors import YoloAttnError
from yolo_attn.layers._common import MOST_UNITS, host_conv, out_width, width_share


class SplitStage(nn.Module):
    """``z = cv2 [p, q_0, ..., q_n]``; ``[p, q_0] = cv1 x`` halves, ``q_i = unit_i(q_{i-1})``.

    Args:
        layer: Name for error messages.
        channels: C of the input ``(B, C, H, W)``.
        out_channels: Width of the output; default C.
        shortcut: As in a row of C2f; the units have a residual of their own.
        e: Width of p and of each q as a share of the output's.
        n: Number of units.
        unit: Makes a unit of a width.
    """

    def __init__(
        self,
        layer: str,
        channels: int,
        out_channels: int | None,
        shortcut: bool,
        e: float,
        n: int,
        unit: Callable[[int], nn.Module],
    ):
        super().__init__()
        c1 = check_channels(layer, channels)
        c2 = self.out_channels = out_width(layer, out_channels, c1)
        check_flag(layer, "shortcut", shortcut)
        check_int(layer, "n", n, maximum=MOST_UNITS)
        c = int(c2 * width_share(layer, e))
        if c < 1:
            raise YoloAttnError(
                f"{layer}: e={e!r} is not accepted with out_channels={c2} (accepted: one that "
                "leaves at least one channel)"
            )
        conv = host_conv()
        self.cv1 = conv(c1, 2 * c, 1, 1)
        self.cv2 = conv((2 + n) * c, c2, 1, 1)
        self.m = nn.ModuleList(unit(c) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, out_channels, H, W)``."""
        maps = list(self.cv1(x).chunk(2, 1))
        for unit in self.m:
            maps.append(unit(maps[-1]))
        return self.cv2(torch.cat(maps, 1))
