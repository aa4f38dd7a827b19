"""Frequency channel attention.

Zequn Qin, Pengyi Zhang, Fei Wu, Xi Li.
FcaNet: Frequency Channel Attention Networks. ICCV 2021. https://arxiv.org/abs/2012.11879
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import check_channels, check_int, reduced_channels
from yolo_attn.errors import YoloAttnError
from yolo_attn.ops.adaptive_mean import averaging_matrix
from yolo_attn.ops.pooling import row_sums
from yolo_attn.registry import register

# Frequencies (vertical, horizontal) on a 7 x 7 grid, two digits each: the best and the worst ones
# as the authors ranked them on ImageNet, and the lowest.
FREQUENCIES = {
    "top": "00 01 60 05 02 10 12 40 50 16 30 04 06 03 35 22 "
    "46 63 33 53 55 21 61 52 54 32 31 41 23 20 65 13",
    "low": "00 01 10 11 02 20 21 12 22 03 30 40 04 13 31 05 "
    "14 23 32 41 50 06 15 24 33 42 51 60 16 25 34 43",
    "bot": "66 14 34 36 26 43 11 24 44 45 56 15 42 62 25 51 "
    "64 13 65 20 23 41 31 32 54 52 61 21 55 53 33 63",
}


@register(
    paper="Qin, Zhang, Wu, Li: FcaNet: Frequency Channel Attention Networks, ICCV 2021, "
    "arXiv 2012.11879",
    cost="time O(N C + 2 C^2/r), memory O(H C)",
    placement="at the end of a residual branch, as SE; here after a stage",
    width_options=("rd_channels",),
)
class FcaNet(nn.Module):
    """SE that squeezes by DCT coefficients, not by means: ``z = x * sigma(W2 relu(W1 d))``.

    ``d_c = sum_{a,b} x'_c[a,b] cos(pi u (a + 1/2) / h) cos(pi v (b + 1/2) / w) * norm``: one
    orthonormal 2-D DCT coefficient of x', the map averaged into h x w adaptive bins (dct_h, dct_w).
    Channels are cut into n equal groups; group i has the i-th frequency (u, v) of a table, times
    h // 7 and w // 7. A sum, not a mean: (0, 0) is ``sqrt(h w)`` times the mean. W1: C -> C/r, W2
    back, without bias. Not the identity at the start (about x/2).

    The authors fix h and w by the ResNet stage (56, 28, 14, 7); here they are 7 unless set. n must
    divide C: where that of `frequencies` does not, the largest smaller one that does is used, i.e.
    the first 12 of ``top16`` for C = 24 and 72, the first 10 for C = 40. C/r is at least 8: without
    a bias, one or two hidden ReLUs are easily all off.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        rd_ratio: Bottleneck width C/r as a share of C, at least 8.
        rd_channels: The width itself; overrides `rd_ratio`.
        frequencies: ``top``, ``low`` or ``bot`` followed by n, 1 to 32.
        dct_h: Height of the DCT's grid; below 7 every vertical frequency is 0, as in the authors'
            code.
        dct_w: Width of the grid, likewise.

    Raises:
        YoloAttnError: An option's value is not accepted.
    """

    basis: Tensor

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        frequencies: str = "top16",
        dct_h: int = 7,
        dct_w: int = 7,
    ):
        super().__init__()
        check_channels("FcaNet", channels)
        check_int("FcaNet", "dct_h", dct_h, maximum=256)
        check_int("FcaNet", "dct_w", dct_w, maximum=256)
        h = reduced_channels("FcaNet", channels, rd_ratio, rd_channels)
        chosen = _chosen(frequencies)
        count = next(n for n in range(len(chosen), 0, -1) if channels % n == 0)
        self.out_channels = channels
        self.fc1 = nn.Linear(channels, h, bias=False)
        self.fc2 = nn.Linear(h, channels, bias=False)
        self.register_buffer("basis", _dct_basis(chosen[:count], dct_h, dct_w), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return x * self.channel_weights(x)[:, :, None, None]

    def channel_weights(self, x: Tensor) -> Tensor:
        """Gates ``(B, C)`` for the input `x`."""
        return self.fc2(self.fc1(self._coefficients(x)).relu()).sigmoid()

    def _coefficients(self, x: Tensor) -> Tensor:
        """DCT coefficients d ``(B, C)``."""
        basis = self.basis.to(x.dtype)
        height, width = basis.shape[1:]
        if x.shape[3] != width:
            x = x @ averaging_matrix(x.shape[3], width, x).t()
        if x.shape[2] != height:
            # The rows' average is taken by the basis instead of by the map.
            basis = averaging_matrix(x.shape[2], height, x).t() @ basis
        groups = x.unflatten(1, (len(basis), -1)).flatten(3)
        return row_sums(groups, basis.flatten(1)[:, None]).flatten(1)


def _chosen(frequencies: str) -> list[tuple[int, int]]:
    """The (u, v) that a name such as ``top16`` stands for."""
    match = re.fullmatch(r"(top|low|bot)([1-9]\d?)", str(frequencies))
    if match is None or int(match[2]) > 32:
        raise YoloAttnError(
            f"FcaNet: frequencies={frequencies!r} is not accepted "
            "(accepted: top, low or bot followed by 1 to 32, e.g. 'top16')"
        )
    table = FREQUENCIES[match[1]].split()
    return [(int(uv[0]), int(uv[1])) for uv in table[: int(match[2])]]


def _dct_basis(frequencies: list[tuple[int, int]], height: int, width: int) -> Tensor:
    """2-D DCT-II basis images ``(n, height, width)``, rounded only at the end."""
    u, v = torch.tensor(frequencies, dtype=torch.float64).unbind(1)
    rows = _cosines(u * (height // 7), height)
    columns = _cosines(v * (width // 7), width)
    return (rows[:, :, None] * columns[:, None, :]).to(torch.get_default_dtype())


def _cosines(frequency: Tensor, length: int) -> Tensor:
    """Orthonormal DCT-II rows ``(n, length)``."""
    position = torch.arange(length, dtype=torch.float64) + 0.5
    norm = ((1 + (frequency > 0).to(torch.float64)) / length).sqrt()
    return torch.cos(math.pi / length * frequency[:, None] * position) * norm[:, None]
