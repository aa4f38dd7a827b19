"""A small model with blocks that look, for the tests of `yolo_attn.explain`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from yolo_attn.explain import hooks


def looking_model() -> hooks.Subject:
    """Five blocks, with and without attention maps, and two detection levels."""
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    backbone = [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "NonLocal", ["gaussian"]],
        [-1, 1, "GlobalContext", []],
        [-1, 1, "CrissCross", []],
        [-1, 1, "SE", []],
        [-1, 1, "MDCR", []],
        [-1, 1, "Conv", [16, 3, 2]],
    ]
    assert yaml_model_load  # the start-up hook is in place
    torch.manual_seed(0)
    d = {"nc": 1, "backbone": backbone, "head": [[[6, 7], 1, "Detect", [1]]]}
    return hooks.subject(DetectionModel(d, ch=3, verbose=False), "small.yaml")


def image_of(width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(width * height)
    return rng.integers(0, 255, (height, width, 3), dtype=np.uint8)


def image_folder(folder: Path) -> Path:
    """Two images of different shapes."""
    import cv2

    folder.mkdir()
    for i, (width, height) in enumerate([(120, 90), (64, 100)]):
        cv2.imwrite(str(folder / f"{i}.png"), image_of(width, height))
    return folder
