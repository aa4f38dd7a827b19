"""Mixed local channel attention.

Dahang Wan, Rongsheng Lu, Siyuan Shen, Ting Xu, Xianli Lang, Zhijie Ren.
Mixed local channel attention for object detection.
Engineering Applications of Artificial Intelligence 123, 2023. No arXiv id known.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    check_channels,
    check_flag,
    check_int,
    check_kernel,
    check_number,
)
from yolo_attn.blocks.eca import (
    adaptive_kernel,
    channel_kernel,
    correlate,
    reset_channel_kernel,
)
from yolo_attn.ops.adaptive_mean import averaging_matrix
from yolo_attn.registry import register


@register(
    paper="Wan, Lu, Shen, Xu, Lang, Ren: Mixed local channel attention for object detection, "
    "Engineering Applications of AI 123 (2023) 106442",
    cost="time O(N C + s^2 C k), memory O(N C)",
    placement="inside the backbone's residual branches; here after P3, P4 or P5",
)
class MLCA(nn.Module):
    """Channel gates per cell of a coarse grid, mixed with gates for the whole map.

    ``l = pool_{s x s} x`` (B, C, s, s), ``g = mean_cells l`` (B, C);
    ``a = (1 - lambda) sigma(w_g (*) g) + lambda sigma(w_l (*) l)``, ``z = x * unpool_{H x W} a``.

    ``(*)`` is ECA's correlation along channels. That of l runs over one sequence of all cells,
    channels innermost, so that at the border of two cells the last channels of one meet the
    first of the next; it is padded only at both ends, as in the authors' code. Pooling and
    "un-pooling" average adaptive bins in both directions; where s does not divide H and W the bins
    overlap and g is not quite the map's mean. Not the identity at the start (about x/2).

    Args:
        channels: C of the input ``(B, C, H, W)``.
        local_size: s, cells a side.
        gamma: Divisor in the rule for the kernel, ``k = |log2(C) + b| / gamma`` made odd.
        b: Offset in that rule.
        local_weight: lambda, from 0 to 1.
        learn_weight: Whether lambda is trained, starting from `local_weight` (unbounded then).
        kernel_size: k itself, odd; overrides `gamma` and `b`.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    def __init__(
        self,
        channels: int,
        local_size: int = 5,
        gamma: float = 2,
        b: float = 1,
        local_weight: float = 0.5,
        learn_weight: bool = False,
        kernel_size: int | None = None,
    ):
        super().__init__()
        check_channels("MLCA", channels)
        self.local_size = check_int("MLCA", "local_size", local_size, maximum=20)
        check_flag("MLCA", "learn_weight", learn_weight)
        self.start = check_number("MLCA", "local_weight", local_weight, high=1.0)
        adaptive = adaptive_kernel("MLCA", channels, gamma, "b", b)
        if kernel_size is None:
            kernel_size = adaptive
        k = check_kernel("MLCA", "kernel_size", kernel_size)
        self.out_channels = channels
        self.w_g = channel_kernel(k)
        self.w_l = channel_kernel(k)
        self.local_weight = nn.Parameter(torch.empty(1)) if learn_weight else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's default for both kernels, `local_weight` for lambda."""
        reset_channel_kernel(self.w_g)
        reset_channel_kernel(self.w_l)
        if self.local_weight is not None:
            nn.init.constant_(self.local_weight, self.start)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return x * self.gate_map(x)

    def gate_map(self, x: Tensor) -> Tensor:
        """Gates ``(B, C, H, W)`` for the input `x`."""
        s = self.local_size
        cells = _resample(x, s, s).flatten(2)  # (B, C, s^2)
        sequence = correlate(cells.transpose(1, 2).flatten(1), self.w_l).sigmoid()
        local = sequence.unflatten(1, (s * s, -1)).transpose(1, 2)
        overall = correlate(cells.mean(2), self.w_g).sigmoid()[:, :, None]
        weight = self.start if self.local_weight is None else self.local_weight
        a = overall + weight * (local - overall)
        return _resample(a.unflatten(2, (s, s)), *x.shape[2:])


def _resample(x: Tensor, height: int, width: int) -> Tensor:
    """``AdaptiveAvgPool2d`` of ``(B, C, H, W)`` to any size, larger ones too."""
    rows = averaging_matrix(x.shape[2], height, x)
    columns = averaging_matrix(x.shape[3], width, x)
    return rows @ (x @ columns.t())
