"""What several layers need: Ultralytics' convolution, widths, activations, equivalent kernels."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from yolo_attn.blocks._common import (
    LARGEST_KERNEL,
    check_choice,
    check_int,
    check_number,
    check_width,
)
from yolo_attn.errors import YoloAttnError

MOST_STRIDE = 8
MOST_SHARE = 4.0
MOST_DILATION = 128
MOST_UNITS = 64  # of a stage
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
}


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


def kept_width(layer: str, out_channels: int | None, channels: int, hint: str = "") -> int:
    """Width of the output of a layer that keeps it.

    Raises:
        YoloAttnError: `out_channels` is given and is another one.
    """
    if out_channels is not None and (isinstance(out_channels, bool) or out_channels != channels):
        raise YoloAttnError(
            f"{layer}: out_channels={out_channels!r} is not accepted, the layer keeps the width of "
            f"its input (accepted: {channels}, or null){hint}"
        )
    return channels


def even_width(layer: str, option: str, width: int) -> int:
    """Return a width that is halved.

    Raises:
        YoloAttnError: It is odd.
    """
    if width % 2:
        raise YoloAttnError(f"{layer}: {option}={width} is not accepted (accepted: an even number)")
    return width


def activation(layer: str, option: str, name: str | None) -> Any:
    """The `act` of Ultralytics' ``Conv`` for a name: None is the model's own activation.

    Raises:
        YoloAttnError: An unknown name.
    """
    check_choice(layer, option, name, [None, "none", *ACTIVATIONS])
    if name is None:
        return True
    return False if name == "none" else ACTIVATIONS[name]()


def plain_activation(layer: str, option: str, name: str | None) -> nn.Module:
    """The same as a module of its own."""
    act = activation(layer, option, name)
    if act is True:
        return host_conv().default_act
    return nn.Identity() if act is False else act


def apply_kernel(unit: nn.Module, x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """What Ultralytics' ``Conv`` computes, with `weight` in place of its own kernel; no padding.

    For an equivalent kernel that spares moving the map. Holds before and after ``fuse()``.
    """
    conv: Any = unit.conv
    y = F.conv2d(x, weight, conv.bias, stride=stride)
    norm: Any = getattr(unit, "bn", None)
    act: Any = unit.act
    return act(y if norm is None else norm(y))


def drop_path(y: Tensor, rate: float, training: bool) -> Tensor:
    """Leave out the branch of a share of the images in training, rescaled to keep the mean."""
    if not rate or not training:
        return y
    return y * F.dropout(y.new_ones(len(y), 1, 1, 1), rate)


def kernel_side(layer: str, value: int, option: str = "kernel_size", least: int = 1) -> int:
    """Return the side of a kernel.

    Raises:
        YoloAttnError: It is no odd whole number from `least` to 63.
    """
    return check_int(layer, option, value, least, odd=True, maximum=LARGEST_KERNEL)


def checked_stride(layer: str, value: int, option: str = "stride") -> int:
    """Return a stride or a scale.

    Raises:
        YoloAttnError: It is no whole number from 1 to 8; more is a channel count in its place.
    """
    return check_int(layer, option, value, maximum=MOST_STRIDE)


def width_share(layer: str, value: float, option: str = "e") -> float:
    """Return the width of a branch as a share of the output's.

    Raises:
        YoloAttnError: It is no number from 0 to 4; more is a channel count in its place.
    """
    return check_number(layer, option, value, 0.0, MOST_SHARE)
