"""The modules of a checkpoint as data: class names, attributes and tensors, whatever their code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from yolo_attn.errors import YoloAttnError
from yolo_attn.migrate.unpickler import Stub

MOST_MODULES = 100_000
DEEPEST = 64


@dataclass
class SavedModule:
    """An ``nn.Module`` of the file.

    Attributes:
        path: Module and name of its class.
        attributes: What it holds besides tensors and modules.
        tensors: Its own parameters, then its own (persistent) buffers.
        children: Its modules, in order of registration.
    """

    path: str
    attributes: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    children: dict[str, SavedModule] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its class."""
        return self.path.rpartition(".")[2]

    def modules(self, prefix: str = "") -> Iterator[tuple[str, SavedModule]]:
        """It and all modules below, each with its dotted name."""
        yield prefix, self
        for name, child in self.children.items():
            yield from child.modules(f"{prefix}.{name}" if prefix else name)

    def state(self) -> dict[str, Tensor]:
        """All tensors by the names of ``state_dict()``, in its order."""
        return {
            f"{prefix}.{name}" if prefix else name: tensor
            for prefix, module in self.modules()
            for name, tensor in module.tensors.items()
        }

    def number(self, name: str, default: Any = None) -> Any:
        """An attribute, if it is a number; else the default."""
        value = self.attributes.get(name)
        return value if isinstance(value, (int, float)) else default


def is_module(value: Any) -> bool:
    """Whether an object of the file is a module."""
    return isinstance(value, Stub) and isinstance(value.attributes.get("_modules"), dict)


def read_module(value: Any, where: str) -> SavedModule:
    """Read a module and all below.

    Args:
        value: A stub of the file.
        where: Name of the file, for error messages.

    Raises:
        YoloAttnError: Something in it is no module or no tensor, or it holds itself.
    """
    budget = [MOST_MODULES]
    return _read(value, where, "model", 0, budget)


def _read(value: Any, where: str, name: str, depth: int, budget: list[int]) -> SavedModule:
    budget[0] -= 1
    if depth > DEEPEST or budget[0] < 0:
        raise YoloAttnError(f"{where}: {name[:80]}: modules without end (is the file damaged?)")
    if not is_module(value):
        raise YoloAttnError(f"{where}: {name} is no module (is the file damaged?)")
    state = value.attributes
    module = SavedModule(value.path)
    transient = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for key, tensor in _named(state.get(kind)):
            if tensor is None or (kind == "_buffers" and key in transient):
                continue
            if not isinstance(tensor, Tensor):
                raise YoloAttnError(
                    f"{where}: {name}.{key} is no plain tensor (quantised? sparse? accepted: a "
                    "checkpoint of a training)"
                )
            module.tensors[key] = tensor
    for key, child in _named(state["_modules"]):
        if child is not None:
            module.children[key] = _read(child, where, f"{name}.{key}", depth + 1, budget)
    module.attributes = {
        key: v for key, v in state.items() if isinstance(key, str) and not key.startswith("_")
    }
    return module


def _named(values: Any) -> list[tuple[str, Any]]:
    if not isinstance(values, dict):
        return []
    return [(str(key), value) for key, value in values.items()]
