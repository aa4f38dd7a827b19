"""What the installed Ultralytics knows of a row: the module, and how a width scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolo_attn.overlay.modules import stock_module


def host_has(name: Any) -> bool:
    """Whether the installed ``parse_model`` resolves this module name itself."""
    from ultralytics.nn import tasks

    return stock_module(name, vars(tasks))


def scaled_width(value: int, width: float, max_channels: float) -> int:
    """The channels that a declared width becomes in a model of this scale."""
    from ultralytics.utils.ops import make_divisible

    return int(make_divisible(min(value, max_channels) * width, 8))


def host_models() -> list[str]:
    """File names of the detection models that the installed Ultralytics ships, sorted."""
    import ultralytics

    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    return sorted(p.name for p in folder.glob("*/*.yaml") if "-" not in p.stem or "-p" in p.stem)
