"""What the rules of a layout work with: a fork's module in parts, and its tensors under our names.

A rule finds the parts of its block by the shapes of their tensors and their order, not by one
spelling of their names, and has to use up all of them: what is left over, or computes what the
block here does not, is a refusal. Functions without tensors (activations, pools) are known only
where they are modules of their own; a function that a class calls in its code leaves no trace in
a checkpoint, and is taken to be its layout's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from yolo_attn.migrate.saved_modules import SavedModule

EPS = 1e-5  # of the norms of our blocks

# Classes of activations as forks spell them, without case and underscores.
ACTIVATIONS = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "hardswish": "hardswish",
    "hswish": "hardswish",
    "relu6": "relu6",
    "leakyrelu": "leaky_relu",
    "mish": "mish",
    "elu": "elu",
    "prelu": "prelu",
    "hardsigmoid": "hard_sigmoid",
    "hsigmoid": "hard_sigmoid",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "softmax": "softmax",
}
# What changes no number in evaluation, or is part of every gate.
HARMLESS = {
    *("adaptiveavgpool2d", "adaptiveavgpool1d", "identity", "flatten", "dropout", "dropout2d"),
    *("sequential", "modulelist", "globalavgpool", "globalavgpool2d", "globalaveragepooling"),
}


class CannotMapError(Exception):
    """A module that is not exactly a block of ours; its text is why."""


@dataclass
class Mapped:
    """A module of a fork as a block of ours.

    Attributes:
        block: Our block.
        options: Its options.
        tensors: All of its tensors by our names.
        settings: Attributes to set on the built block, dotted name -> value.
        notes: What the checkpoint cannot tell and was assumed.
    """

    block: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Part:
    """One layer with tensors.

    Attributes:
        name: Dotted name in the module.
        module: The layer.
    """

    name: str
    module: SavedModule

    @property
    def weight(self) -> Tensor:
        """Its weight."""
        return self.module.tensors["weight"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its weight; that of a 1 x 1 convolution without the ones."""
        shape = tuple(self.weight.shape)
        return shape[:2] if len(shape) > 2 and set(shape[2:]) == {1} and self.groups == 1 else shape

    @property
    def groups(self) -> int:
        """Groups of a convolution, else 1."""
        return int(self.module.number("groups", 1))

    @property
    def bias(self) -> Tensor | None:
        """Its bias."""
        return self.module.tensors.get("bias")

    def bias_or_zeros(self) -> Tensor:
        """Its bias, zeros where it has none."""
        return self.weight.new_zeros(self.weight.shape[0]) if self.bias is None else self.bias


class Parts:
    """A fork's module in parts, which a rule takes one by one.

    Attributes:
        module: The module.
        channels: C of what it reads.
        design: What ``--design`` says for its class; empty: nothing.
        plain: Classes of what has no tensors, in order, without case and underscores.
    """

    def __init__(self, module: SavedModule, channels: int, design: str = ""):
        self.module, self.channels, self.design = module, channels, design
        self._layers: list[Part] = []
        self._raw: dict[str, Tensor] = {}
        self.plain: list[str] = []
        self._collect("", module)

    def _collect(self, prefix: str, module: SavedModule) -> None:
        name = normalised(module.name)
        if prefix and not module.state() and name not in ("sequential", "modulelist"):
            # h_swish is one function, whatever it is made of.
            self.plain.append(name)
            return
        tensors = module.tensors
        if "weight" in tensors and set(tensors) <= {
            *("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        }:
            self._layers.append(Part(prefix, module))
        else:
            dot = f"{prefix}." if prefix else ""
            self._raw.update({f"{dot}{key}": tensor for key, tensor in tensors.items()})
        for key, child in module.children.items():
            self._collect(f"{prefix}.{key}" if prefix else key, child)

    @property
    def names(self) -> list[str]:
        """Names of the layers that are left."""
        return [p.name for p in self._layers]

    def has(self, pattern: str) -> bool:
        """Whether the name of a layer that is left matches."""
        return any(re.search(pattern, name, re.IGNORECASE) for name in self.names)

    def take(
        self, what: str, *shape: int | None, named: str = "", norm: bool = False, dilation: int = 1
    ) -> Part:
        """Take the first layer whose weight has this shape.

        Args:
            what: What it is, for the refusal.
            shape: Sizes; None for any. Two sizes are a linear map or a 1 x 1 convolution.
            named: Only layers whose dotted name matches this expression.
            norm: Whether it has running statistics.
            dilation: Of a convolution.

        Raises:
            CannotMapError: There is none, or it does not keep the size of the map.
        """
        part = self.maybe(*shape, named=named, norm=norm, dilation=dilation)
        if part is None:
            sizes = " x ".join("?" if s is None else str(s) for s in shape)
            raise CannotMapError(f"has no {what} ({sizes}); it has {self._inventory()}")
        return part

    def maybe(
        self, *shape: int | None, named: str = "", norm: bool = False, dilation: int = 1
    ) -> Part | None:
        """The same; None where there is no such layer."""
        for part in self._layers:
            fits = len(part.shape) == len(shape) and all(
                want in (None, size) for want, size in zip(shape, part.shape)
            )
            if not fits or norm != ("running_mean" in part.module.tensors):
                continue
            if named and not re.search(named, part.name, re.IGNORECASE):
                continue
            self._layers.remove(part)
            if part.weight.dim() > 2:
                _check_conv(part, dilation)
            return part
        return None

    def raw(self, pattern: str) -> Tensor | None:
        """Take a tensor that is no layer's weight."""
        for name in list(self._raw):
            if re.search(pattern, name, re.IGNORECASE):
                return self._raw.pop(name)
        return None

    def number(self, *names: str, default: Any = None) -> Any:
        """The first of these attributes that is a number."""
        for name in names:
            if (value := self.module.number(name)) is not None:
                return value
        return default

    def activations(self, *, ignore: Iterable[str] = ("sigmoid",)) -> list[str]:
        """The activations that are modules, by PyTorch's function names, without doubles."""
        found = [ACTIVATIONS[name] for name in self.plain if name in ACTIVATIONS]
        return [a for a in dict.fromkeys(found) if a not in set(ignore)]

    def check_activations(self, *accepted: str) -> None:
        """Refuse activations that the block here does not have."""
        self.finish()
        if wrong := [a for a in self.activations(ignore=()) if a not in accepted]:
            raise CannotMapError(f"has {wrong[0]} in it (accepted: {', '.join(accepted)})")

    def finish(self, *also: str) -> None:
        """Refuse what is left over.

        Args:
            also: Classes without tensors that belong to the layout.
        """
        if self._layers or self._raw:
            raise CannotMapError(f"has more than the block here: {self._inventory()}")
        known = HARMLESS | set(ACTIVATIONS) | set(also)
        if unknown := [n for n in self.plain if n not in known]:
            raise CannotMapError(f"has a part of unknown meaning: {unknown[0]}")

    def _inventory(self) -> str:
        layers = [f"{p.name} {tuple(p.weight.shape)}" for p in self._layers]
        raw = [f"{name} {tuple(t.shape)}" for name, t in self._raw.items()]
        return ", ".join([*layers, *raw][:8]) or "no tensors"


def normalised(name: str) -> str:
    """A class name without case and underscores."""
    return name.replace("_", "").lower()


def _check_conv(part: Part, dilation: int) -> None:
    """A convolution that keeps the size of its map and pads with zeros (a rule may allow more)."""
    attributes = part.module.attributes
    kernel = tuple(part.weight.shape[2:])
    wanted = {
        "stride": tuple(1 for _ in kernel),
        "dilation": tuple(dilation for _ in kernel),
        "padding": tuple(dilation * (k // 2) for k in kernel),
    }
    for name, value in wanted.items():
        said = attributes.get(name, value)
        if isinstance(said, (list, tuple)) and tuple(said) != value and set(kernel) != {1}:
            raise CannotMapError(f"{part.name} has {name} {tuple(said)} (accepted: {value})")
    if any(k % 2 == 0 for k in kernel):
        raise CannotMapError(f"{part.name} has an even kernel {kernel} (accepted: odd sides)")
    if set(kernel) != {1} and attributes.get("padding_mode", "zeros") not in ("zeros", "replicate"):
        raise CannotMapError(f"{part.name} pads by {attributes.get('padding_mode')!r}")


def zeros_padded(part: Part) -> Part:
    """The convolution, refused if it pads with anything but zeros."""
    if part.weight.dim() == 4 and part.module.attributes.get("padding_mode", "zeros") != "zeros":
        raise CannotMapError(f"{part.name} pads by {part.module.attributes['padding_mode']!r}")
    return part


def hidden(channels: int, width: int) -> dict[str, Any]:
    """The option for a hidden width: rows scale `rd_channels` from 8 on, but no ratio."""
    return {"rd_channels": width} if width < 8 else {"rd_ratio": width / channels}


def exact(value: Tensor, like: Tensor) -> Tensor:
    """A float64 result in the file's precision if it fits there, else as it is.

    Half precision would lose what an adjusted running mean needs; Ultralytics makes one type of a
    whole checkpoint when it reads it.
    """
    short = value.to(like.dtype)
    return short if torch.equal(short.double(), value) else value


def folded_norm(norm: Part, name: str, bias: Tensor | None = None) -> dict[str, Tensor]:
    """A batch norm as ours: another eps and a bias in front of it go into its statistics.

    Args:
        norm: The fork's norm.
        name: Ours.
        bias: Of the convolution in front, which has none here.
    """
    tensors = norm.module.tensors
    mean, variance = tensors["running_mean"], tensors["running_var"]
    eps = float(norm.module.number("eps", EPS))
    if bias is not None:
        mean = exact(mean.double() - bias.double(), mean)
    if eps != EPS:
        variance = exact(variance.double() + (eps - EPS), variance)
    counted = tensors.get("num_batches_tracked", torch.zeros((), dtype=torch.int64))
    return {
        f"{name}.weight": norm.weight,
        f"{name}.bias": norm.bias_or_zeros(),
        f"{name}.running_mean": mean,
        f"{name}.running_var": variance,
        f"{name}.num_batches_tracked": counted,
    }


def matrix(part: Part) -> Tensor:
    """The weight as ``(out, in)``."""
    return part.weight.reshape(part.weight.shape[0], -1)


def pointwise(part: Part) -> Tensor:
    """The weight as a 1 x 1 convolution's ``(out, in, 1, 1)``."""
    return matrix(part)[:, :, None, None]
