"""What several layers need: Ultralytics' convolution, and the width of the output."""

from __future__ import annotations

from typing import Any

from yolo_attn.blocks._common import check_width


def host_conv() -> Any:
    """Ultralytics' ``Conv``: convolution, batch norm, activation; ``fuse()`` merges the first two.

    Imported at the first layer that is built: the registry must not import Ultralytics.
    """
    from ultralytics.nn.modules.conv import Conv

    return Conv


def out_width(layer: str, out_channels: int | None, default: int) -> int:
    """Width of a layer's output.

    Raises:
        YoloAttnError: It is no whole number from 1 to 16384.
    """
    return default if out_channels is None else check_width(layer, "out_channels", out_channels)
