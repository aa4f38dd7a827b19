"""Bases, overlays and comparisons for the tests of weight transfer."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from yolo_attn.overlay.dry_run import load_model_yaml
from yolo_attn.overlay.taps import find_taps
from yolo_attn.seam.redirect import original_of


def stock_load(model: nn.Module, weights: Any) -> None:
    """Ultralytics' own transfer, by name."""
    original_of("ultralytics.nn.tasks.BaseModel.load")(model, weights)


# Base -> places of a block: taps, two at once, and P5's own layer replaced.
PLACES = ("P2", "P3", "P4", "P5", "N3", "N4", "N5", "P3 N4", "replace")

FAMILIES = {
    "yolov5n": PLACES,
    "yolov7-tiny": PLACES,
    "yolov8n": PLACES,
    "yolov9t": PLACES,
    "yolov9c": ("P2", "P5", "N4"),  # 25 million parameters: a few places
    "yolo11n": PLACES,
}

FIRST = "yolov8n"

SLOW_TO_BUILD = ("yolov9c",)

SMALL = [name for name in FAMILIES if name not in SLOW_TO_BUILD]


def detection(cfg: Any, **options: Any) -> DetectionModel:
    return DetectionModel(cfg, verbose=False, **options)


@cache
def distinct(name: str) -> DetectionModel:
    """A base in which no two tensors hold equal values."""
    torch.manual_seed(0)
    model = detection(f"{name}.yaml").eval()
    fill(model)
    return model


def fill(model: nn.Module) -> None:
    """Give each tensor values that no other has."""
    for i, value in enumerate(model.state_dict().values()):
        value.copy_(torch.rand(value.shape) * 0.1 + 0.5 if value.is_floating_point() else 100 + i)


def lively(model: nn.Module) -> nn.Module:
    """Weights whose predictions depend on every layer, unlike those of a fresh model."""
    torch.manual_seed(0)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(1.5, 2.5)
                m.bias.normal_(0, 0.2)
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 1.0)
            elif isinstance(m, nn.Conv2d) and m.bias is not None:
                m.bias.normal_(0, 0.5)
    return model


@cache
def taps(name: str) -> dict[str, int]:
    """Taps of a base; layer indices spare each overlay of it a dry run."""
    return find_taps(load_model_yaml(f"{name}.yaml"))


def overlay(folder: Path, name: str, text: str) -> dict[str, Any]:
    """Expand an overlay of a base that is kept under the name of its family."""
    path = folder / f"{name}-test.yaml"
    path.write_text(f"base: {name}.yaml\n{text}")
    return load_model_yaml(str(path))


def inserts(*places: str, block: str = "NonLocal", options: str = "[]") -> str:
    return "insert:\n" + "".join(f"  - [{p}, 1, {block}, {options}]\n" for p in places)


def at(name: str, place: str) -> str:
    """What an overlay of a base says to have NonLocal at a place."""
    if place == "replace":
        rows = load_model_yaml(f"{name}.yaml")["backbone"]
        index = taps(name)["P5"]
        return f"replace:\n  - [{index}, 1, SPP, [{rows[index][3][0]}]]\n" + at(name, "P4")
    return inserts(*(str(taps(name)[tap]) for tap in place.split()))


def is_block(layer: nn.Module) -> bool:
    """Whether a layer is one of the blocks that the overlays here insert."""
    return str(layer.type).rsplit(".", 1)[-1] in ("NonLocal", "GlobalContext", "IdentityStart")


def rows_by_hand(base: Any, model: Any) -> dict[int, int]:
    """Base layer -> layer, counted without the code under test: what is not ours, in order."""
    theirs = [i for i, layer in enumerate(model.model) if not is_block(layer)]
    assert len(theirs) == len(base.model)
    return dict(enumerate(theirs))


def compare(base: Any, model: Any, skip: tuple[int, ...] = ()) -> tuple[int, int, int]:
    """Tensors of the base that are in their layer, in a wrong one (by value), and all."""
    values = model.state_dict()
    names = {value.numpy().tobytes(): name for name, value in base.state_dict().items()}
    home = {}
    total = right = 0
    for i, j in rows_by_hand(base, model).items():
        for name, value in base.model[i].state_dict().items():
            home[f"model.{j}.{name}"] = f"model.{i}.{name}"
            if i in skip:
                continue
            total += 1
            now = values[f"model.{j}.{name}"]
            right += now.shape == value.shape and torch.equal(now, value)
    wrong = 0
    for name, value in values.items():
        origin = names.get(value.numpy().tobytes())
        wrong += origin is not None and home.get(name) != origin
    return right, wrong, total


def equal(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


class Keep(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, lines: list[str]):
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def without_provenance(d: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in d.items() if k != "yolo_attn"}
