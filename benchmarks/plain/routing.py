"""BiFormer: bi-level routing attention with gathered keys and values and explicit weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._common import Plain


class BiFormer(Plain):
    """The block (or, with `attention_only`, its attention alone) under default options.

    Follows the authors' channels-last code; positions beyond the border are masked as ours masks
    them.
    """

    def __init__(self, channels: int, attention_only: bool = False, n_win: int = 7, topk: int = 4):
        super().__init__()
        self.n_win, self.topk = n_win, topk
        most = max(channels // 32, 1)
        self.heads = next(m for m in range(most, 0, -1) if channels % m == 0)
        self.attention_only = attention_only
        self.scale = channels**-0.5
        self.qkv = nn.Linear(channels, 3 * channels)
        self.lepe = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.wo = nn.Linear(channels, channels)
        if not attention_only:
            self.pos_embed = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            self.norm1 = nn.LayerNorm(channels, eps=1e-6)
            self.norm2 = nn.LayerNorm(channels, eps=1e-6)
            self.mlp = nn.Sequential(
                nn.Linear(channels, 3 * channels), nn.GELU(), nn.Linear(3 * channels, channels)
            )

    def pairs(self, ours):
        """Pairs (here, ours)."""
        a = ours.attn
        yield from [(self.qkv, a.qkv), (self.lepe, a.lepe), (self.wo, a.wo)]
        if not self.attention_only:
            yield from [(self.pos_embed, ours.pos_embed), (self.norm1, ours.norm1)]
            linear = [m for m in ours.mlp.modules() if isinstance(m, nn.Linear)]
            yield from [(self.norm2, ours.norm2), *zip((self.mlp[0], self.mlp[2]), linear)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        if self.attention_only:
            return self._attend(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + self.pos_embed(x)
        x = x.permute(0, 2, 3, 1)
        x = x + self._attend(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x.permute(0, 3, 1, 2)

    def _attend(self, x: Tensor) -> Tensor:
        """``(B, H, W, C) -> (B, H, W, C)``."""
        b, height, width, c = x.shape
        h, w = (-(-length // self.n_win) for length in (height, width))
        rows, columns = -(-height // h), -(-width // w)
        n, length = rows * columns, h * w
        border = (0, 0, 0, columns * w - width, 0, rows * h - height)

        def windows(t: Tensor) -> Tensor:  # (B, H, W, C) -> (B, n, h w, C)
            t = t.view(b, rows, h, columns, w, -1).transpose(2, 3)
            return t.reshape(b, n, length, -1)

        qkv = F.pad(self.qkv(x), border)
        q, k, v = windows(qkv).split(c, dim=-1)
        inside = windows(F.pad(torch.ones_like(x[..., :1]), border))  # (B, n, h w, 1)

        # Regions: means of the positions on the map, then the k best for each.
        count = inside.sum(2)
        q_mean, k_mean = q.detach().sum(2) / count, k.detach().sum(2) / count
        topk = min(self.topk, n)
        _, index = torch.topk(q_mean * self.scale @ k_mean.transpose(-2, -1), topk, dim=-1)

        def gather(t: Tensor) -> Tensor:  # (B, n, L, d) -> (B, n, k L, d)
            wide = t.view(b, 1, n, length, -1).expand(-1, n, -1, -1, -1)
            choice = index.view(b, n, topk, 1, 1).expand(-1, -1, -1, length, t.shape[-1])
            return torch.gather(wide, 2, choice).view(b, n, topk * length, -1)

        def heads(t: Tensor) -> Tensor:  # (B, n, L, m d) -> (B n, m, L, d)
            return t.reshape(b * n, -1, self.heads, c // self.heads).transpose(1, 2)

        k_chosen, v_chosen = heads(gather(k)), heads(gather(v))
        logits = (heads(q) * self.scale) @ k_chosen.transpose(-2, -1)
        if any(border):
            outside = gather(inside).view(b * n, 1, 1, -1) == 0
            logits = logits.masked_fill(outside, float("-inf"))
        out = logits.softmax(dim=-1) @ v_chosen  # (B n, m, h w, d)
        out = out.transpose(1, 2).reshape(b, rows, columns, h, w, c).transpose(2, 3)
        out = out.reshape(b, rows * h, columns * w, c)[:, :height, :width]

        value_map = qkv[:, :height, :width, 2 * c :].permute(0, 3, 1, 2)
        out = out + self.lepe(value_map.contiguous()).permute(0, 2, 3, 1)
        return self.wo(out)
