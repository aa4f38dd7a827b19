"""The one learned scale of an attention branch that starts at zero, with a step size of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from yolo_attn.blocks._common import check_number

# One number from 0 with the step of a weight stays there: with SGD none of the tasks of
# docs/far-sign.md were learned at 1, with 10 the same blocks learn them.
GAMMA_STEP = 10.0


class ZeroGamma(nn.Module):
    """A block whose output is ``x + gamma * branch(x)`` with ``gamma = gamma_step * g``, g from 0.

    A class to derive from. The factor changes how fast gamma moves, not what the block can
    compute; 1 is the papers' form.
    """

    gamma_step: float = 1.0  # of what was pickled before there was one
    gamma: nn.Parameter

    def _add_gamma(self, block: str, gamma_step: float) -> None:
        """Add g, a parameter of the name ``gamma``."""
        self.gamma_step = check_number(block, "gamma_step", gamma_step, 0.01, 1000.0)
        self.gamma = nn.Parameter(torch.zeros(1))

    def scale_of_branch(self) -> Tensor:
        """Gamma ``(1,)``."""
        return self.gamma if self.gamma_step == 1 else self.gamma_step * self.gamma

    def zero_started(self) -> Tensor:
        """gamma: what of this block starts at zero."""
        return self.scale_of_branch()
