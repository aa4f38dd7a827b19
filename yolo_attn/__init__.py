"""Attention and context blocks for stock Ultralytics YOLO.

Importing this package is cheap: torch and Ultralytics are imported only when a block is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yolo_attn import autoload as _autoload

if TYPE_CHECKING:
    from yolo_attn.registry import BlockInfo, block_info, create, list_blocks, register

__version__ = "0.2.0"
__all__ = ["BlockInfo", "__version__", "block_info", "create", "list_blocks", "register"]

# A checkpoint that names one of our classes imports this package, possibly in a process where the
# start-up hook did not run (torch imported with device autoloading off): activate now.
_autoload.install()


def __getattr__(name: str) -> Any:
    if name in __all__:
        from yolo_attn import registry

        return getattr(registry, name)
    raise AttributeError(f"module 'yolo_attn' has no attribute {name!r}; it offers {__all__}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
