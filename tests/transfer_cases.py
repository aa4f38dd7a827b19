"""Random relatives of a base: overlays and YAMLs written by hand, with blocks, subclasses, widths.

Each model is only built as far as a transfer of weights needs it: its rows, uninitialised, and the
strides of its head.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from ultralytics.nn.modules import C3, SPPF, Bottleneck, C2f, C3k2, Conv, Detect, RepNCSPELAN4
from ultralytics.nn.tasks import BaseModel, parse_model

from tests.transfer_harness import without_provenance
from yolo_attn import registry
from yolo_attn.blocks.identity_start import IdentityStart
from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml


class PlainC2f(C2f):
    """A C2f by another name: a user's variant, whose tensors are C2f's."""

    def __init__(self, channels: int, c2: int, n: int = 1, shortcut: bool = False):
        super().__init__(channels, c2, n, shortcut)
        self.out_channels = c2


class OtherC2f(C2f):
    """Another variant, whose first options are not C2f's."""

    def __init__(self, channels: int, shortcut: bool = False, n: int = 1):
        super().__init__(channels, channels, n, shortcut)


class LargerC2f(PlainC2f):
    """A variant with a layer and a parameter of its own."""

    def __init__(self, channels: int, c2: int, n: int = 1, shortcut: bool = False):
        super().__init__(channels, c2, n, shortcut)
        self.refine = Conv(c2, c2, 3, g=c2)
        self.gain = nn.Parameter(torch.ones(c2, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y + self.gain * self.refine(y)


class PlainC3(C3):
    def __init__(self, channels: int, c2: int, n: int = 1, shortcut: bool = True):
        super().__init__(channels, c2, n, shortcut)
        self.out_channels = c2


class PlainC3k2(C3k2):
    def __init__(self, channels: int, c2: int, n: int = 1, c3k: bool = False, e: float = 0.5):
        super().__init__(channels, c2, n, c3k, e)
        self.out_channels = c2


class PlainELAN(RepNCSPELAN4):
    def __init__(self, channels: int, c2: int, c3: int, c4: int, n: int = 1):
        super().__init__(channels, c2, c3, c4, n)
        self.out_channels = c2


class PlainConv(Conv):
    def __init__(self, channels: int, c2: int, k: int = 1, s: int = 1):
        super().__init__(channels, c2, k, s)
        self.out_channels = c2


class PlainSPPF(SPPF):
    def __init__(self, channels: int, c2: int, k: int = 5):
        super().__init__(channels, c2, k)
        self.out_channels = c2


class PlainBottleneck(Bottleneck):
    """To be repeated: rows of it are a Sequential, as Bottleneck's are."""

    def __init__(self, channels: int):
        super().__init__(channels, channels)


class PlainDetect(Detect):
    legacy = True  # the class branch of YOLOv3 to v9

    def __init__(self, channels: list[int], nc: int = 80):
        super().__init__(nc, ch=tuple(channels))


class LargerDetect(PlainDetect):
    def __init__(self, channels: list[int], nc: int = 80):
        super().__init__(channels, nc)
        self.scales = nn.Parameter(torch.ones(len(channels)))


class NewerDetect(PlainDetect):
    legacy = False


LAYERS = (
    PlainC2f, OtherC2f, LargerC2f, PlainC3, PlainC3k2, PlainELAN, PlainConv, PlainSPPF,
    PlainBottleneck,
)  # fmt: skip
HEADS = (PlainDetect, LargerDetect, NewerDetect)


@contextmanager
def variants_registered() -> Iterator[None]:
    """The classes above in the registry, as `yolo_attn.register` puts them there; then no more."""
    registry.list_blocks()  # loads
    with ExitStack() as stack:
        for name in ("_BLOCKS", "_ALIASES"):
            held = dict(getattr(registry, name))
            stack.enter_context(mock.patch.object(registry, name, held))
        for cls in LAYERS:
            registry.register(cls, width_options=("c2",))
        for cls in HEADS:
            registry.register(cls, inputs=(1, 6), levels=(0.5,))
        yield


FAMILIES = ("yolov5n", "yolov8n", "yolov8n-p2", "yolo11n", "yolov9t", "yolov7-tiny")

BLOCKS = ("SE", "ECA", "CBAM", "GlobalContext", "NonLocal", "SimAM", "CoordAtt", "LSK")

NO_BLOCKS = ("BatchNorm2d", "PlainBottleneck")  # what is inserted too: layers like the base's


class Built(BaseModel):
    """A model as `BaseModel.load` needs it."""

    def __init__(self, d: dict[str, Any]):
        nn.Module.__init__(self)
        self.yaml = deepcopy(d)
        with ExitStack() as stack, torch.no_grad():
            for cls in (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ConvTranspose2d):
                stack.enter_context(mock.patch.object(cls, "reset_parameters", lambda self: None))
            self.model, self.save = parse_model(deepcopy(d), 3, verbose=False)
            self.model.eval()
            size, x, outputs = 128, torch.zeros(1, 3, 128, 128), []
            for layer in self.model[:-1]:
                f = layer.f
                if f != -1:
                    x = outputs[f] if isinstance(f, int) else [([*outputs, x])[j] for j in f]
                x = layer(x)
                outputs.append(x)
        head = self.model[-1]
        head.stride = torch.tensor([size / outputs[j].shape[-2] for j in head.f])
        self.names = {i: str(i) for i in range(self.yaml["nc"])}


@dataclass(frozen=True)
class Relative:
    """A model made from a base.

    Attributes:
        made: How, for messages.
        model: It, built.
        origin: For each of its rows that of the base, -1 for another; known to the test even where
            the model does not say it.
        known: Whether the model says it, or is the base.
    """

    made: str
    model: Any
    origin: tuple[int, ...]
    known: bool

    @property
    def ours(self) -> bool:
        """Whether it is an overlay's, or has a registered module."""
        classes = tuple(registry.block_info(name).cls for name in registry.list_blocks())
        known = (*classes, IdentityStart)
        return "yolo_attn" in self.model.yaml or any(
            isinstance(module, known) for module in self.model.modules()
        )

    @property
    def strides(self) -> list[float]:
        """Of the levels of the head."""
        return [float(s) for s in self.model.model[-1].stride]


class Relatives:
    """Draws relatives of one base."""

    def __init__(self, name: str, folder: Path, seed: int):
        self.name, self.folder = name, folder
        self.draw = random.Random(f"{name} {seed}")
        self.base = Built(load_model_yaml(f"{name}.yaml"))
        self.rows = [*self.base.yaml["backbone"], *self.base.yaml["head"]]
        self.files: list[str] = []
        self.failed = 0

    def plain(self) -> Relative:
        """The base itself."""
        return Relative(f"{self.name}.yaml", self.base, tuple(range(len(self.rows))), True)

    def next(self) -> Relative:
        """One that can be built."""
        while True:
            text, d = self._overlay()
            origin = list(d["yolo_attn"]["rows"])
            if self.draw.random() < 0.5:
                d = without_provenance(d)
                text += "written by hand\n"
                for change in self.draw.sample(
                    [_other_width, _other_repeats, _other_levels, _own_head, _row_less],
                    k=self.draw.choice([0, 0, 1, 1, 2]),
                ):
                    text += change(self.draw, d, origin)
            if self.draw.random() < 0.2:
                d["nc"] = self.draw.choice([1, 5, 20])
                text += f"nc {d['nc']}\n"
            try:
                return Relative(text, Built(d), tuple(origin), "yolo_attn" in d)
            except (YoloAttnError, RuntimeError, AssertionError, IndexError):
                self.failed += 1  # channels that do not fit, say

    def _overlay(self) -> tuple[str, dict[str, Any]]:
        draw, count = self.draw, len(self.rows)
        base = self.name
        if self.files and draw.random() < 0.25:
            base = draw.choice(self.files)
        text = f"base: {base}.yaml\n"
        replaced = []
        for at in draw.sample(range(count - 1), k=draw.choice([0, 0, 1, 1, 2, 3])):
            choices = self._replacements(at)
            if choices and base == self.name:
                replaced.append(f"  - [{at}, {draw.choice(choices)}]\n")
        inserted = [
            f"  - [{draw.randrange(count - 1)}, {self._insertion()}]\n"
            for _ in range(draw.choice([0, 1, 1, 2, 3]))
        ]
        text += "replace:\n" + "".join(replaced) if replaced else ""
        text += "insert:\n" + "".join(inserted) if inserted else ""
        path = self.folder / f"{self.name}-relative{len(self.files)}.yaml"
        path.write_text(text)
        d = load_model_yaml(str(path))
        if base == self.name:
            self.files.append(path.stem)
        return text, d

    def _insertion(self) -> str:
        name = self.draw.choice([*BLOCKS, *NO_BLOCKS])
        name = f"nn.{name}" if name == "BatchNorm2d" else name
        repeats = self.draw.choice([1, 1, 1, 2]) if name not in ("nn.BatchNorm2d", "LSK") else 1
        start = name in BLOCKS and self.draw.random() < 0.3
        return f"{repeats}, {name}, [{'{identity_start: true}' if start else ''}]"

    def _replacements(self, at: int) -> list[str]:
        """What a row of the base may be replaced by: ``repeats, module, args``."""
        _, n, module, args = self.rows[at]
        n = getattr(self.base.model[at], "n", 0) or len(getattr(self.base.model[at], "m", ())) or n
        c = args[0] if args and isinstance(args[0], int) else 0
        wide = c * 3 // 2 // 16 * 16
        if module in ("C2f", "C3", "C3k2", "SPPF", "C2PSA", "RepNCSPELAN4", "ELAN1", "SPPELAN"):
            own = {
                "C2f": [f"1, {cls}, [{c}, {n}, true]" for cls in ("PlainC2f", "LargerC2f")]
                + [f"1, OtherC2f, [true, {n}]"],
                "C3": [f"1, PlainC3, [{c}, {n}]"],
                "C3k2": [f"1, PlainC3k2, [{c}, {n}]", f"1, PlainC2f, [{c}, {n}]"],
                "RepNCSPELAN4": [f"1, PlainELAN, {args}"],
                "SPPF": [f"1, PlainSPPF, [{c}]", f"1, SPP, [{c}]"],
            }.get(module, [])
            others = [f"3, {name}, [{c}]" for name in ("C2f", "C3", "C2", "C1", "C3k2")]
            others += [f"1, Conv, [{c}, 1, 1]", f"1, SPPF, [{c}]"]
            return own * 3 + others + [f"3, C2f, [{wide}]", f"6, {module}, {args}"]
        if module == "Conv":
            k, s = [*args, 1, 1][1:3]
            plain = [f"1, PlainConv, [{c}, {k}, {s}]"] * 2
            other = [f"1, {name}, [{c}, {k}, {s}]" for name in ("Conv2", "DWConv", "GhostConv")]
            return [*plain, *other, f"1, Conv, [{wide}, {k}, {s}]"]
        return []


def _all_rows(d: dict[str, Any]) -> list[list[Any]]:
    return [*d["backbone"], *d["head"]]


def _other_width(draw: random.Random, d: dict[str, Any], origin: list[int]) -> str:
    rows = [r for r in _all_rows(d)[1:] if r[2] in ("Conv", "C2f", "C3", "C3k2")]
    if not rows:
        return ""
    row = draw.choice(rows)
    row[3] = [row[3][0] * 3 // 2 // 16 * 16, *row[3][1:]]
    return f"width of {row}\n"


def _other_repeats(draw: random.Random, d: dict[str, Any], origin: list[int]) -> str:
    rows = [r for r in _all_rows(d) if r[2] in ("C2f", "C3", "C3k2")]
    if not rows:
        return ""
    row = draw.choice(rows)
    row[1] = draw.choice([1, 3, 6, 9])
    return f"repeats of {row}\n"


def _other_levels(draw: random.Random, d: dict[str, Any], origin: list[int]) -> str:
    """A level of the head less, or one more in front."""
    head = d["head"][-1]
    if draw.random() < 0.5:
        head[0] = [2, *head[0]]
    else:
        head[0] = [f for f in head[0] if f != draw.choice(head[0])]
    return f"levels {head[0]}\n"


def _own_head(draw: random.Random, d: dict[str, Any], origin: list[int]) -> str:
    head = d["head"][-1]
    newer = any(row[2] == "C3k2" for row in _all_rows(d))
    head[2] = "NewerDetect" if newer else draw.choice(["PlainDetect", "LargerDetect"])
    head[3] = [d["nc"]]
    return f"head {head[2]}\n"


def _row_less(draw: random.Random, d: dict[str, Any], origin: list[int]) -> str:
    """Take a row out that reads the one before it; its readers read that one."""
    rows = _all_rows(d)
    at = draw.choice([i for i, r in enumerate(rows) if i and r[0] == -1 and i < len(rows) - 1])
    for i, row in enumerate(rows[at + 1 :], at + 1):
        many = isinstance(row[0], list)
        sources = [s if s >= 0 else i + s for s in (row[0] if many else [row[0]])]
        new = [s - (s >= at) for s in sources]
        row[0] = new if many else (-1 if new[0] == i - 2 else new[0])
    part, index = ("backbone", at) if at < len(d["backbone"]) else ("head", at - len(d["backbone"]))
    del d[part][index], origin[at]
    return f"without row {at} {rows[at]}\n"
