"""Running numbers of a loss: plain floats in the model's YAML, which checkpoints and EMA share.

The trainer hands the model's ``yaml``, the same object, to the EMA before each validation. Each
criterion (an end-to-end model has two) has an entry of its own, by its ``tal_topk``.
On a CPU the floats are written at every step. On an accelerator that would wait for the device at
every step: there a tensor is kept, and written at the end of each epoch.
"""

from __future__ import annotations

import math
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from yolo_attn.losses.combined import keeps_mean
from yolo_attn.seam.loss_choice import STATE

_ON_DEVICE: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()


def start_of(spec: dict[str, Any]) -> dict[str, float]:
    """The numbers that a loss keeps, as they are before the first step; none for most."""
    start: dict[str, float] = {"mean": 1.0} if keeps_mean(spec) else {}
    cls = spec.get("cls", {})
    if "mu" in cls:
        start["mu"] = cls["mu"]
    if "decay" in cls:
        start["updates"] = 0
    return start


def state_of(model: Any, name: str, spec: dict[str, Any]) -> dict[str, float]:
    """The numbers of one criterion, shared with ``model.yaml``.

    A new training starts anew; a resumed one, and the EMA's criterion, which is built without
    gradient, go on with what is there.

    Args:
        model: The model that the criterion is made for.
        name: Of the criterion in ``yaml["loss_state"]``.
        spec: The expanded loss.
    """
    start = start_of(spec)
    if not start:
        return start
    if torch.is_grad_enabled() and not _resumes(model):
        # Two models may have been built from this one dictionary.
        kept = model.yaml.get(STATE)
        kept = kept if isinstance(kept, dict) else {}
        model.yaml = {**model.yaml, STATE: {**kept, name: start}}
        return start
    states = model.yaml.get(STATE)
    if not isinstance(states, dict):
        states = model.yaml[STATE] = {}
    if not _fits(states.get(name), start):
        states[name] = start
    found: dict[str, float] = states[name]
    return found


def _resumes(model: Any) -> bool:
    arguments = getattr(model, "args", None)
    if isinstance(arguments, dict):
        return bool(arguments.get("resume"))
    return bool(getattr(arguments, "resume", False))


def _fits(state: Any, start: dict[str, float]) -> bool:
    """Whether what a YAML (perhaps a stranger's) holds are these numbers."""
    return (
        isinstance(state, dict)
        and set(state) == set(start)
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in state.values())
    )


def get(module: nn.Module, state: dict[str, float], name: str) -> float | Tensor:
    """A running number of a criterion's box loss."""
    return _ON_DEVICE.get(module, {}).get(name, state[name])


def put(module: nn.Module, state: dict[str, float], name: str, value: float | Tensor) -> None:
    """Set it: at once on a CPU, else at the end of the epoch."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        _ON_DEVICE.setdefault(module, {})[name] = value.detach()
    else:
        state[name] = float(value)


def write_out() -> None:
    """Write what is on accelerators into the YAMLs."""
    from yolo_attn.seam.box_losses import CHOICE

    for module, numbers in list(_ON_DEVICE.items()):
        state = module.__dict__[CHOICE]["state"]
        state.update({name: float(value) for name, value in numbers.items()})


def on_train_epoch_end(original: FunctionType, trainer: Any) -> None:
    """The default callback: before the EMA gets the YAML, before validation and checkpoint."""
    write_out()
    original(trainer)
