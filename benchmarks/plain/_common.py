"""What the plain modules share: taking over the weights of the block that they stand beside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Plain(nn.Module):
    """A block written from its formula; `load` takes over the weights of ours."""

    def pairs(self, ours: nn.Module) -> Iterable[tuple[Any, Any]]:
        """Pairs (here, ours) of modules or of tensors that hold the same numbers."""
        raise NotImplementedError

    @torch.no_grad()
    def load(self, ours: nn.Module) -> Plain:
        """Copy the weights of `ours`; biases that ours does without are zero."""
        for here, there in self.pairs(ours):
            if isinstance(here, Tensor):
                here.copy_(there.reshape(here.shape))
                continue
            source = dict([*there.named_parameters(), *there.named_buffers()])
            for name, value in [*here.named_parameters(), *here.named_buffers()]:
                if name in source:
                    # A Linear and a 1 x 1 convolution hold the same matrix.
                    value.copy_(source[name].reshape(value.shape))
                elif name.endswith("bias"):
                    value.zero_()
                else:
                    raise KeyError(f"{type(self).__name__}: ours has no {name!r}")
        return self


class SingleVectorNorm(nn.BatchNorm2d):
    """Batch norm that, like ours, uses the running statistics for a single vector in training."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, 1, 1) -> (B, C, 1, 1)``; stock batch norm refuses B = 1 there."""
        if self.training and x.shape[0] == 1:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


def conv_bn(channels: int, out: int, kernel: int = 1, act: nn.Module | None = None) -> nn.Module:
    """Convolution, batch norm and an activation."""
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), *([act] if act is not None else []))


def conv_bn_pairs(here: nn.Module, ours: nn.Module) -> list[tuple[Any, Any]]:
    """Pairs of :func:`conv_bn` and our ``ConvNorm``."""
    return [(here[0], ours.conv), (here[1], ours.norm)]
