"""Products that must stay in float32 where autocast would halve them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Context in which operations keep the dtype of their inputs; `x` says on which device."""
    # torch.autocast refuses the meta device, which has nothing to switch off.
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
