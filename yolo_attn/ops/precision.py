"""Products that must stay in float32 where autocast would halve them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Callable

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Context in which operations keep the dtype of their inputs; `x` says on which device."""
    # torch.autocast refuses the meta device, which has nothing to switch off.
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def same_autocast(x: Tensor) -> Callable[[], AbstractContextManager[None]]:
    """Makes contexts with the autocast of now, for computing something again in a backward pass."""
    device = x.device.type
    if x.is_meta:
        return nullcontext
    return partial(
        torch.autocast,
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
    )
