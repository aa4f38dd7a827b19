"""``remove``, ``replace``, ``neck``, ``fusion`` and what an entry may name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml, run


@pytest.fixture
def expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def put(text: str, base: str = "yolov8n.yaml") -> dict[str, Any]:
        (tmp_path / "own.yaml").write_text(f"base: {base}\n{text}\n", encoding="utf-8")
        return load_model_yaml("own.yaml")

    return put


def sources(d: dict[str, Any]) -> list[list[int]]:
    rows = [*d["backbone"], *d["head"]]
    return [
        [s if s >= 0 else i + s for s in (f if isinstance(f, list) else [f])]
        for i, (f, *_) in enumerate(rows)
    ]


def modules(d: dict[str, Any]) -> list[str]:
    return [row[2] for row in (*d["backbone"], *d["head"])]


def test_readers_of_a_removed_row_read_what_it_read(expand) -> None:
    d = expand("remove: [9]")
    assert modules(d)[9] == "nn.Upsample" and sources(d)[9] == [8]
    assert sources(d)[19] == [18, 8]
    run(d)
    both = expand("remove: [9, 10]", base="yolo11n.yaml")
    assert sources(both)[9] == [8] and len(sources(both)) == 22
    run(both)


def test_each_and_same_replace_all_down_samplers(expand) -> None:
    d = expand("replace:\n  - [{each: down}, same, DWConv, same]")
    rows = [*d["backbone"], *d["head"]]
    assert [i for i, row in enumerate(rows) if row[2] == "DWConv"] == [16, 19]
    assert rows[16] == [-1, 1, "DWConv", [256, 3, 2]] and rows[19][3] == [512, 3, 2]
    run(d)


def test_new_rows_of_a_level_have_names(expand) -> None:
    d = expand("levels: [P2, P3, P4, P5]\nreplace:\n  - [N3.down, same, DWConv, same]")
    assert modules(d)[19] == "DWConv" and [*d["backbone"], *d["head"]][19][3] == [128, 3, 2]


def test_one_entry_inserts_at_several_places(expand) -> None:
    d = expand("insert:\n  - [{each: [N3, N4, N5]}, 1, CoordAtt, []]")
    assert [i for i, m in enumerate(modules(d)) if m == "CoordAtt"] == [16, 20, 24]
    assert sources(d)[-1] == [16, 20, 24]


def test_readers_next_leaves_later_readers_alone(expand) -> None:
    d = expand("insert:\n  - [P4, 1, CBAM, [], {readers: next}]")
    assert modules(d)[7] == "CBAM" and sources(d)[8] == [7]
    assert sources(d)[12] == [11, 6], "the neck still reads the stage"


def test_a_fusion_gets_a_further_input(expand) -> None:
    d = expand("fusion:\n  - [N4, Concat, [], {also: [P4]}]")
    assert sources(d)[17] == [16, 12, 6]
    run(d)
    far = expand("fusion:\n  - [T4, Concat, [], {also: [{P3: [Conv, [256, 3, 2]]}]}]")
    assert modules(far)[11] == "Conv" and sources(far)[11] == [4]
    assert sources(far)[12] == [10, 6, 11]
    run(far)


def test_weighted_concats_start_as_the_concats_that_they_replace(expand) -> None:
    from ultralytics.nn.tasks import DetectionModel

    from .test_surgery_levels import maps, trained

    stock = trained("yolov8n.yaml")
    expand("fusion:\n  - [all, WeightedConcat, []]")
    model = DetectionModel("own.yaml", verbose=False)
    model.load(stock, verbose=False)
    assert sum(type(m).__name__ == "WeightedConcat" for m in model.model) == 4
    before, after = maps(stock), maps(model)
    assert all(torch.equal(after[side], before[side]) for side in before)


def test_a_neck_of_named_rows(expand) -> None:
    neck = """neck:
  - [P5, 1, Conv, [256, 1, 1], {name: top}]
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, P4], 1, Concat, [1]]
  - [-1, 1, Conv, [256, 3, 1], {name: mid}]
  - [-1, 1, nn.Upsample, [None, 2, nearest]]
  - [[-1, P3], 1, Concat, [1]]
  - [-1, 1, Conv, [128, 3, 1], {name: low}]
  - [low, mid, top]"""
    d = expand(neck)
    assert sources(d)[-1] == [16, 13, 10] and len(modules(d)) == 18
    assert d["yolo_attn"]["rows"] == [*range(10), *[-1] * 7, 22]
    run(d)


WRONG = [
    ("remove: [11]", "joins several rows"),
    ("remove: [5]", "leads from P3 to P4"),
    ("remove: [99]", "layer 99 of yolov8.yaml is out of range"),
    ("remove: 9", "accepted: a list"),
    ("remove: [0]", "reads the image"),
    ("remove: [9]\ninsert:\n  - [9, 1, CBAM, []]", "after=9 was removed by `remove 1`"),
    ("remove: [P5]\ninsert:\n  - [P5, 1, CBAM, []]", "after=P5 was removed by `remove 1`"),
    ("fusion:\n  - [N4, SE, []]", "SE takes 1 inputs"),
    ("fusion:\n  - [12, Concat, []]", "C2f at 12 is no fusion of two ways"),
    ("fusion:\n  - [N4, C2f, [64]]", "C2f does not join several maps"),
    ("fusion:\n  - [N4, Concat]", r"accepted: \[where, module, args\]"),
    ("fusion:\n  - [N4, Concat, [], {also: [P3]}]", "is at P3, the fusion at P4"),
    ("fusion:\n  - [N4, Concat, [], {also: []}]", "also=.. .accepted: a list of taps"),
    ("fusion:\n  - [N4, Concat, [], {more: [P3]}]", "accepted as fourth entry: {also: .P4.}"),
    ("fusion:\n  - [T4, Concat, [], {also: [N4]}]", "comes later than the fusion"),
    ("fusion:\n  - [N9, Concat, []]", "no tap 'N9'"),
    ("insert:\n  - [{each: sideways}, 1, CBAM, []]", "accepted: {each: .N3, N4.}"),
    ("insert:\n  - [{each: []}, 1, CBAM, []]", "names nothing"),
    ("insert:\n  - [P4, 1, CBAM, [], {readers: all}]", "readers='all' .accepted: next"),
    ("replace:\n  - [same, 1, Conv, [64]]", "no tap 'same'"),
    ("replace:\n  - [7, sam, Conv, [64]]", "repeats='sam' .accepted: a whole number >= 1 or same"),
    ("insert:\n  - [7, same, CBAM, []]", "repeats='same' .accepted: a whole number >= 1.$"),
    ("neck:\n  - [P5, 1, Conv, [256]]", "then one list of what the head reads"),
    ("neck:\n  - [15, 1, Conv, [256]]\n  - [P5]", "is a row of the neck that goes"),
    ("neck:\n  - [P5, 1, Conv, [256], {name: P4}]\n  - [P5]", "a word that no row has yet"),
    ("levels: [P3, P4]\nneck:\n  - [P5, 1, Conv, [256]]\n  - [P5]", "a `neck` of its own"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[m for _, m in WRONG])
def test_wrong_surgery_is_one_line_that_names_the_entry(expand, text: str, message: str) -> None:
    with pytest.raises(YoloAttnError, match=message) as error:
        expand(text)
    assert str(error.value).startswith("own.yaml ") and "\n" not in str(error.value)
