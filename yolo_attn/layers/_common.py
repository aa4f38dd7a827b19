"""What several layers need: Ultralytics' convolution, and the width of the output."""

from __future__ import annotations

from typing import Any

from yolo_attn.blocks._common import check_int


def host_conv() -> Any:
    """Ultralytics' ``Conv``: convolution, batch norm, activation; ``fuse()`` merges the first two.

    Imported at the first layer that is built: the registry must not import Ultralytics.
    """
    from ultralytics.nn.modules.conv import Conv

    return Conv


def out_width(layer: str, out_channels: int | None, default: int) -> int:
    """Width of a layer's output.

    Raises:
        YoloAttnError: It is not a positive whole number.
    """
    return default if out_channels is None else check_int(layer, "out_channels", out_channels)
