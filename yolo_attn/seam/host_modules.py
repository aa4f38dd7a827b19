"""Modules of newer Ultralytics that our configs rely on, for releases that lack them."""

from __future__ import annotations

from torch import Tensor, nn


class Index(nn.Module):
    """Pick one of several outputs: ``[-1, 1, Index, [channels, index]]``, as Ultralytics' own."""

    def __init__(self, index: int = 0):
        super().__init__()
        self.index = index

    def forward(self, x: list[Tensor]) -> Tensor:
        """Output number `index` of the layer that is read."""
        return x[self.index]
