"""Restricted checkpoint loading (``ULTRALYTICS_SAFE_LOAD=1``): our classes are known to it."""

from __future__ import annotations

import sys
from types import FunctionType
from typing import Any


def torch_safe_load(original: FunctionType, weight: Any, safe_only: bool | None = None) -> Any:
    """Ultralytics' ``torch_safe_load``; under restricted loading our blocks are allowed."""
    if safe_only or (safe_only is None and original.__globals__.get("SAFE_LOAD", False)):
        allow_blocks()
    # Versions differ in the default of safe_only: pass it on only if it was given.
    return original(weight) if safe_only is None else original(weight, safe_only)


def allow_blocks() -> None:
    """Let ``torch.load(weights_only=True)`` build the modules of registered blocks."""
    import torch
    from torch import nn

    from yolo_attn.registry import block_info, list_blocks, list_layers
    from yolo_attn.seam import host_modules

    modules = {block_info(name).cls.__module__ for name in (*list_blocks(), *list_layers())}
    # Our own blocks are also made of parts in modules that register nothing.
    modules |= {name for name in sys.modules if name.startswith("yolo_attn.blocks.")}
    modules |= {"yolo_attn.blocks.identity_start", host_modules.__name__}
    torch.serialization.add_safe_globals(
        [
            cls
            for module in sorted(modules)
            for cls in vars(sys.modules[module]).values()
            if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == module
        ]
    )
