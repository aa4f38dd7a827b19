"""Non-local block, as popular ports write it: the N x M affinity is a tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._common import Plain


class NonLocal(Plain):
    """``z = x + W_z (f(theta, phi) g)``.

    The ports' concatenation mode expands theta and phi to a ``(B, 2d, N, M)`` tensor, 20 GiB at
    P3; here its linear map is split into ``u . theta_i + v . phi_j``, which a reader of the formula
    finds at once and which needs the ``N x M`` matrix only.
    """

    def __init__(
        self,
        channels: int,
        mode: str = "embedded_gaussian",
        scale: str = "none",
        sub_sample: str = "none",
        norm: str = "bn",
    ):
        super().__init__()
        d = channels // 2
        self.mode, self.d = mode, d
        self.factor = d**-0.5 if scale == "sqrt_d" else 1.0
        pool = [nn.MaxPool2d(2)] if sub_sample == "after" else []
        self.before = nn.MaxPool2d(2) if sub_sample == "before" else nn.Identity()
        self.g = nn.Sequential(nn.Conv2d(channels, d, 1), *pool)
        if mode == "gaussian":
            self.phi = nn.Sequential(*pool)
        else:
            self.theta = nn.Conv2d(channels, d, 1)
            self.phi = nn.Sequential(nn.Conv2d(channels, d, 1), *pool)
        if mode == "concatenation":
            self.w_f = nn.Parameter(torch.zeros(2 * d))
        out = nn.Conv2d(d, channels, 1, bias=norm == "none")
        self.W = nn.Sequential(out, nn.BatchNorm2d(channels)) if norm == "bn" else out

    def pairs(self, ours):
        """Pairs (here, ours)."""
        yield self.g[0], ours.g
        if self.mode != "gaussian":
            yield self.theta, ours.theta
            yield self.phi[0], ours.phi
        if self.mode == "concatenation":
            yield self.w_f, ours.w_f
        if ours.norm is None:
            yield self.W, ours.out
        else:
            yield self.W[0], ours.out
            yield self.W[1], ours.norm

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        b, _, h, w = x.shape
        source = self.before(x)
        g = self.g(source).flatten(2).permute(0, 2, 1)  # (B, M, d)
        theta = x if self.mode == "gaussian" else self.theta(x)
        theta = theta.flatten(2).permute(0, 2, 1)  # (B, N, d)
        phi = self.phi(source).flatten(2)  # (B, d, M)
        if self.mode == "concatenation":
            u, v = self.w_f.chunk(2)
            a = torch.matmul(theta, u)[:, :, None]
            f = torch.relu(a + torch.matmul(v, phi)[:, None, :]) / phi.shape[2]
        elif self.mode == "dot_product":
            f = torch.matmul(theta, phi) / phi.shape[2]
        else:
            f = torch.matmul(theta, phi)
            if self.factor != 1.0:
                f = f * self.factor
            f = torch.softmax(f, dim=-1)
        y = torch.matmul(f, g).permute(0, 2, 1).contiguous().view(b, self.d, h, w)
        return self.W(y) + x
