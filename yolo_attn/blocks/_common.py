"""What several blocks need: checks of options, channel reduction, float32 islands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.ops.precision import without_autocast
from yolo_attn.versions import FLOORS_BEFORE_0_2, made_before

NARROWEST = 8  # hidden width that a ratio gives at least
WIDEST = 16384  # of any map; the widest of Ultralytics' models has 1536
LARGEST_KERNEL = 63
MOST_RATIO = 2  # of hidden to input width: more is a channel count or a divisor in a ratio's place
MOST_MLP_RATIO = 16

M = TypeVar("M", bound=nn.Module)


def check_choice(block: str, option: str, value: Any, accepted: Iterable[Any]) -> Any:
    """Return `value` if it is one of `accepted`.

    Raises:
        YoloAttnError: It is not; names the block, the option, the value and the accepted ones.
    """
    accepted = list(accepted)
    # 1 == True in Python: a YAML's `true` must not pass for the number 1.
    if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in accepted):
        names = [a for a in accepted if isinstance(a, str)]
        raise YoloAttnError(
            f"{block}: {option}={value!r} is not accepted{did_you_mean(value, names)} "
            f"(accepted: {', '.join(map(repr, accepted))})"
        )
    return value


def check_flag(block: str, option: str, value: Any) -> bool:
    """Return `value` if it is true or false.

    Raises:
        YoloAttnError: It is something else.
    """
    return check_choice(block, option, value, (False, True))


def check_int(
    block: str,
    option: str,
    value: Any,
    minimum: int = 1,
    odd: bool = False,
    maximum: float = float("inf"),
) -> int:
    """Return `value` if it is a whole number from `minimum` to `maximum` (and odd, if asked).

    Raises:
        YoloAttnError: It is not.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not minimum <= value <= maximum
        or (odd and value % 2 == 0)
    ):
        kind = "an odd whole number" if odd else "a whole number"
        limits = f">= {minimum}" if maximum == float("inf") else f"from {minimum} to {maximum}"
        raise YoloAttnError(
            f"{block}: {option}={value!r} is not accepted (accepted: {kind} {limits})"
        )
    return value


def check_kernel(block: str, option: str, value: Any, minimum: int = 1) -> int:
    """Return `value` if it is the side of a centred kernel: odd, at most 63.

    Raises:
        YoloAttnError: It is not.
    """
    return check_int(block, option, value, minimum, odd=True, maximum=LARGEST_KERNEL)


def check_width(block: str, option: str, value: Any) -> int:
    """Return `value` if it is the width of a map or a layer: a whole number from 1 to 16384.

    Raises:
        YoloAttnError: It is not.
    """
    return check_int(block, option, value, maximum=WIDEST)


def check_hidden(block: str, option: str, value: Any, channels: int, least: int = 64) -> int:
    """Return `value` if it is a sensible number of hidden channels, bases or descriptors.

    Args:
        block: Name for error messages.
        option: Its name.
        value: Its value.
        channels: C, width of the block's input.
        least: What is accepted at least, however narrow the input.

    Raises:
        YoloAttnError: It is no whole number from 1 to ``2 C`` (or `least`, if that is more).
    """
    most = max(2 * channels, least)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise YoloAttnError(
            f"{block}: {option}={value!r} is not accepted with channels={channels} (accepted: a "
            f"whole number from 1 to {most})"
        )
    return value


def check_number(
    block: str, option: str, value: Any, low: float = 0.0, high: float = float("inf")
) -> float:
    """Return `value` as float if it is a number with ``low <= value <= high``.

    Raises:
        YoloAttnError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        limits = f">= {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
        raise YoloAttnError(
            f"{block}: {option}={value!r} is not accepted (accepted: a number {limits})"
        )
    return float(value)


def check_channels(block: str, channels: Any, divisor: int = 1) -> int:
    """Return `channels` if it is a positive whole number that `divisor` divides.

    Raises:
        YoloAttnError: It is not.
    """
    check_int(block, "channels", channels)
    if channels % divisor:
        raise YoloAttnError(
            f"{block}: channels={channels} is not accepted (accepted: a multiple of {divisor})"
        )
    return channels


def check_channel_list(block: str, channels: Any, low: int, high: int | None = None) -> list[int]:
    """Return the channels of several input maps as a list.

    Raises:
        YoloAttnError: Not a list of `low` to `high` positive whole numbers.
    """
    high = low if high is None else high
    if not isinstance(channels, (list, tuple)) or not low <= len(channels) <= high:
        wanted = str(low) if low == high else f"{low} to {high}"
        raise YoloAttnError(
            f"{block}: channels={channels!r} is not accepted (accepted: a list of {wanted} widths)"
        )
    return [check_channels(block, c) for c in channels]


def reduced_channels(
    block: str,
    channels: int,
    rd_ratio: float,
    rd_channels: int | None = None,
    minimum: int = NARROWEST,
    divisor: int = 1,
) -> int:
    """Width of a bottleneck: one rule for all blocks.

    A paper's C/16 was made for hundreds of channels; at the widths of a small YOLO it leaves one or
    two, and a ReLU over them is dead, so the gate constant, in a fifth of the seeds. Hence at
    least 8, unless `rd_channels` says otherwise.

    Args:
        block: Name for error messages.
        channels: Width of the block's input.
        rd_ratio: Bottleneck width as a share of `channels`, at most 2; the product is rounded down,
            or to the nearest multiple of `divisor`.
        rd_channels: The width itself; overrides `rd_ratio`, `minimum` and `divisor`.
        minimum: Smallest width that `rd_ratio` may give; a paper may have a larger one.
        divisor: Round to a multiple of this.

    Returns:
        The width, a multiple of `divisor` unless `rd_channels` gives it.

    Raises:
        YoloAttnError: `rd_ratio` is not a number above 0 and at most 2, `rd_channels` not a whole
            number from 1 to 2 C, or `divisor` makes the width more than that.
    """
    check_ratio(block, rd_ratio)
    most = max(2 * channels, minimum)
    if rd_channels is not None:
        return check_hidden(block, "rd_channels", rd_channels, channels, least=minimum)
    # The tiny addend undoes the rounding of ratios such as 1/3: int(48 * (1/3)) must be 16.
    width = channels * rd_ratio + 1e-9
    rounded = int(width) if divisor == 1 else int((width + divisor / 2) // divisor) * divisor
    if made_before("0.2.0"):
        minimum = FLOORS_BEFORE_0_2.get(block, 1)
    width = max(rounded, -(-minimum // divisor) * divisor)
    if width > most:
        raise YoloAttnError(
            f"{block}: rd_ratio={rd_ratio!r} with channels={channels} gives a hidden width of "
            f"{width}, a multiple of {divisor} (accepted: at most {most})"
        )
    return width


def check_ratio(block: str, rd_ratio: Any) -> float:
    """Return `rd_ratio` if it is a number above 0 and at most 2.

    Raises:
        YoloAttnError: It is not; 16 and 256 are what others call `reduction` and `channels`.
    """
    if (
        isinstance(rd_ratio, bool)
        or not isinstance(rd_ratio, (int, float))
        or not 0 < rd_ratio <= MOST_RATIO
    ):
        raise YoloAttnError(
            f"{block}: rd_ratio={rd_ratio!r} is not accepted (accepted: a number above 0, at most "
            f"{MOST_RATIO}: the hidden width as a share of C, e.g. 0.0625 for C/16)"
        )
    return rd_ratio


def run_float32(module: nn.Module, *args: Tensor) -> Tensor:
    """Run `module` in float32, whatever autocast and the dtype of its weights say.

    For sums without a normaliser, whose range float16 does not hold.
    """
    with without_autocast(args[0]):
        half = {
            name: value.float()
            for name, value in [*module.named_parameters(), *module.named_buffers()]
            if value.dtype in (torch.float16, torch.bfloat16)
        }
        return torch.func.functional_call(module, half, args) if half else module(*args)


def bias_of(conv: _ConvNd) -> Tensor:
    """The bias of a convolution that was built with one (by torch's types, any may have none)."""
    return conv.bias  # type: ignore[return-value]


def module_list(modules: Iterable[M]) -> Sequence[M]:
    """An ``nn.ModuleList``, of which type checkers know what it holds."""
    return nn.ModuleList(modules)  # type: ignore[return-value]  # it is no Sequence by name


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32 if it has half precision, else unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def tokens(x: Tensor) -> Tensor:
    """``(B, C, *spatial) -> (B, N, C)``, positions row by row."""
    return x.flatten(2).transpose(1, 2)


def untokens(y: Tensor, like: Tensor) -> Tensor:
    """``(B, N, C) -> (B, C, *spatial)`` with the spatial size of `like`."""
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], *like.shape[2:])


def as_map(y: Tensor, like: Tensor) -> Tensor:
    """``(B, C, N) -> (B, C, *spatial)`` with the spatial size of `like`, dense.

    A mere view of one image has a batch stride with which torch's batch norm returns wrong
    gradients on CPUs (torch 2.15).
    """
    return y.reshape(y.shape[0], -1, *like.shape[2:]).contiguous()


def query_index(queries: Tensor, width: int) -> Tensor:
    """Positions ``row * width + column`` of queries ``(Q, 2)`` given as (row, column)."""
    return queries[:, 0].long() * width + queries[:, 1].long()


class PooledNorm(nn.BatchNorm2d):
    """Batch norm of one vector an image; in a batch of one, with the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, 1, 1) -> (B, C, 1, 1)``."""
        if self.training and x.shape[0] == 1:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)
