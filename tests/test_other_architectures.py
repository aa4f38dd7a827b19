"""`check` and taps on models that are not plain YOLO: RT-DETR, YOLO-World, YOLOE."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolo_attn.overlay.dry_run import load_model_yaml
from yolo_attn.overlay.model_files import model_names
from yolo_attn.overlay.taps import find_taps
from yolo_attn.zoo import check

TAPS = {
    "rtdetr-l.yaml": {"P2": 1, "P3": 3, "P4": 7, "P5": 9, "N3": 21, "N4": 24, "N5": 27},
    "rtdetr-resnet50.yaml": {},
    "yolov8-rtdetr.yaml": {"P2": 2, "P3": 4, "P4": 6, "P5": 9, "N3": 15, "N4": 18, "N5": 21},
    "yolov8n-world.yaml": {"P2": 2, "P3": 4, "P4": 6, "P5": 9, "N3": 15, "N4": 19, "N5": 22},
    "yolov8n-worldv2.yaml": {"P2": 2, "P3": 4, "P4": 6, "P5": 9, "N3": 15, "N4": 18, "N5": 21},
    "yoloe-11n-seg.yaml": {"P2": 2, "P3": 4, "P4": 6, "P5": 10, "N3": 16, "N4": 19, "N5": 22},
}
# A release may lack some of them.
HERE = [n for n in TAPS if {n, n.replace("n-", "-", 1)} & set(model_names())]


@pytest.mark.parametrize("name", HERE)
def test_another_architecture_is_checked_and_has_taps(name: str) -> None:
    assert ": ok, " in check(name)[0]
    taps = find_taps(load_model_yaml(name))
    assert taps and all(taps.get(tap) == row for tap, row in TAPS[name].items()), taps


@pytest.mark.parametrize("base", ["rtdetr-l.yaml", "yolov8-world.yaml", "yoloe-v8.yaml"])
def test_a_tap_of_another_architecture_takes_a_block(base: str, tmp_path: Path) -> None:
    if base not in model_names():
        pytest.skip("this release has no such model")
    file = tmp_path / base.replace(".yaml", "-mine.yaml")
    file.write_text(f"base: {base}\ninsert:\n  - [P4, 1, SE, []]\n")
    assert ": ok, " in check(str(file))[0]
