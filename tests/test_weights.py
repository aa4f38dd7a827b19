"""Pretrained weights keep every tensor, each in its own layer, wherever rows were put in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, SegmentationModel
from ultralytics.utils import LOGGER, ROOT

from tests.processes import python
from tests.transfer_harness import (
    FAMILIES,
    FIRST,
    SMALL,
    Keep,
    at,
    compare,
    detection,
    distinct,
    equal,
    fill,
    inserts,
    is_block,
    lively,
    overlay,
    rows_by_hand,
    stock_load,
    taps,
    without_provenance,
)  # fmt: skip
from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml
from yolo_attn.transfer.load import transfer


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    lines: list[str] = []
    yield lines
    head = f"{'base':11} {'at':8} {'tensors':>7} {'kept':>5} {'wrong':>5}   by name: kept, wrong"
    print("\n" + "\n".join([head, *lines]))


def every_case() -> list[Any]:
    """Every base with every place; most are slow only together."""
    quick = ("P2", "N4", "replace")
    return [
        pytest.param(name, place, marks=() if place in quick or name == FIRST else pytest.mark.slow)
        for name, places in FAMILIES.items()
        for place in places
    ]


@pytest.mark.parametrize(("name", "place"), every_case())
def test_every_base_tensor_is_kept_in_its_layer(
    name: str, place: str, tmp_path: Path, table: list[str]
) -> None:
    base = distinct(name)
    d = overlay(tmp_path, name, at(name, place))
    model = detection(d)
    by_name = deepcopy(model)
    model.load(base)
    stock_load(by_name, base)
    skip = (taps(name)["P5"],) if place == "replace" else ()
    right, wrong, total = compare(base, model, skip)
    stock_right, stock_wrong, _ = compare(base, by_name, skip)
    table.append(
        f"{name:11} {place:8} {total:7} {right / total:5.0%} {wrong:5}   "
        f"{stock_right / total:13.0%} {stock_wrong:6}"
    )
    assert (right, wrong) == (total, 0)
    assert stock_right < total


IDENTITIES = {
    **dict.fromkeys(SMALL, inserts("P2", "P5", "N3")),
    FIRST: inserts("P2", "P5", "N3") + "  - [P3, 1, SE, [{identity_start: true}]]\n",
}


@pytest.mark.parametrize(("name", "text"), IDENTITIES.items(), ids=IDENTITIES)
def test_with_identity_blocks_the_predictions_are_the_base_s(
    name: str, text: str, tmp_path: Path
) -> None:
    base = lively(detection(f"{name}.yaml")).eval()
    model = detection(overlay(tmp_path, name, text)).eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        wanted = base(image)[0]
        before = model(image)[0]
        model.load(base)
        now = model(image)[0]
    assert (before - wanted).abs().max() > 1e-3
    torch.testing.assert_close(now, wanted, rtol=1e-5, atol=1e-5)


def test_a_model_of_ours_is_a_source_too(tmp_path: Path, log: list[str]) -> None:
    first = detection(overlay(tmp_path, "yolov8n", inserts("P4", "P5", "N3")))
    fill(first)

    plain = detection("yolov8n.yaml")
    plain.load(first)
    assert compare(plain, first) == (len(plain.state_dict()), 0, len(plain.state_dict()))

    other = detection(
        overlay(tmp_path, "yolov8n", inserts("P5", block="GC") + "  - [N3, 1, NonLocal, []]\n")
    )
    other.load(first)
    assert compare(plain, other) == (len(plain.state_dict()), 0, len(plain.state_dict()))
    # The block that both have at one place goes along; the one at P4 has no place.
    ours = [i for i, layer in enumerate(other.model) if is_block(layer)]
    theirs = [i for i, layer in enumerate(first.model) if is_block(layer)]
    assert equal(other.model[ours[1]], first.model[theirs[2]])
    assert "dropped: layer 7 NonLocal" in log[-1] and "new: layer 10 GlobalContext" in log[-1]

    again = detection(overlay(tmp_path, "yolov8n", inserts("P4", "P5", "N3")))
    again.load(first)
    assert equal(again, first)


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What is printed through Ultralytics' logger."""
    handler = Keep([])
    LOGGER.addHandler(handler)
    yield handler.lines
    LOGGER.removeHandler(handler)


@pytest.mark.parametrize("name", SMALL)
def test_rows_written_by_hand_are_aligned_by_what_they_are(name: str, tmp_path: Path) -> None:
    base = distinct(name)
    for place in ("P2", "P5 N3"):
        model = detection(without_provenance(overlay(tmp_path, name, at(name, place))))
        model.load(base)
        right, wrong, total = compare(base, model)
        assert (right, wrong) == (total, 0), place


def test_a_stale_provenance_is_noticed(tmp_path: Path) -> None:
    d = overlay(tmp_path, "yolov8n", inserts("P2"))
    d["yolo_attn"]["rows"] = [*range(9), -1, *range(9, 23)]
    model = detection(d)
    model.load(distinct("yolov8n"))
    right, wrong, total = compare(distinct("yolov8n"), model)
    assert (right, wrong) == (total, 0)


def test_another_number_of_classes_leaves_only_the_class_branch_new(
    tmp_path: Path, log: list[str]
) -> None:
    base = distinct("yolov8n")
    model = detection(overlay(tmp_path, "yolov8n", inserts("P4")), nc=5)
    model.load(base)
    pairs = rows_by_hand(base, model)
    now = model.state_dict()
    lost = [
        f"{i}.{name}"
        for i, j in pairs.items()
        for name, value in base.model[i].state_dict().items()
        if now[f"model.{j}.{name}"].shape != value.shape
        or not torch.equal(now[f"model.{j}.{name}"], value)
    ]
    assert lost and all(name.startswith("22.cv3.") for name in lost)
    assert "Detect (class branch, 80 -> 5 classes)" in log[-1]


def test_a_head_with_one_level_more_gets_each_level_s_own_branches() -> None:
    base, model = distinct("yolov8n"), detection("yolov8n-p2-nonlocal.yaml")
    model.load(base)
    head, wanted = model.model[-1].state_dict(), base.model[-1].state_dict()
    for name, value in wanted.items():
        branch, level, *rest = name.split(".")
        if branch in ("cv2", "cv3"):
            name = ".".join([branch, str(int(level) + 1), *rest])
        assert torch.equal(head[name], value), name
    # The new level starts from the nearest one, with the class bias of four times as many cells.
    assert torch.equal(head["cv2.0.1.conv.weight"], wanted["cv2.0.1.conv.weight"])
    bias = wanted["cv3.0.2.bias"] - math.log(4)
    torch.testing.assert_close(head["cv3.0.2.bias"], bias, rtol=1e-6, atol=1e-6)

    plain = detection(load_model_yaml("yolov8n-nonlocal.yaml"))
    plain.load(model)
    assert equal(plain.model[-1], base.model[-1])


def test_other_tasks(tmp_path: Path) -> None:
    base = SegmentationModel("yolov8n-seg.yaml", verbose=False)
    d = overlay(tmp_path, "yolov8n-seg", inserts("P4"))
    model = SegmentationModel(d, verbose=False)
    model.load(base)
    assert all(equal(base.model[i], model.model[j]) for i, j in rows_by_hand(base, model).items())
    detector = detection("yolov8n-nonlocal.yaml")
    detector.load(base)
    assert equal(detector.model[22], base.model[21])
    assert equal(detector.model[-1].cv2, base.model[-1].cv2)


OTHER = ["yolov8s", "yolov5n", "yolo11n", "yolov10n", "yolov9t"]


@pytest.mark.parametrize("name", OTHER)
def test_another_family_or_scale_is_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    d = overlay(tmp_path, "yolov8n", inserts(str(taps("yolov8n")["P4"])))
    other = distinct(name)
    message = f"{name}.*another family or scale.*PARTIAL=1"
    for cfg in (d, without_provenance(d)):
        model = detection(cfg)
        before = deepcopy(model)
        with pytest.raises(YoloAttnError, match=message) as caught:
            model.load(other)
        assert "\n" not in str(caught.value) and equal(model, before)
    transfer(model, other, partial=True)
    with pytest.raises(YoloAttnError):
        model.load(other)
    monkeypatch.setenv("YOLO_ATTN_PARTIAL", "1")
    model.load(other)
    assert not equal(model, before)


def test_a_family_with_the_same_modules_in_other_sizes_is_refused(tmp_path: Path) -> None:
    names = {path.name for path in (Path(ROOT) / "cfg" / "models").rglob("*.yaml")}
    if "yolo26.yaml" not in names:
        pytest.skip("this release has no YOLO26")
    model = detection(overlay(tmp_path, "yolo26n", inserts("P4")))
    with pytest.raises(YoloAttnError, match="of another family or scale than yolo26n"):
        model.load(distinct("yolo11n"))


def test_a_replaced_backbone_keeps_neck_and_head(log: list[str]) -> None:
    base = distinct("yolov8n")
    d = deepcopy(base.yaml)
    columns = {"widths": [128, 256, 512, 1024], "depths": [1, 1, 1, 1], "columns": 2}
    head = d["head"]
    d["backbone"] = [
        [-1, 1, "RevColumns", [columns]],
        *([0, 1, "Index", [None, k]] for k in (1, 2, 3)),
    ]
    for row in head:  # layers 4, 6 and 9 are 1, 2 and 3 now, later ones six less
        sources = row[0] if isinstance(row[0], list) else [row[0]]
        new = [s if s < 0 else {4: 1, 6: 2, 9: 3}.get(s, s - 6) for s in sources]
        row[0] = new if isinstance(row[0], list) else new[0]
    known = {**d, "yolo_attn": {"base": "yolov8.yaml", "rows": [-1] * 4 + list(range(10, 23))}}
    for cfg in (known, d):
        model = detection(deepcopy(cfg))
        model.load(base)
        assert all(equal(base.model[i], model.model[i - 6]) for i in range(10, 23))
        assert "new: layer 0 RevColumns" in log[-1]
        assert "dropped: layer 9 SPPF (this model has no such layer)" in log[-1]


def test_a_changed_width_is_reported_not_refused(tmp_path: Path, log: list[str]) -> None:
    text = "replace:\n  - [4, 3, C3, [384]]\n" + inserts("P5")
    model = detection(overlay(tmp_path, "yolov8n", text))
    base = distinct("yolov8n")
    model.load(base)
    assert "dropped: layer 4 C2f (replaced by C3)" in log[-1]
    assert "new: layer 5 Conv (another shape): 1 tensor" in log[-1]
    assert equal(model.model[9], base.model[9]) and equal(model.model[23], base.model[22])


def test_grey_images_start_from_colour_weights_as_in_stock(tmp_path: Path, log: list[str]) -> None:
    base = distinct("yolov8n")
    grey = detection(overlay(tmp_path, "yolov8n", inserts("P4")), ch=1)
    grey.load(base)
    message = log[-1]
    assert all(equal(base.model[i], grey.model[i]) for i in range(1, 7))
    stock = detection("yolov8n.yaml", ch=1)
    fresh = stock.model[0].conv.weight.clone()
    stock_load(stock, base)
    if torch.equal(stock.model[0].conv.weight, fresh):  # 8.3.0 does not adapt it
        assert "new: layer 0 Conv (another shape): 1 tensor" in message
    else:
        assert torch.equal(grey.model[0].conv.weight, stock.model[0].conv.weight)
        assert "filled in part: layer 0 Conv (another shape): 1 tensor" in message


def test_the_summary_is_one_message(tmp_path: Path, log: list[str]) -> None:
    model = detection(overlay(tmp_path, "yolov8n", inserts("P5")))
    model.load(distinct("yolov8n"))
    (message,) = log
    tensors = len(model.state_dict())
    base = distinct("yolov8n")
    first, second = message.splitlines()
    assert first.startswith(f"Transferred {len(base.state_dict())}/{tensors} items")
    assert f"({count(base):,} of {count(model):,} parameters; all" in first
    own = model.model[10]
    assert second == (
        f"  new: layer 10 NonLocal: {len(own.state_dict())} tensors, {count(own):,} parameters"
    )
    model.load(distinct("yolov8n"), verbose=False)
    assert len(log) == 1


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_stock_models_load_as_they_did(log: list[str]) -> None:
    base = detection("yolov8n.yaml")
    for name in ("yolov8n.yaml", "yolov8s.yaml", "yolo11n.yaml"):
        torch.manual_seed(0)
        one = detection(name, nc=7)
        two = deepcopy(one)
        log.clear()
        torch.manual_seed(1)
        one.load(deepcopy(base))
        printed = list(log)
        log.clear()
        torch.manual_seed(1)  # newer releases draw new class convolutions
        stock_load(two, deepcopy(base))
        assert equal(one, two) and printed == log and printed


def stock_loads() -> list[str]:
    """What a transfer between two stock models prints, and hashes of what it leaves."""
    lines: list[str] = []
    handler = Keep(lines)
    LOGGER.addHandler(handler)
    torch.manual_seed(0)
    base, model = detection("yolov8n.yaml"), detection("yolov8n-p2.yaml", nc=3)
    model.load({"model": base})
    LOGGER.removeHandler(handler)
    values = model.state_dict().values()
    return [*lines, *(hashlib.sha256(v.numpy().tobytes()).hexdigest() for v in values)]


def test_stock_models_load_to_the_byte_as_without_us() -> None:
    code = (
        "import json; from tests.test_weights import *\n"
        "print(json.dumps([DetectionModel.load.__code__.co_names, stock_loads()]))"
    )
    names, off = json.loads(
        python("-c", code, YOLO_ATTN_DISABLE="1").stdout.strip().splitlines()[-1]
    )
    on = stock_loads()
    assert "call" in DetectionModel.load.__code__.co_names and "call" not in names
    assert on == off and any(line.startswith("Transferred ") for line in on)


def test_through_files_and_the_names_of_the_classes(tmp_path: Path) -> None:
    base = YOLO("yolov8n.yaml")
    base.model.names = {i: f"thing {i}" for i in range(80)}
    base.ckpt = {}
    base.save(tmp_path / "base.pt")
    (tmp_path / "yolov8-mine.yaml").write_text("base: yolov8.yaml\n" + inserts("P4", "N3"))
    model = YOLO(tmp_path / "yolov8n-mine.yaml").load(tmp_path / "base.pt")
    kept = YOLO(tmp_path / "base.pt").model
    pairs = rows_by_hand(kept, model.model)
    assert all(equal(kept.model[i], model.model.model[j]) for i, j in pairs.items())

    model.save(tmp_path / "mine.pt")
    again = YOLO(tmp_path / "mine.pt")
    assert again.model.yaml["yolo_attn"]["rows"].count(-1) == 2
    plain = YOLO("yolov8n.yaml").load(tmp_path / "mine.pt").model
    assert equal(plain, kept)


def test_a_replaced_layer_is_known_through_an_overlay_of_an_overlay(tmp_path: Path) -> None:
    first = tmp_path / "yolov8-first.yaml"
    first.write_text("base: yolov8.yaml\nreplace:\n  - [P5, 1, SPP, [1024]]\n" + inserts("P3"))
    (tmp_path / "yolov8-second.yaml").write_text(f"base: {first.name}\n" + inserts("P2"))
    d = load_model_yaml(str(tmp_path / "yolov8n-second.yaml"))
    assert [d["backbone"][i][2] for i in d["yolo_attn"]["replaced"]] == ["SPP"]
    model = detection(d)
    model.load(distinct("yolov8n"))
    # SPP's tensors have SPPF's names and shapes.
    right, wrong, total = compare(distinct("yolov8n"), model)
    assert (right, wrong) == (total, 0)
