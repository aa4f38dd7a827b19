"""Ultralytics' words for devices, understood at one place: ``0``, ``0,1``, ``cuda:0``, ``mps`` ...

Pure text but for `check` and `torch_name`, which ask torch what this machine has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from yolo_attn.errors import YoloAttnError

ACCEPTED = "cpu, 0, 0,1, [0, 1], cuda, cuda:0, -1 (an idle GPU), mps, npu:0, xpu:0; none: the first"
ACCELERATORS = ("npu", "xpu")
OTHERS = ("tpu", "intel", "vulkan")  # Ultralytics hands these words on as they are
IDLE = "-1"


@dataclass(frozen=True)
class Devices:
    """What a word asks for.

    Attributes:
        kind: "auto" (the first GPU, else the CPU), "cpu", "cuda", "mps", "npu", "xpu", or another
            backend's word as it was written.
        numbers: of devices of that kind, in order; `IDLE` is one that has nothing to do.
    """

    kind: str
    numbers: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """As ``device=`` takes it in every release; "" for "auto"."""
        if self.kind == "auto":
            return ""
        if self.kind == "cuda":
            return ",".join(self.numbers)
        return f"{self.kind}:{','.join(self.numbers)}" if self.numbers else self.kind

    @property
    def torch_name(self) -> str:
        """As torch writes it: of several devices the first, of idle GPUs the first there is."""
        import torch

        gpu = torch.cuda.is_available()
        if self.kind == "auto" or self.numbers[:1] == (IDLE,):
            return "cuda:0" if gpu else "cpu"
        return f"{self.kind}:{self.numbers[0]}" if self.numbers else self.kind


def parse(word: Any, where: str = "device") -> Devices:
    """Read a device word.

    Args:
        word: text, number, list or tuple of numbers, `torch.device`, or None.
        where: name of the option, for messages.

    Raises:
        YoloAttnError: it is none that Ultralytics knows.
    """
    text = str(word).lower()
    if isinstance(word, bool):
        raise _unknown(word, where)
    text = re.sub(r"[\[\]()' \"]", "", text)
    if text in ("", "none"):
        return Devices("auto")
    if text == "cpu" or re.fullmatch(r"cpu:\d+", text):
        return Devices("cpu")
    if text in ("mps", "mps:0"):
        return Devices("mps")
    if text.startswith(OTHERS):
        return Devices(text)
    kind = next((k for k in ACCELERATORS if text.startswith(k)), "cuda")
    if text == kind:
        return Devices(kind, ("0",))
    numbers = tuple(
        number.removeprefix(f"{kind}:") for number in text.split(",") if number
    )  # "0,,1" and a comma at the end are Ultralytics' habit
    known = [n.isdecimal() and n.isascii() or (n == IDLE and kind == "cuda") for n in numbers]
    if not numbers or not all(known):
        raise _unknown(word, where)
    numbers = tuple(n if n == IDLE else str(int(n)) for n in numbers)
    named = [n for n in numbers if n != IDLE]
    if len(set(named)) != len(named):
        raise YoloAttnError(f"{where}={word}: names a device twice")
    return Devices(kind, numbers)


def check(word: Any, where: str = "device") -> Devices:
    """`parse`, and that this machine has them.

    Raises:
        YoloAttnError: the word is unknown, or names what is not here.
    """
    import torch

    found = parse(word, where)
    if found.kind in ("auto", "cpu", *OTHERS) or found.kind.startswith(OTHERS):
        return found
    if found.kind == "mps":
        if not torch.backends.mps.is_available():
            raise YoloAttnError(f"{where}={word}: torch has no MPS here (accepted: {_here()})")
        return found
    backend = getattr(torch, found.kind, None)
    count = backend.device_count() if backend is not None and backend.is_available() else 0
    named = [n for n in found.numbers if n != IDLE]
    if named and max(map(int, named)) >= count and not _is_physical(found, count):
        what = f"{count} {found.kind.upper()} device{'' if count == 1 else 's'}"
        raise YoloAttnError(f"{where}={word}: torch sees {what} here (accepted: {_here()})")
    return found


def torch_device(word: Any) -> str:
    """A device word as torch writes it; of several devices the first.

    Raises:
        YoloAttnError: it is none that Ultralytics knows.
    """
    return parse(word).torch_name


def _is_physical(found: Devices, count: int) -> bool:
    """Whether all are numbers that CUDA_VISIBLE_DEVICES shows, which Ultralytics translates."""
    import os

    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").split(",")[:count]
    return found.kind == "cuda" and all(n in shown for n in found.numbers if n != IDLE)


def _here() -> str:
    import torch

    gpus = [str(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ", ".join([*gpus, *mps, "cpu"])


def _unknown(word: Any, where: str) -> YoloAttnError:
    return YoloAttnError(f"{where}={word!r}: no device (accepted: {ACCEPTED})")
