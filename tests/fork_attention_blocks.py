"""Modules of forks with attention and context, as source text; see ``fork_blocks.py``."""

from __future__ import annotations

MLCA = """
class MLCA(nn.Module):
    def __init__(self, c, local_size=5, k=3, local_weight=0.5):
        super().__init__()
        self.local_size, self.local_weight = local_size, local_weight
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)
        self.conv_local = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)
        self.local_arv_pool = nn.AdaptiveAvgPool2d(local_size)
        self.global_arv_pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        cells = self.local_arv_pool(x)
        overall = self.global_arv_pool(cells)
        b, c, s, _ = cells.shape
        line = cells.flatten(2).transpose(1, 2).reshape(b, 1, -1)
        local = self.conv_local(line).reshape(b, s * s, c).transpose(1, 2).view(b, c, s, s)
        whole = self.conv(overall.view(b, 1, c)).view(b, c, 1, 1).sigmoid()
        gate = whole * (1 - self.local_weight) + local.sigmoid() * self.local_weight
        return x * F.adaptive_avg_pool2d(gate.expand(b, c, s, s), x.shape[2:])
"""

LSK = """
class LSKblock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv0 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.conv_spatial = nn.Conv2d(dim, dim, 7, padding=9, groups=dim, dilation=3)
        self.conv1, self.conv2 = nn.Conv2d(dim, dim // 2, 1), nn.Conv2d(dim, dim // 2, 1)
        self.conv_squeeze = nn.Conv2d(2, 2, 7, padding=3)
        self.conv = nn.Conv2d(dim // 2, dim, 1)

    def forward(self, x):
        a = self.conv0(x)
        one, two = self.conv1(a), self.conv2(self.conv_spatial(a))
        s = self.conv_squeeze(mean_max(torch.cat([one, two], 1))).sigmoid()
        return x * self.conv(one * s[:, :1] + two * s[:, 1:])
"""

CRISS_CROSS = """
class CrissCrossAttention(nn.Module):
    def __init__(self, c, d=8):
        super().__init__()
        self.query_conv = nn.Conv2d(c, d, 1)
        self.key_conv = nn.Conv2d(c, d, 1)
        self.value_conv = nn.Conv2d(c, c, 1)
        self.softmax = nn.Softmax(dim=3)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        q, k, v = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        column = torch.einsum("bchw,bcjw->bhwj", q, k)
        own = torch.eye(x.shape[2], dtype=torch.bool)[None, :, None]
        column = column.masked_fill(own, float("-inf"))
        a = self.softmax(torch.cat([column, torch.einsum("bchw,bchj->bhwj", q, k)], 3))
        h = x.shape[2]
        y = torch.einsum("bhwj,bcjw->bchw", a[..., :h], v)
        return x + self.gamma * (y + torch.einsum("bhwj,bchj->bchw", a[..., h:], v))
"""

NON_LOCAL = """
class {name}(nn.Module):
    def __init__(self, c, d=None, mode="embedded", bn=True):
        super().__init__()
        d = d or c // 2
        self.mode, self.dimension = mode, 2
        self.g = nn.Conv2d(c, d, 1)
        out = nn.Conv2d(d, c, 1)
        self.W_z = nn.Sequential(out, nn.BatchNorm2d(c)) if bn else out
        if mode != "gaussian":
            self.theta, self.phi = nn.Conv2d(c, d, 1), nn.Conv2d(c, d, 1)
        if mode == "concatenate":
            self.W_f = nn.Sequential(nn.Conv2d(2 * d, 1, 1), nn.ReLU())

    def forward(self, x):
        g = self.g(x).flatten(2).transpose(1, 2)
        if self.mode == "gaussian":
            q = k = x.flatten(2)
        else:
            q, k = self.theta(x).flatten(2), self.phi(x).flatten(2)
        n = g.shape[1]
        if self.mode == "concatenate":
            pairs = torch.cat(
                [q[..., None].expand(-1, -1, -1, n), k[:, :, None].expand(-1, -1, n, -1)], 1
            )
            f = self.W_f(pairs)[:, 0] / n
        else:
            f = q.transpose(1, 2) @ k
            f = f / n if self.mode == "dot" else f.softmax(-1)
        y = (f @ g).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
        return self.W_z(y) + x
"""

GLOBAL_CONTEXT = """
class ConvMlp(nn.Module):
    def __init__(self, c, p):
        super().__init__()
        self.fc1 = nn.Conv2d(c, p, 1)
        self.norm = LayerNorm2d(p)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.0)
        self.fc2 = nn.Conv2d(p, c, 1)

    def forward(self, x):
        return self.fc2(self.act(self.norm(self.fc1(x))))


class GlobalContext(nn.Module):
    def __init__(self, c, p=8, add=False):
        super().__init__()
        self.conv_attn = nn.Conv2d(c, 1, 1)
        self.mlp_add = ConvMlp(c, p) if add else None
        self.mlp_scale = ConvMlp(c, p)
        self.gate = nn.Sigmoid()

    def forward(self, x):
        a = self.conv_attn(x).flatten(2).softmax(-1)
        context = (x.flatten(2) @ a.transpose(1, 2))[..., None]
        y = x * self.gate(self.mlp_scale(context))
        return y if self.mlp_add is None else y + self.mlp_add(context)
"""

CONTEXT_AGGREGATION = """
class ConvModule(nn.Module):
    def __init__(self, c, out):
        super().__init__()
        self.conv = nn.Conv2d(c, out, 1)

    def forward(self, x):
        return self.conv(x)


class {name}(nn.Module):
    def __init__(self, c, reduction=2):
        super().__init__()
        d = c // reduction
        self.a, self.k, self.v = ConvModule(c, 1), ConvModule(c, 1), ConvModule(c, d)
        self.m = ConvModule(d, c)

    def forward(self, x):
        k = self.k(x).flatten(2).softmax(-1)
        y = (self.v(x).flatten(2) @ k.transpose(1, 2))[..., None]
        return x + self.m(y) * self.a(x).sigmoid()
"""

BI_LEVEL = """
class TopkRouting(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.routing_act = nn.Identity(), nn.Softmax(dim=-1)


class QKVLinear(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.qkv = nn.Linear(c, 3 * c)

    def forward(self, x):
        return self.qkv(x).chunk(3, -1)


class BiLevelRoutingAttention(nn.Module):
    def __init__(self, c, heads=4, n_win=2, topk=2, side=3):
        super().__init__()
        self.num_heads, self.n_win, self.topk, self.scale = heads, n_win, topk, c**-0.5
        self.soft_routing = self.diff_routing = False
        self.lepe = nn.Conv2d(c, c, side, padding=side // 2, groups=c)
        self.router = TopkRouting()
        self.qkv = QKVLinear(c)
        self.wo = nn.Linear(c, c)
        self.attn_act = nn.Softmax(dim=-1)

    def forward(self, x):
        b, c, h, w = x.shape
        s, m = self.n_win, self.num_heads
        x = x.permute(0, 2, 3, 1)
        x = F.pad(x, (0, 0, 0, -w % s, 0, -h % s))
        hh, ww = x.shape[1] // s, x.shape[2] // s

        def cut(t):
            t = t.view(b, s, hh, s, ww, c).permute(0, 1, 3, 2, 4, 5)
            return t.reshape(b, s * s, hh * ww, c)

        q, k, v = self.qkv(x)
        whole = v
        q, k, v = cut(q), cut(k), cut(v)
        best = (q.mean(2) @ k.mean(2).transpose(1, 2) * self.scale).topk(self.topk, -1).indices
        rows = torch.arange(b)[:, None, None]
        k, v = k[rows, best].flatten(2, 3), v[rows, best].flatten(2, 3)
        q, k, v = (t.unflatten(-1, (m, -1)).transpose(2, 3) for t in (q, k, v))
        y = (self.attn_act(q * self.scale @ k.transpose(-1, -2)) @ v).transpose(2, 3).flatten(3)
        y = y.view(b, s, s, hh, ww, c).permute(0, 1, 3, 2, 4, 5).reshape(b, s * hh, s * ww, c)
        y = y + self.lepe(whole.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.wo(y)[:, :h, :w].permute(0, 3, 1, 2)
"""


BI_LEVEL_NCHW = """
class BiLevelRoutingAttention_nchw(nn.Module):
    def __init__(self, c, heads=8, n_win=7, topk=4, side=3):
        super().__init__()
        self.dim, self.num_heads, self.n_win, self.topk, self.scale = c, heads, n_win, topk, c**-0.5
        self.lepe = nn.Conv2d(c, c, side, padding=side // 2, groups=c)
        self.qkv_linear = nn.Conv2d(c, 3 * c, 1)
        self.output_linear = nn.Conv2d(c, c, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        hh, ww = h // self.n_win, w // self.n_win
        rows, columns = -(-h // hh), -(-w // ww)
        q, k, v = self.qkv_linear(x).chunk(3, 1)

        def cut(t):
            t = F.pad(t, (0, columns * ww - w, 0, rows * hh - h))
            t = t.view(b, -1, rows, hh, columns, ww).permute(0, 2, 4, 3, 5, 1)
            return t.reshape(b, rows * columns, hh * ww, -1)

        inside = cut(torch.ones_like(q[:, :1])).sum(2)
        qr, kr, vr = cut(q), cut(k), cut(v)
        best = (qr.sum(2) / inside @ (kr.sum(2) / inside).transpose(1, 2)).topk(self.topk, -1)
        at = torch.arange(b)[:, None, None]
        kr, vr = kr[at, best.indices].flatten(2, 3), vr[at, best.indices].flatten(2, 3)
        m = self.num_heads
        qr, kr, vr = (t.unflatten(-1, (m, -1)).transpose(2, 3) for t in (qr, kr, vr))
        y = ((qr @ kr.transpose(-1, -2) * self.scale).softmax(-1) @ vr).transpose(2, 3).flatten(3)
        y = y.view(b, rows, columns, hh, ww, c).permute(0, 5, 1, 3, 2, 4)
        y = y.reshape(b, c, rows * hh, columns * ww)[:, :, :h, :w]
        return self.output_linear(y + self.lepe(v))
"""

NON_LOCAL_POOLED = """
class NonLocalBlock2D(nn.Module):
    def __init__(self, c, d):
        super().__init__()
        self.sub_sample, self.dimension = True, 2
        self.g = nn.Sequential(nn.Conv2d(c, d, 1), nn.MaxPool2d(2))
        self.W = nn.Sequential(nn.Conv2d(d, c, 1), nn.BatchNorm2d(c))
        self.theta = nn.Conv2d(c, d, 1)
        self.phi = nn.Sequential(nn.Conv2d(c, d, 1), nn.MaxPool2d(2))

    def forward(self, x):
        g = self.g(x).flatten(2).transpose(1, 2)
        f = (self.theta(x).flatten(2).transpose(1, 2) @ self.phi(x).flatten(2)).softmax(-1)
        return x + self.W((f @ g).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:]))
"""


CONTEXT_BLOCK = """
class GlobalContextBlock(nn.Module):
    def __init__(self, c, p):
        super().__init__()
        self.conv_mask = nn.Conv2d(c, 1, 1)
        self.softmax = nn.Softmax(dim=2)

        def transform():
            norm = nn.LayerNorm([p, 1, 1])
            return nn.Sequential(nn.Conv2d(c, p, 1), norm, nn.ReLU(), nn.Conv2d(p, c, 1))

        self.channel_add_conv, self.channel_mul_conv = transform(), transform()

    def forward(self, x):
        a = self.softmax(self.conv_mask(x).flatten(2))
        context = (x.flatten(2) @ a.transpose(1, 2))[..., None]
        return x * self.channel_mul_conv(context).sigmoid() + self.channel_add_conv(context)
"""
