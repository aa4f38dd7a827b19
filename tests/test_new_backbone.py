"""``backbone:`` in an overlay puts other rows under the neck of its base."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml
from yolo_attn.overlay.taps import find_taps
from yolo_attn.seam.freeze import frozen_layers
from yolo_attn.zoo import check, to_yaml

COLUMNS = """backbone:
  - [-1, 1, RevColumns, []]
  - [0, 1, Index, [null, 1]]
  - [0, 1, Index, [null, 2]]
  - [0, 1, Index, [null, 3]]
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def put(text: str, name: str = "yolov8-test.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return put


def rows_of(d: dict) -> list:
    return [*d["backbone"], *d["head"]]


def test_the_neck_reads_the_rows_of_the_same_strides(write) -> None:
    d = load_model_yaml(write(f"base: yolov8n.yaml\n{COLUMNS}"))
    head = load_model_yaml("yolov8n.yaml")["head"]
    by_hand = [[f, *rest] for f, *rest in head]
    by_hand[1][0] = [-1, 2]  # P4, was 6
    by_hand[4][0] = [-1, 1]  # P3, was 4
    by_hand[7][0] = [-1, 6]  # of the neck, was 12
    by_hand[10][0] = [-1, 3]  # P5, was 9
    by_hand[12][0] = [9, 12, 15]
    assert d["head"] == by_hand and len(d["backbone"]) == 4
    assert d["yolo_attn"]["rows"] == [-1, -1, -1, -1, *range(10, 23)]
    assert find_taps(d) == {"P3": 1, "P4": 2, "P5": 3, "N3": 9, "N4": 12, "N5": 15}


def test_relative_indices_into_the_backbone_are_kept_true(write) -> None:
    # Row 30 of YOLOv7-tiny reads the last backbone row as -2.
    d = load_model_yaml(write(f"base: yolov7-tiny.yaml\n{COLUMNS}"))
    assert [row[0] for row in d["head"][:2]] == [-1, 3]
    assert check("yolov8-test.yaml")


def test_the_order_of_the_new_rows_is_free(write) -> None:
    lines = COLUMNS.splitlines()
    swapped = "\n".join([*lines[:2], *reversed(lines[2:])])
    d = load_model_yaml(write(f"base: yolov8n.yaml\n{swapped}\n"))
    assert d["head"][0][0] == 1  # the neck's first row read the row before it
    assert [d["head"][k][0] for k in (1, 4, 10)] == [[-1, 2], [-1, 3], [-1, 1]]
    assert check("yolov8-test.yaml")


def test_other_entries_count_in_the_result(write) -> None:
    text = f"base: yolov8n.yaml\n{COLUMNS}insert:\n  - [P4, 1, SE, []]\n  - [N3, 1, ECA, []]\n"
    d = load_model_yaml(write(text))
    modules = [row[2] for row in rows_of(d)]
    assert modules[:5] == ["RevColumns", "Index", "Index", "SE", "Index"]
    assert [d["head"][k][0] for k in (1, 4)] == [[-1, 3], [-1, 1]]
    assert d["yolo_attn"]["rows"][:5] == [-1] * 5 and "ECA" in modules


def test_an_overlay_of_an_overlay_keeps_both_stories(write) -> None:
    write("base: yolov8n.yaml\ninsert:\n  - [P3, 1, SE, []]\n  - [N3, 1, ECA, []]\n", "below.yaml")
    d = load_model_yaml(write(f"base: below.yaml\n{COLUMNS}"))
    modules = [row[2] for row in rows_of(d)]
    assert "SE" not in modules and "ECA" in modules
    assert d["yolo_attn"]["base"] == "yolov8.yaml"
    labels = dict(map(tuple, d["yolo_attn"]["labels"]))
    assert labels[0] == "backbone 1: RevColumns"
    assert labels[modules.index("ECA")] == "below.yaml insert 2: ECA after N3"
    rows = d["yolo_attn"]["rows"]
    assert [r for r in rows if r >= 0] == list(range(10, 23))
    assert check("yolov8-test.yaml")


def test_the_expanded_file_is_the_same_model(write) -> None:
    d = load_model_yaml(write(f"base: yolov8n.yaml\n{COLUMNS}"))
    text = to_yaml(d, "expanded")
    assert "# 0 (backbone 1: RevColumns)" in text
    assert rows_of(load_model_yaml(write(text, "yolov8-plain.yaml"))) == rows_of(d)


def test_freezing_layers_of_the_base_freezes_none_of_a_new_backbone(write) -> None:
    d = load_model_yaml(write(f"base: yolov8n.yaml\n{COLUMNS}"))
    assert frozen_layers(12, d["yolo_attn"]["rows"]) == [4, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbone: []", "yolov8-test.yaml backbone: no rows"),
        ("backbone: 3", "yolov8-test.yaml backbone: 3 .accepted: a list"),
        ("backbone:\n  - [-1, 1, Conv]", "yolov8-test.yaml backbone 1: .*accepted: .from, repeats"),
        ("backbone:\n  - [-1, 1, Konv, [64]]", "yolov8-test.yaml backbone 1: unknown block 'Konv'"),
        (
            "backbone:\n  - [5, 1, Conv, [64, 3, 2]]",
            "backbone 1: Conv .layer 0.: .* from=5",
        ),
        ("backbone:\n  - [x, 1, Conv, [64, 3, 2]]", "backbone 1: Conv .layer 0.: .*from='x'"),
        (
            COLUMNS.replace("  - [0, 1, Index, [null, 2]]\n", ""),
            "yolov8-test.yaml backbone: the base's neck reads P4, the new backbone has P3 in entry "
            "2, P5 in entry 3",
        ),
        ("backbone:\n  - [-1, 1, Conv, [64, 1, 1]]", "the new backbone has no map"),
        (COLUMNS.replace("Index, [null, 1]", "Index, [null, 7]"), "backbone 2: Index .layer 1.*7"),
    ],
)
def test_what_is_at_fault_is_said_in_one_line(write, text: str, message: str) -> None:
    write(f"base: yolov8n.yaml\n{text}\n")
    with pytest.raises(YoloAttnError, match=message) as error:
        load_model_yaml("yolov8-test.yaml")
    assert "\n" not in str(error.value)


def test_a_neck_that_reads_inside_of_its_backbone_is_refused(write) -> None:
    # The second column of YOLOv9-E reads every stage of the first one.
    plain = load_model_yaml("yolov8n.yaml")
    plain["head"][1] = [[-1, 5], 1, "Concat", [1]]  # in the middle of a stage
    write(to_yaml(plain, "odd"), "odd.yaml")
    write(f"base: odd.yaml\n{COLUMNS}")
    with pytest.raises(YoloAttnError, match="row 11 of the base reads its backbone at row 5"):
        load_model_yaml("yolov8-test.yaml")
