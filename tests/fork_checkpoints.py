"""Checkpoints as forks save them: a model with a class that is deleted afterwards."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from .fork_blocks import HEAD


def fork_model(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    row: str,
    args: list[Any],
    build: str,
    classes: int = 3,
) -> Any:
    """A small detector whose layer 4 is a fork's module; all weights and statistics are random.

    Args:
        folder: Where the throw-away module is written.
        monkeypatch: Takes the folder off the path again.
        source: Classes, see ``fork_blocks.py``.
        row: Name of the module in the YAML.
        args: Its arguments there.
        build: Expression of the module, given the width `c`.
        classes: What the head tells apart.
    """
    from ultralytics.nn.tasks import DetectionModel

    d: dict[str, Any] = {
        "nc": classes,
        "scales": {"n": [0.33, 0.25, 1024]},
        "scale": "n",
        "yaml_file": "yolov8n-fork.yaml",
        "backbone": [
            [-1, 1, "Conv", [64, 3, 2]],
            [-1, 1, "Conv", [64, 3, 2]],
            [-1, 1, "C2f", [128, True]],
            [-1, 1, "Conv", [256, 3, 2]],
            [-1, 1, "nn.Identity", []],
            [-1, 1, "Conv", [256, 3, 2]],
            [-1, 1, "Conv", [256, 3, 2]],
        ],
        "head": [[[4, 5, 6], 1, "Detect", ["nc"]]],
    }
    torch.manual_seed(0)
    model = DetectionModel(d, verbose=False)
    (folder / "fork_attention.py").write_text(HEAD + source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    module = importlib.import_module("fork_attention")
    c = 64
    layer = eval(build, {**vars(module), "c": c})  # noqa: S307
    old = model.model[4]
    layer.i, layer.f, layer.type, layer.np = old.i, old.f, f"fork_attention.{row}", 0
    model.model[4] = layer
    model.yaml["backbone"][4] = [-1, 1, row, args]
    for norm in model.modules():
        if type(norm) is nn.BatchNorm2d:
            norm.eps, norm.momentum = 1e-3, 0.03  # as Ultralytics sets them in a fork's classes
    randomise(model)
    model.names = {0: "person", 1: "car", 2: "drone"}
    return model.eval()


def randomise(model: nn.Module) -> None:
    """Weights of moderate size, positive variances."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "dfl" in name or not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.dim() < 2:
                tensor.copy_(torch.rand(tensor.shape) * 0.5 + 0.25)
            else:
                tensor.normal_(std=1.5 / tensor[0].numel() ** 0.5)


def save_and_forget(model: Any, path: Path, **content: Any) -> None:
    """Save as a training does and delete the fork's module, from memory and disk."""
    torch.save({"epoch": -1, "model": None, "ema": model, **content}, path)
    module = sys.modules.pop("fork_attention")
    assert module.__file__
    Path(module.__file__).unlink()
    importlib.invalidate_caches()


def outputs(model: Any) -> list[torch.Tensor]:
    """Outputs of all layers for one image in float64."""
    torch.manual_seed(1)
    x: Any = torch.rand(2, 3, 104, 72, dtype=torch.float64)
    results: list[Any] = []
    with torch.no_grad():
        for layer in model.double().eval().model:
            f = layer.f
            if f != -1:
                x = results[f] if isinstance(f, int) else [x if j == -1 else results[j] for j in f]
            x = layer(x)
            results.append(x)
    return [*results[:-1], results[-1][0]]
