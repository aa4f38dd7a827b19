"""Adaptive average pooling as matrix products: deterministic everywhere and exportable at any size.

Bin i of s bins along an axis of length L averages the positions
``floor(i L / s) .. ceil((i + 1) L / s) - 1``. Bins overlap where s does not divide L, and repeat
positions where s > L.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def averaging_matrix(length: int, bins: int, like: Tensor) -> Tensor:
    """The matrix that averages `length` positions into `bins` bins.

    Args:
        length: L.
        bins: s.
        like: Gives dtype and device.

    Returns:
        ``(bins, length)``; every row sums to 1.
    """
    position = torch.arange(length, device=like.device)
    index = torch.arange(bins, device=like.device)[:, None]
    start = torch.div(index * length, bins, rounding_mode="floor")
    end = torch.div((index + 1) * length + bins - 1, bins, rounding_mode="floor")
    inside = (position >= start) & (position < end)
    inside = inside.to(torch.promote_types(like.dtype, torch.float32))
    return (inside / (end - start)).to(like.dtype)


def pyramid_matrices(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Averaging matrices of all `sizes` for the rows and columns of ``(B, C, H, W)``, stacked.

    Returns:
        ``(sum(sizes), H)`` and ``(sum(sizes), W)``.
    """
    rows = [averaging_matrix(x.shape[2], s, x) for s in sizes]
    columns = [averaging_matrix(x.shape[3], s, x) for s in sizes]
    return torch.cat(rows), torch.cat(columns)


def pyramid_pool(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Average `x` into ``s x s`` bins for every s of `sizes`; reads `x` once.

    Args:
        x: ``(B, C, H, W)``.
        sizes: Grid sides.

    Returns:
        ``(B, C, S)`` with ``S = sum(s^2)``: one grid after the other, each row by row.
    """
    rows, columns = pyramid_matrices(x, sizes)
    # Every pair of row bins and column bins; the pairs of one size stand on the diagonal blocks.
    grid = rows @ (x @ columns.t())
    blocks, start = [], 0
    for s in sizes:
        blocks.append(grid[:, :, start : start + s, start : start + s].flatten(2))
        start += s
    return torch.cat(blocks, dim=2)


def pyramid_spread(weights: Tensor, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Spread weights of pyramid bins over the positions that each bin averages.

    Args:
        weights: ``(B, Q, S)``.
        x: The pooled map ``(B, C, H, W)``.
        sizes: Grid sides.

    Returns:
        ``(B, Q, H, W)``; sums over positions equal sums over bins.
    """
    total: Tensor | None = None
    for s, block in zip(sizes, weights.split([s * s for s in sizes], dim=2)):
        rows = averaging_matrix(x.shape[2], s, weights)
        columns = averaging_matrix(x.shape[3], s, weights)
        part = rows.t() @ block.unflatten(2, (s, s)) @ columns
        total = part if total is None else total + part
    assert total is not None
    return total
