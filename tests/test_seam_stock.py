"""Who does not use our blocks cannot tell that we are installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ultralytics.utils import ROOT

from tests.processes import python

WORKER = str(Path(__file__).with_name("stock_fingerprint.py"))
SMALL = [
    "yolov5.yaml", "yolov8.yaml", "yolov8-p2.yaml", "yolov8-seg.yaml",
    "yolov8-pose.yaml", "yolov8-cls.yaml", "yolov8-obb.yaml", "yolov9t.yaml",
    "yolov10n.yaml", "yolo11.yaml", "yolo12.yaml", "yolo26.yaml",
    "yolov8-world.yaml",
]  # fmt: skip


def fingerprints(paths: list[str], **env: str) -> dict:
    return json.loads(python(WORKER, *paths, **env).stdout.strip().splitlines()[-1])


def compare(paths: list[str]) -> int:
    on, off = fingerprints(paths), fingerprints(paths, YOLO_ATTN_DISABLE="1")
    assert on["ours"], "the hook was not active"
    different = [name for name in on["prints"] if on["prints"][name] != off["prints"][name]]
    assert not different
    return len(on["prints"])


def test_small_stock_models_are_identical_to_the_byte() -> None:
    found = [
        str(p) for p in sorted((Path(ROOT) / "cfg" / "models").rglob("*.yaml")) if p.name in SMALL
    ]
    assert compare(found) >= 9


@pytest.mark.slow
def test_every_stock_model_is_identical_to_the_byte() -> None:
    assert compare([]) >= 30
