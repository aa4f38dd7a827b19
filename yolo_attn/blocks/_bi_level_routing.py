"""Bi-level routing attention, the attention of :mod:`yolo_attn.blocks.biformer`.

The map is cut into regions; each region reads the k regions whose mean keys are nearest to its mean
query.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    at_least_float32,
    check_choice,
    check_flag,
    check_hidden,
    check_int,
    check_kernel,
    check_number,
    query_index,
)
from yolo_attn.errors import YoloAttnError
from yolo_attn.ops.adaptive_max import maxima_of_bins
from yolo_attn.ops.adaptive_mean import averaging_matrix
from yolo_attn.ops.attention import attend
from yolo_attn.ops.precision import without_autocast

BORDERS = ("mask", "bias", "zero")
ROUTINGS = ("hard", "soft", "differentiable")
KV_MODES = ("identity", "ada_avgpool", "ada_maxpool", "avgpool", "maxpool")
HEAD_WIDTH = 32


def check_side(block: str, option: str, side: Any) -> int:
    """Return the side of a centred kernel, 0 for none.

    Raises:
        YoloAttnError: It is negative, even or no whole number.
    """
    return check_kernel(block, option, side) if side != 0 else 0


class Regions(NamedTuple):
    """Queries, keys and values cut into regions.

    Attributes:
        q: ``(B m, R, l, d)``: m heads, R regions of l positions.
        k: ``(B m, R, l, d)``.
        v: ``(B m, R, l, e)``.
        v_map: All values as a map ``(B, H, W, C)``, with a border only in mode ``bias``.
        inside: ``(R, l)``, which positions lie on the map; None where all do.
        rows: Rows of regions and height of one.
        columns: Columns of regions and width of one.
        batch: B.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    v_map: Tensor
    inside: Tensor | None
    rows: tuple[int, int]
    columns: tuple[int, int]
    batch: int

    @property
    def number(self) -> int:
        """R; unlike the sizes of a cut tensor no constant of files with dynamic axes."""
        return self.rows[0] * self.columns[0]


class BiLevelRoutingAttention(nn.Module):
    """Attention of each position to the k regions nearest to its own; BiFormer has the options."""

    def __init__(
        self,
        block: str,
        channels: int,
        num_heads: int | None,
        n_win: int,
        topk: int,
        side_dwconv: int,
        qk_dim: int | None,
        qk_scale: float | None,
        border: str,
        routing: str,
        param_routing: bool,
        kv_downsample_mode: str,
        kv_per_win: int,
        kv_downsample_ratio: int,
        param_attention: str,
    ):
        super().__init__()
        self.qk_dim = (
            channels if qk_dim is None else check_hidden(block, "qk_dim", qk_dim, channels)
        )
        self.heads = _heads(block, channels, self.qk_dim, num_heads)
        self.n_win = check_int(block, "n_win", n_win, maximum=64)
        self.topk = check_int(block, "topk", topk, maximum=4096)
        self.scale = (
            self.qk_dim**-0.5
            if qk_scale is None
            else check_number(block, "qk_scale", qk_scale, high=100.0)
        )
        self.border = check_choice(block, "border", border, BORDERS)
        self.routing = check_choice(block, "routing", routing, ROUTINGS)
        check_flag(block, "param_routing", param_routing)
        self.kv_mode = check_choice(block, "kv_downsample_mode", kv_downsample_mode, KV_MODES)
        self.kv_per_win = check_int(block, "kv_per_win", kv_per_win, maximum=64)
        self.kv_ratio = check_int(block, "kv_downsample_ratio", kv_downsample_ratio, maximum=64)
        check_choice(block, "param_attention", param_attention, ("qkvo", "qkv"))
        self.qkv = nn.Linear(channels, 2 * self.qk_dim + channels)
        # One map for queries and keys.
        self.emb = nn.Linear(self.qk_dim, self.qk_dim) if param_routing else None
        side = check_side(block, "side_dwconv", side_dwconv)
        self.lepe = (
            nn.Conv2d(channels, channels, side, padding=side // 2, groups=channels)
            if side
            else None
        )
        self.wo = nn.Linear(channels, channels) if param_attention == "qkvo" else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        height, width = x.shape[1:3]
        r = self._regions(x)
        k, v, inside = self._pooled(r)
        index, weights = self._route(r)
        if index is None:
            # Every region reads every region: no need to copy keys and values together.
            q, k, v = (t.flatten(1, 2)[:, None] for t in (r.q, k, v))
            mask = None if inside is None else inside.flatten()[None, None, None]
        else:
            q = r.q
            k, v = (self._gathered(t, r, index, weights) for t in (k, v))
            mask = None
            if inside is not None:
                chosen = inside[index].flatten(2)[:, None].expand(-1, self.heads, -1, -1)
                mask = chosen.flatten(0, 1)[:, :, None]
        y = _attend(q, k, v, self.scale, mask)
        if index is None:
            y = y[:, 0].unflatten(1, (r.number, -1))
        y = _map(y, r, self.heads)
        y = y[:, : r.v_map.shape[1], : r.v_map.shape[2]]
        if self.lepe is not None:
            y = y + self.lepe(r.v_map.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = y[:, :height, :width]
        return y if self.wo is None else self.wo(y)

    def _regions(self, x: Tensor) -> Regions:
        height, width = x.shape[1:3]
        rows, columns = self._grid(height), self._grid(width)
        if rows[0] * columns[0] <= self.topk < self.n_win**2:
            # Only here every region is chosen: an exported file must stop at other sizes.
            height, width = int(height), int(width)
            rows, columns = self._grid(height), self._grid(width)
        missing = (0, 0, 0, columns[0] * columns[1] - width, 0, rows[0] * rows[1] - height)
        # A file with dynamic axes gets maps with a border, whatever the traced one has.
        padded = torch.onnx.is_in_onnx_export() or any(missing)
        if padded and self.border == "bias":
            x = F.pad(x, missing)
        qkv = self.qkv(x)
        v_map = qkv[..., 2 * self.qk_dim :]
        inside = None
        if padded and self.border != "bias":
            qkv = F.pad(qkv, missing)
            inside = _inside(height, width, rows, columns, x.device)
        q, k, v = (
            _cut(t, rows, columns, self.heads)
            for t in qkv.split([self.qk_dim, self.qk_dim, v_map.shape[3]], dim=3)
        )
        return Regions(q, k, v, v_map, inside, rows, columns, x.shape[0])

    def _grid(self, length: int) -> tuple[int, int]:
        """Number and side of the regions along an axis."""
        if self.border == "zero":
            side = length // min(self.n_win, length)
        else:
            side = (length + self.n_win - 1) // self.n_win
        return (self.n_win if self.border == "bias" else (length + side - 1) // side), side

    def _route(self, r: Regions) -> tuple[Tensor | None, Tensor | None]:
        """The chosen regions of each region ``(B, R, k)`` and their weights ``(B, R, k)``.

        None for the regions means all of them, None for the weights that there are none.
        """
        regions = r.q.shape[1]
        if self.topk >= regions and self.routing == "hard":
            return None, None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.routing == "differentiable"):
            q, k = self._mean(r.q, r), self._mean(r.k, r)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.routing != "hard"):
            if self.emb is not None:
                q, k = self.emb(q), self.emb(k)
            with without_autocast(q):
                logits = at_least_float32(q) * self.scale @ at_least_float32(k).transpose(1, 2)
            best, index = logits.topk(min(self.topk, regions), dim=2)
            return index, best.softmax(2) if self.routing != "hard" else None

    def _mean(self, x: Tensor, r: Regions) -> Tensor:
        """Means over the regions, all heads side by side: ``(B, R, D)``."""
        if r.inside is None:
            mean = x.mean(2)
        else:  # zeros outside
            count = r.inside.sum(1, keepdim=True)
            mean = (x.sum(2, dtype=torch.promote_types(x.dtype, torch.float32)) / count).to(x.dtype)
        return mean.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)

    def _gathered(self, x: Tensor, r: Regions, index: Tensor, weights: Tensor | None) -> Tensor:
        """The chosen regions of each region: ``(B m, R, l, d) -> (B m, R, k l, d)``."""
        d = x.shape[3]
        batch = torch.arange(r.batch * self.heads, device=x.device).view(-1, self.heads, 1, 1)
        flat = (index[:, None] + batch * r.number).flatten()
        chosen = x.flatten(2).flatten(0, 1).index_select(0, flat)
        chosen = chosen.unflatten(0, (-1, r.number, index.shape[2]))
        if weights is not None:
            scaled = chosen.unflatten(0, (-1, self.heads)) * weights.to(x.dtype)[:, None, ..., None]
            chosen = scaled.flatten(0, 1)
        return chosen.flatten(2).unflatten(2, (-1, d))

    def _pooled(self, r: Regions) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values, pooled within the regions, and which of them count."""
        inside = r.inside if self.border == "mask" else None
        if self.kv_mode == "identity" or ("ada" not in self.kv_mode and self.kv_ratio == 1):
            return r.k, r.v, inside
        k, v = (self._pool(t, r, inside) for t in (r.k, r.v))
        if inside is not None:
            inside = self._share_inside(inside, r).flatten(1) > 0
        return k, v, inside

    def _pool(self, x: Tensor, r: Regions, inside: Tensor | None) -> Tensor:
        # Constants of an exported file: it stops at maps whose regions have another size.
        side = (int(r.rows[1]), int(r.columns[1]))
        x = x.transpose(2, 3).unflatten(3, side)  # (B m, R, d, h, w)
        if inside is None:
            pooled = self._pool_maps(x, r)
        else:
            share = self._share_inside(inside, r)[:, None]
            outside = ~inside.unflatten(1, side)[:, None]
            if "max" in self.kv_mode:
                lowest = torch.finfo(x.dtype).min
                pooled = self._pool_maps(x.masked_fill(outside, lowest), r)
                pooled = pooled.masked_fill(share == 0, 0.0)
            else:  # the mean over the positions on the map
                pooled = self._pool_maps(x, r) / share.clamp_min(1e-6).to(x.dtype)
        return pooled.flatten(3).transpose(2, 3)

    def _share_inside(self, inside: Tensor, r: Regions) -> Tensor:
        """Share of each pooled position that lies on the map ``(R, h', w')``; ``max``: 0 or 1."""
        dtype = torch.promote_types(r.k.dtype, torch.float32)
        maps = inside.unflatten(1, (int(r.rows[1]), int(r.columns[1]))).to(dtype)
        return self._pool_maps(maps[None, :, None], r)[0, :, 0]

    def _pool_maps(self, x: Tensor, r: Regions) -> Tensor:
        """``(B, R, d, h, w) -> (B, R, d, h', w')``."""
        h, w = int(x.shape[-2]), int(x.shape[-1])
        s = self.kv_per_win
        if self.kv_mode == "ada_avgpool":
            return averaging_matrix(h, s, x) @ x @ averaging_matrix(w, s, x).t()
        if self.kv_mode == "ada_maxpool":
            return maxima_of_bins(maxima_of_bins(x, s, -2), s, -1)
        # A region smaller than the kernel is one position.
        kernel = [min(self.kv_ratio, h), min(self.kv_ratio, w)]
        pool = F.avg_pool2d if self.kv_mode == "avgpool" else F.max_pool2d
        return pool(x.flatten(0, 1), kernel).unflatten(0, (-1, r.number))

    def attention(self, x: Tensor, queries: Tensor) -> Tensor:
        """Rows ``(B, Q, H, W)`` for the input ``(B, H, W, C)``; see :meth:`BiFormer.attention`."""
        height, width = int(x.shape[1]), int(x.shape[2])
        r = self._regions(x)
        if self._pooled(r)[0] is not r.k:
            raise YoloAttnError(
                f"BiFormer: kv_downsample_mode={self.kv_mode!r} has no attention maps "
                "('identity' has)"
            )
        index, weights = self._route(r)
        regions, length = r.q.shape[1:3]
        if index is None:
            every = torch.arange(regions, device=x.device)
            index = every.expand(x.shape[0], regions, regions)
        # Which region and which position in it each query is, as the cutting puts it.
        padded = (r.rows[0] * r.rows[1], r.columns[0] * r.columns[1])
        number = torch.arange(padded[0] * padded[1], device=x.device).view(1, *padded, 1)
        place = _cut(number, r.rows, r.columns, 1).flatten().argsort()
        place = place[query_index(queries, padded[1])]
        q = r.q.flatten(1, 2)[:, place][:, :, None]
        asked = index[:, place // length]
        region = place // length
        k = self._gathered(r.k, r, index, weights)[:, region]
        logits = (self.scale * at_least_float32(q) @ at_least_float32(k).transpose(2, 3))[:, :, 0]
        logits = logits.unflatten(0, (-1, self.heads)).unflatten(3, (-1, length))
        if r.inside is not None and self.border == "mask":
            logits = logits.masked_fill(~r.inside[asked][:, None], -torch.inf)
        rows = logits.flatten(3).softmax(3).view_as(logits).mean(1)
        full = rows.new_zeros(*rows.shape[:2], regions, length)
        full = full.scatter(2, asked[..., None].expand_as(rows), rows)
        full = full.transpose(1, 3).transpose(1, 2)  # (B, R, l, Q)
        return _map(full, r, 1)[:, :height, :width].permute(0, 3, 1, 2)


def _heads(block: str, channels: int, qk_dim: int, num_heads: int | None) -> int:
    if num_heads is None:
        most = max(channels // HEAD_WIDTH, 1)
        return next(m for m in range(most, 0, -1) if channels % m == 0 and qk_dim % m == 0)
    check_int(block, "num_heads", num_heads, maximum=channels)
    if channels % num_heads or qk_dim % num_heads:
        raise YoloAttnError(
            f"{block}: num_heads={num_heads} is not accepted with channels={channels}, "
            f"qk_dim={qk_dim} (accepted: a number that divides both)"
        )
    return num_heads


def _cut(x: Tensor, rows: tuple[int, int], columns: tuple[int, int], heads: int) -> Tensor:
    """``(B, R_h h, R_w w, m d) -> (B m, R_h R_w, h w, d)``."""
    x = x.unflatten(3, (heads, -1)).unflatten(2, columns).unflatten(1, rows)
    return x.permute(0, 5, 1, 3, 2, 4, 6).flatten(4, 5).flatten(2, 3).flatten(0, 1)


def _map(y: Tensor, r: Regions, heads: int) -> Tensor:
    """The inverse of the cutting: ``(B m, R, l, e) -> (B, R_h h, R_w w, m e)``."""
    y = y.unflatten(2, (r.rows[1], r.columns[1])).unflatten(1, (r.rows[0], r.columns[0]))
    y = y.unflatten(0, (-1, heads)).permute(0, 2, 4, 3, 5, 1, 6)
    return y.flatten(5, 6).flatten(3, 4).flatten(1, 2)


def _inside(
    height: int,
    width: int,
    rows: tuple[int, int],
    columns: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """Which positions of the regions lie on the map ``(R, l)``."""
    row = torch.arange(rows[0] * rows[1], device=device) < height
    column = torch.arange(columns[0] * columns[1], device=device) < width
    return _cut((row[:, None] & column)[None, ..., None], rows, columns, 1)[0, ..., 0]


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Fused attention; `mask` says which keys count."""
    if mask is None:
        return attend(q, k, v, scale)
    # One width for all three, as in attend().
    d, e = q.shape[-1], v.shape[-1]
    q, k, v = (F.pad(t, (0, max(d, e) - t.shape[-1])) if d != e else t for t in (q, k, v))
    if torch.onnx.is_in_onnx_export():
        # Logits to add: files with a mask of booleans ask for NaNs, an operation that MNN lacks.
        mask = torch.where(mask, 0.0, -torch.inf).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)[..., :e]
