"""The units of a CSP stage, and where in each a block may stand.

`branch` is behind the convolution that ends the residual branch, before the addition; `unit` the
unit as a whole; `conv1` and `conv2` its convolutions. What each stage of Ultralytics consists of
was read from its modules on versions 8.3.0 to 8.4.190.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn


@dataclass
class Unit:
    """One unit.

    Attributes:
        path: Its name within the row's module; "" is the module itself.
        convs: ``branch``, ``conv1``, ``conv2`` -> name of that convolution within the row's module.
        whole: Whether another module may take its place.
    """

    path: str
    convs: dict[str, str] = field(default_factory=dict)
    whole: bool = True

    @property
    def places(self) -> list[str]:
        """The places that it has."""
        order = ("branch", "unit", "conv1", "conv2")
        return [p for p in order if p in self.convs or (p == "unit" and self.whole)]


def find_units(module: nn.Module, path: str = "") -> list[Unit]:
    """The units of a row's module, with repeats those of each; empty for what is no stage."""
    kind = _kind(module)
    at = f"{path}." if path else ""
    if kind in ("Bottleneck", "RepBottleneck"):
        names = {"branch": "cv2", "conv1": "cv1", "conv2": "cv2"}
        return [Unit(path, {place: f"{at}{name}" for place, name in names.items()})]
    if kind == "GhostBottleneck":
        names = {"branch": "conv.2", "conv1": "conv.0", "conv2": "conv.2"}
        return [Unit(path, {place: f"{at}{name}" for place, name in names.items()})]
    if kind == "CIB":
        return [Unit(path, {"branch": f"{at}cv1.4"})]
    if kind == "ResNetBlock":
        return [Unit(path, {"branch": f"{at}cv3"})]
    if kind in ("PSABlock", "ABlocks") or (kind == "RepConv" and path):
        return [Unit(path)]
    if kind == "HGBlock":
        return [Unit(path, {"branch": f"{at}ec"}, whole=False)]
    if kind == "C1":
        return [Unit(path, {"branch": f"{at}m.{len(module.m) - 1}"}, whole=False)]  # type: ignore[arg-type]
    if kind == "RepNCSPELAN4":
        # ELAN1 derives from it and has plain convolutions there.
        parts = [f"{at}{name}.0" for name in ("cv2", "cv3")]
        return [u for name in parts for u in _below(module, name, path)]
    if kind == "ResNetLayer":
        return _each(module, f"{at}layer", path)
    if kind == "C3TR":
        return []
    if kind == "stage":
        return _each(module, f"{at}m", path)
    if isinstance(module, nn.Sequential):  # a row with repeats
        return [u for i, part in enumerate(module) for u in find_units(part, f"{at}{i}")]
    return []


STAGES = (
    "C2f", "C3", "C2", "C3k2", "BottleneckCSP", "C2fAttn", "C2fCIB", "A2C2f", "C2PSA", "C2fPSA",
    "RepC3", "RepCSP",
)  # fmt: skip
KINDS = (
    "Bottleneck", "RepBottleneck", "GhostBottleneck", "CIB", "ResNetBlock", "PSABlock", "RepConv",
    "HGBlock", "C1", "RepNCSPELAN4", "ResNetLayer", "C3TR",
)  # fmt: skip


def _kind(module: nn.Module) -> str:
    names = [c.__name__ for c in type(module).__mro__]
    for name in names:
        if name in KINDS:
            return name
        if name in STAGES:
            return "stage"
    return ""


def _each(module: nn.Module, name: str, path: str) -> list[Unit]:
    """Units of each child of a container of the stage."""
    inner = name[len(path) + 1 :] if path else name
    container = module.get_submodule(inner)
    found = []
    for i, part in container.named_children():
        at = f"{name}.{i}"
        if isinstance(part, nn.Sequential) and len(part):
            # C3k2's pair of a Bottleneck and a PSABlock, A2C2f's pair of ABlocks.
            first = type(part[0]).__name__
            found += [Unit(at)] if first == "ABlock" else find_units(part[0], f"{at}.0")
        else:
            found += find_units(part, at)
    return found


def _below(module: nn.Module, name: str, path: str) -> list[Unit]:
    inner = name[len(path) + 1 :] if path else name
    try:
        part = module.get_submodule(inner)
    except AttributeError:
        return []
    return find_units(part, name)
