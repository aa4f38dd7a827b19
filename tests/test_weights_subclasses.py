"""Weights go from a layer to a subclass of it with the same tensors, and back, as by name."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.utils import LOGGER

from tests.transfer_cases import variants_registered
from tests.transfer_harness import (
    Keep,
    at,
    detection,
    distinct,
    equal,
    fill,
    inserts,
    overlay,
    stock_load,
    without_provenance,
)
from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml
from yolo_attn.transfer.load import rows_of

# Rows of YOLOv8n's C2f: channels of the YAML, repeats at scale n, shortcut.
C2F = {
    2: (128, 1, True),
    4: (256, 2, True),
    6: (512, 2, True),
    8: (1024, 1, True),
    12: (512, 1, False),
    15: (256, 1, False),
    18: (512, 1, False),
    21: (1024, 1, False),
}
THREE = (2, 4, 6)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with variants_registered():
        yield


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What is printed through Ultralytics' logger."""
    handler = Keep([])
    LOGGER.addHandler(handler)
    yield handler.lines
    LOGGER.removeHandler(handler)


def replaced(cls: str, rows: tuple[int, ...] = THREE) -> str:
    """Entries of an overlay of YOLOv8n that give rows of C2f another class."""
    text = "replace:\n"
    for row in rows:
        c, n, shortcut = C2F[row]
        options = [shortcut, n] if cls == "OtherC2f" else [c, n, shortcut]
        text += f"  - [{row}, 1, {cls}, {str(options).lower()}]\n"
    return text


def tensors(model: nn.Module) -> int:
    return len(model.state_dict())


@pytest.mark.parametrize("by_hand", [False, True], ids=["overlay", "by hand"])
@pytest.mark.parametrize("rows", [(6,), THREE, tuple(C2F)], ids=["one", "three", "all"])
def test_a_subclass_keeps_what_by_name_loading_keeps(
    rows: tuple[int, ...], by_hand: bool, tmp_path: Path, log: list[str]
) -> None:
    base = distinct("yolov8n")
    d = overlay(tmp_path, "yolov8n", replaced("PlainC2f", rows))
    model = detection(without_provenance(d) if by_hand else d)
    assert not equal(model, base)
    model.load(base)
    total = tensors(base)
    assert equal(model, base)
    assert log[-1].startswith(f"Transferred {total}/{total} items") and f"all {total}" in log[-1]
    print(log[-1])  # 355 of 355

    stock = detection(d)
    stock_load(stock, base)
    assert equal(stock, model)


@pytest.mark.parametrize("by_hand", [False, True], ids=["overlay", "by hand"])
def test_behind_an_inserted_block_too(by_hand: bool, tmp_path: Path, log: list[str]) -> None:
    base = distinct("yolov8n")
    d = overlay(tmp_path, "yolov8n", replaced("PlainC2f", tuple(C2F)) + inserts("P2", "N4"))
    model = detection(without_provenance(d) if by_hand else d)
    model.load(base)
    assert f"all {tensors(base)} tensors of the source kept" in log[-1]
    assert log[-1].count("\n") == 2 and log[-1].count("new: ") == 2

    # And back, and into an overlay that has the base's own class.
    fill(model)
    plain = detection("yolov8n.yaml")
    plain.load(model)
    assert log[-1].startswith(f"Transferred {tensors(plain)}/{tensors(plain)} items")
    other = detection(overlay(tmp_path, "yolov8n", inserts("P2", "N4")))
    other.load(model)
    assert [*other.state_dict().values()][-1].equal([*model.state_dict().values()][-1])
    assert f"Transferred {tensors(model)}/{tensors(model)} items" in log[-1]


@pytest.mark.parametrize("by_hand", [False, True], ids=["overlay", "by hand"])
@pytest.mark.parametrize("one", ["PlainC2f", "OtherC2f"])
def test_subclasses_of_one_layer_are_of_its_kind(
    one: str, by_hand: bool, tmp_path: Path, log: list[str]
) -> None:
    rows = THREE  # their inputs are as wide as their outputs, which OtherC2f needs
    first = detection(overlay(tmp_path, "yolov8n", replaced(one, rows)))
    fill(first)
    d = overlay(tmp_path, "yolov8n", replaced("LargerC2f", rows))
    second = detection(without_provenance(d) if by_hand else d)
    second.load(first)
    now = second.state_dict()
    assert all(torch.equal(now[name], value) for name, value in first.state_dict().items())
    fresh = tensors(second) - tensors(first)
    assert f"all {tensors(first)} tensors of the source kept" in log[-1]
    assert fresh == 3 * 7 and log[-1].count("new: ") == 3
    assert "new: layer 4 LargerC2f: 7 tensors" in log[-1] and "dropped" not in log[-1]

    first.load(second)
    assert "dropped: layer 4 LargerC2f (has no place in this model): 7 tensors" in log[-1]
    assert log[-1].startswith(f"Transferred {tensors(first)}/{tensors(first)} items")


def test_in_both_halves_more_tensors_are_no_other_family(tmp_path: Path, log: list[str]) -> None:
    d = without_provenance(overlay(tmp_path, "yolov8n", replaced("LargerC2f", tuple(C2F))))
    source, base = detection(d), detection("yolov8n.yaml")
    fill(source)
    base.load(source)
    assert log[-1].startswith(f"Transferred {tensors(base)}/{tensors(base)} items")
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in base.state_dict().items())


def test_another_family_or_scale_stays_one(tmp_path: Path) -> None:
    for by_hand in (False, True):
        d = overlay(tmp_path, "yolov8n", replaced("PlainC2f", tuple(C2F)))
        model = detection(without_provenance(d) if by_hand else d)
        for name in ("yolov8s", "yolov5n", "yolo11n", "yolov9t"):
            before = deepcopy(model)
            with pytest.raises(YoloAttnError, match=f"{name}.*another family or scale") as caught:
                model.load(distinct(name))
            assert "\n" not in str(caught.value) and equal(model, before)


def small(module: str, repeats: int, extra: str = "SE") -> dict[str, Any]:
    """A chain with a row of repeats, a Sequential."""
    return {
        "nc": 3,
        "backbone": [
            [-1, 1, "Conv", [16, 3, 8]],
            [-1, repeats, module, [16] if module == "Bottleneck" else []],
            [-1, 1, extra, []],
        ],
        "head": [[[2], 1, "Detect", ["nc"]]],
    }


def test_rows_with_repeats_are_of_the_kind_of_what_they_repeat() -> None:
    source, model = detection(small("Bottleneck", 3)), detection(small("PlainBottleneck", 3))
    fill(source)
    model.load(source)
    assert isinstance(model.model[1], nn.Sequential) and equal(model, source)
    one, three = rows_of(detection(small("PlainBottleneck", 1))), rows_of(model)
    assert one.rows[1].kinds == three.rows[1].kinds >= {"PlainBottleneck", "Bottleneck"}

    fewer = detection(small("PlainBottleneck", 2, extra="ECA"))
    fewer.load(source)
    assert all(equal(fewer.model[1][k], source.model[1][k]) for k in range(2))


@pytest.mark.parametrize("block", [False, True], ids=["alone", "with a block"])
@pytest.mark.parametrize(("cls", "own"), [("PlainDetect", 0), ("LargerDetect", 1)])
def test_a_subclass_of_the_head(
    cls: str, own: int, block: bool, tmp_path: Path, log: list[str]
) -> None:
    base = distinct("yolov8n")
    d = overlay(tmp_path, "yolov8n", at("yolov8n", "P4") if block else "")
    d["head"][-1][2:] = [cls, [80]]
    model = detection(without_provenance(d))
    model.load(base)
    assert f"all {tensors(base)} tensors of the source kept" in log[-1]
    assert (f" {cls}: {own} tensor" in log[-1]) is bool(own)
    fill(model)
    plain = detection("yolov8n.yaml")
    plain.load(model)
    now = plain.model[-1].state_dict()
    assert all(torch.equal(v, model.model[-1].state_dict()[k]) for k, v in now.items())


def test_a_subclass_of_the_head_gets_each_level_s_own_branches() -> None:
    base = distinct("yolov8n")
    d = load_model_yaml("yolov8n-p2.yaml")
    d["head"][-1][2:] = ["PlainDetect", [80]]
    model = detection(d)
    model.load(base)
    now, wanted = model.model[-1].state_dict(), base.model[-1].state_dict()
    for name in ("cv2.{}.0.conv.weight", "cv2.{}.2.bias"):
        found = [torch.equal(now[name.format(k + 1)], wanted[name.format(k)]) for k in range(3)]
        shapes = [now[name.format(k + 1)].shape == wanted[name.format(k)].shape for k in range(3)]
        assert found == shapes and any(found)


def test_other_modules_keep_what_is_equal_at_their_place(tmp_path: Path, log: list[str]) -> None:
    base = distinct("yolov8n")
    d = overlay(tmp_path, "yolov8n", "replace:\n  - [9, 1, Conv, [1024, 1, 1]]\n" + inserts("P3"))
    spp = overlay(tmp_path, "yolov8n", "replace:\n  - [9, 1, SPP, [1024]]\n" + inserts("P3"))
    model = detection(spp)
    model.load(base)
    assert equal(model.model[10], base.model[9])
    assert f"all {tensors(base)} tensors of the source kept" in log[-1]
    model = detection(d)
    model.load(base)
    assert "new: layer 10 Conv: 6 tensors" in log[-1]
    assert "dropped: layer 9 SPPF (replaced by Conv): 12 tensors" in log[-1]
    ghost = overlay(tmp_path, "yolov8n", "replace:\n  - [21, 3, C2, [1024]]\n" + inserts("P3"))
    model = detection(ghost)
    model.load(base)
    assert "dropped: layer 21 C2f (replaced by C2):" in log[-1]
    assert torch.equal(model.model[22].cv1.conv.weight, base.model[21].cv1.conv.weight)


def test_through_files(tmp_path: Path) -> None:
    (tmp_path / "yolov8-mine.yaml").write_text("base: yolov8.yaml\n" + replaced("PlainC2f"))
    mine = YOLO(tmp_path / "yolov8n-mine.yaml")
    fill(mine.model)
    mine.ckpt = {}
    mine.save(tmp_path / "mine.pt")
    kept = YOLO(tmp_path / "mine.pt").model.float()
    plain = YOLO("yolov8n.yaml").load(tmp_path / "mine.pt").model
    assert equal(plain, kept)
