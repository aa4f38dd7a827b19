"""Overlays stand for the plain YAML that a careful person would have written."""

from __future__ import annotations

from pathlib import Path

import pytest
from ultralytics.nn import tasks

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml, run
from yolo_attn.overlay.taps import find_taps

TAPS = {
    "yolov8n.yaml": {"P2": 2, "P3": 4, "P4": 6, "P5": 9, "N3": 15, "N4": 18, "N5": 21},
    "yolov8n-p2.yaml": {"P2": 2, "P3": 4, "P4": 6, "P5": 9, "N2": 18, "N3": 21, "N4": 24, "N5": 27},
    "yolov5n.yaml": {"P2": 2, "P3": 4, "P4": 6, "P5": 9, "N3": 17, "N4": 20, "N5": 23},
    "yolov9c.yaml": {"P2": 2, "P3": 4, "P4": 6, "P5": 9, "N3": 15, "N4": 18, "N5": 21},
    "yolov9e.yaml": {"P2": 19, "P3": 22, "P4": 25, "P5": 29, "N3": 35, "N4": 38, "N5": 41},
    "yolov10n.yaml": {"P2": 2, "P3": 4, "P4": 6, "P5": 10, "N3": 16, "N4": 19, "N5": 22},
    "yolo11n.yaml": {"P2": 2, "P3": 4, "P4": 6, "P5": 10, "N3": 16, "N4": 19, "N5": 22},
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a YAML into a fresh working folder and return its name."""
    monkeypatch.chdir(tmp_path)

    def put(text: str, name: str = "yolov8-test.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return put


def overlay(write, insert: str, base: str = "yolov8.yaml", more: str = "") -> dict:
    write(f"base: {base}\ninsert:\n{insert}\n{more}")
    return load_model_yaml("yolov8n-test.yaml")


def rows_of(d: dict) -> list:
    return [*d["backbone"], *d["head"]]


@pytest.mark.parametrize("base", TAPS)
def test_taps_are_the_layers_that_the_tables_of_the_families_name(base: str) -> None:
    taps = find_taps(load_model_yaml(base))
    assert {k: taps.get(k) for k in TAPS[base]} == TAPS[base]


def test_an_insert_equals_the_rows_written_by_hand(write) -> None:
    d = overlay(write, "  - [P5, 1, NonLocal, []]")
    base = rows_of(load_model_yaml("yolov8n.yaml"))
    by_hand = [*base[:10], [-1, 1, "NonLocal", []], *base[10:]]
    by_hand[18] = [[-1, 13], 1, "Concat", [1]]  # was 12
    by_hand[21] = [[-1, 10], 1, "Concat", [1]]  # was 9: the neck reads the block
    by_hand[23] = [[16, 19, 22], 1, "Detect", ["nc"]]  # was 15, 18, 21
    assert rows_of(d) == by_hand
    assert d["yolo_attn"]["rows"] == [*range(10), -1, *range(10, 23)]


EVERY_KIND = [
    "yolov8n.yaml", "yolov5n.yaml", "yolov9e.yaml", "yolo11n.yaml", "yolov8-rtdetr.yaml",
    "yolov3.yaml",
]  # fmt: skip


@pytest.mark.parametrize("base", EVERY_KIND)
def test_minus_the_inserted_rows_every_graph_equals_its_base(write, base: str) -> None:
    plain = load_model_yaml(base)
    rows = rows_of(plain)
    for at in range(len(rows) - 1):
        write(f"base: {base}\ninsert:\n  - [{at}, 1, SE, []]\n")
        d = load_model_yaml("yolov8n-test.yaml")
        back = d["yolo_attn"]["rows"]
        for i, (f, n, module, args) in enumerate(rows_of(d)):
            sources = [s if s >= 0 else i + s for s in (f if isinstance(f, list) else [f])]
            if back[i] < 0:
                assert module == "SE" and [back[s] for s in sources] == [at]
                continue
            f0, n0, module0, args0 = rows[back[i]]
            assert (n, module, args) == (n0, module0, args0)
            wanted = [s if s >= 0 else back[i] + s for s in (f0 if isinstance(f0, list) else [f0])]
            # A reader of the tapped layer reads the block, which stands for that layer.
            resolved = [-1 if s < 0 else at if back[s] < 0 else back[s] for s in sources]
            assert resolved == wanted
            assert all(back[s] < 0 for s, r in zip(sources, resolved) if r == at and s >= 0)


def test_several_inserts_do_not_shift_each_other(write) -> None:
    d = overlay(write, "  - [P3, 1, SE, []]\n  - [P5, 1, NonLocal, []]\n  - [15, 1, GC, []]")
    names = {row[2]: i for i, row in enumerate(rows_of(d))}
    assert (names["SE"], names["NonLocal"], names["GC"]) == (5, 11, 18)
    assert rows_of(d)[-1][0] == [18, 21, 24]


def test_two_inserts_at_one_place_stack_in_order(write) -> None:
    d = overlay(write, "  - [P5, 1, SE, []]\n  - [P5, 1, NonLocal, []]")
    assert [row[2] for row in rows_of(d)[9:12]] == ["SPPF", "SE", "NonLocal"]
    assert [row[0] for row in rows_of(d)[10:12]] == [-1, -1]
    assert rows_of(d)[22][0] == [-1, 11]


def test_a_multi_input_insert_refines_the_first_for_later_readers_only(write) -> None:
    # Concat stands in for a block with several inputs.
    d = overlay(write, "  - [[N4, N3, N5], 1, Concat, [1]]")
    rows = rows_of(d)
    assert rows[22] == [[18, 15, 21], 1, "Concat", [1]]
    assert rows[19][0] == -1  # the layer behind N4 still reads N4 itself
    assert rows[23][0] == [15, 22, 21]


def test_a_multi_input_insert_sees_what_refined_its_inputs(write) -> None:
    d = overlay(write, "  - [[N4, N3, N5], 1, Concat, [1]]\n  - [N3, 1, SE, []]")
    rows = rows_of(d)
    assert rows[16][2] == "SE" and rows[23][0] == [19, 16, 22]


def test_replace_keeps_what_the_layer_reads(write) -> None:
    d = overlay(write, "  - [P5, 1, SE, []]", more="replace:\n  - [9, 1, SPP, [1024]]\n")
    assert rows_of(d)[9] == [-1, 1, "SPP", [1024]]
    assert d["yolo_attn"]["replaced"] == [9]


def test_an_overlay_of_an_overlay_keeps_both_and_its_root(write) -> None:
    write("base: yolov8.yaml\ninsert:\n  - [P5, 1, NonLocal, []]\n", "yolov8-first.yaml")
    write("base: yolov8-first.yaml\ninsert:\n  - [P3, 1, SE, []]\nnc: 7\n")
    d = load_model_yaml("yolov8n-test.yaml")
    assert d["nc"] == 7 and d["scale"] == "n"
    assert d["yolo_attn"]["base"] == "yolov8.yaml"
    assert [r for r in d["yolo_attn"]["rows"] if r >= 0] == list(range(23))


def test_the_expansion_loads_by_itself_and_is_the_same_model(write, tmp_path: Path) -> None:
    from yolo_attn.zoo import to_yaml

    d = overlay(write, "  - [P4, 2, NonLocal, [{mode: dot_product}]]\n  - [N3, 1, SE, [0.25]]")
    (tmp_path / "yolov8-plain.yaml").write_text(to_yaml(d, "t"), encoding="utf-8")
    again = load_model_yaml("yolov8n-plain.yaml")
    assert rows_of(again) == rows_of(d)
    shapes = [{k: v.shape for k, v in run(m)[0].state_dict().items()} for m in (d, again)]
    assert shapes[0] == shapes[1]


def test_repeats_scale_with_depth_and_rd_channels_with_width(write) -> None:
    d = overlay(write, "  - [P3, 6, NonLocal, [{rd_channels: 128}]]")
    model, _ = run(d, "n")  # depth 0.33, width 0.25
    assert len(model[5]) == 2
    assert model[5][0].g.out_channels == 32
    model, _ = run(d, "l")
    assert len(model[5]) == 6 and model[5][0].g.out_channels == 128


@pytest.mark.parametrize("args", ["[dot_product]", "[{mode: dot_product}]", "{mode: dot_product}"])
def test_options_by_position_and_by_keyword_are_equal(write, args: str) -> None:
    model, _ = run(overlay(write, f"  - [P3, 1, NonLocal, {args}]"))
    assert model[5].mode == "dot_product"


def test_identity_start_wraps_only_what_does_not_start_as_the_identity(write) -> None:
    import torch

    d = overlay(
        write, "  - [P3, 1, SE, []]\n  - [P5, 1, NonLocal, []]", more="identity_start: true\n"
    )
    model, _ = tasks.parse_model(d, 3, False)
    assert type(model[5]).__name__ == "IdentityStart" and type(model[11]).__name__ == "NonLocal"
    x = torch.randn(1, 64, 4, 4)
    assert torch.equal(model[5](x), x)
    d = overlay(write, "  - [P3, 1, GC, [{fusion: mul, identity_start: true}]]")
    assert type(run(d)[0][5]).__name__ == "IdentityStart"
    d = overlay(write, "  - [P3, 1, SE, [{rd_ratio: 0.5, identity_start: true}]]")
    assert type(run(d)[0][5]).__name__ == "IdentityStart"


BAD = {
    "unknown block": ("  - [P5, 1, NonLocl, []]", "insert 1: unknown block 'NonLocl', did"),
    "unknown option": ("  - [P5, 1, NonLocal, [{mod: gaussian}]]", "no option 'mod', did you mean"),
    "bad value": ("  - [P5, 1, NonLocal, [gausian]]", "insert 1.*mode='gausian'.*mean 'gaussian'"),
    "too many args": ("  - [P5, 1, SimplifiedNonLocal, [1]]", "takes at most 0 options"),
    "twice": ("  - [P5, 1, NonLocal, [gaussian, {mode: gaussian}]]", "'mode' is given twice"),
    "bad tap": ("  - [P7, 1, NonLocal, []]", r"no tap 'P7' \(it has P2=2, P3=4"),
    "out of range": ("  - [40, 1, NonLocal, []]", r"layer 40 of yolov8.yaml is out of range"),
    "negative": ("  - [-1, 1, NonLocal, []]", "out of range"),
    "the head": ("  - [22, 1, NonLocal, []]", "is the head itself"),
    "inputs": ("  - [[N3, N4], 1, NonLocal, []]", r"takes 1 input, after=\[N3, N4\] gives 2"),
    "same twice": ("  - [[N3, 15], 1, Concat, [1]]", "names the same layer twice"),
    "short row": ("  - [P5, NonLocal, []]", r"accepted: \[after, repeats, module, args\]"),
    "repeats": ("  - [P5, 0, NonLocal, []]", "repeats=0"),
    "args": ("  - [P5, 1, NonLocal, gaussian]", "args='gaussian'"),
    "after type": ("  - [2.5, 1, NonLocal, []]", "after=2.5"),
    "after empty": ("  - [[], 1, NonLocal, []]", r"after=\[\]"),
    "identity": ("  - [P5, 1, SE, [{identity_start: maybe}]]", "identity_start='maybe'"),
    "not a list": ("  a: b", "accepted: a list"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_a_fault_is_one_line_with_file_and_entry(write, fault: str) -> None:
    insert, message = BAD[fault]
    write(f"base: yolov8.yaml\ninsert:\n{insert}\n")
    with pytest.raises(YoloAttnError, match=message) as caught:
        run(load_model_yaml("yolov8n-test.yaml"))
    assert "\n" not in str(caught.value)
    assert "yolov8n-test.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: yolov88.yaml\n", "base 'yolov88.yaml' does not exist, did you mean 'yolov8.yaml'"),
        ("base: yolov8-test.yaml\n", "leads back to itself"),
        ("base: 3\n", "base=3"),
        ("base: yolov8.yaml\ninsrt: []\n", "unknown key 'insrt', did you mean 'insert'"),
        ("base: yolov8.yaml\nhead: []\n", "'head' beside `base`"),
        ("base: yolov8.yaml\nidentity_start: 3\n", "identity_start: 3"),
        ("base: yolov8.yaml\ninsert:\n  - [P5, 1, NonLocal, [}]\n", "line 3 column 24: not valid"),
        ("base: coco8.yaml\n", "does not exist"),
    ],
)  # fmt: skip
def test_a_broken_overlay_says_what_is_wrong(write, text: str, message: str) -> None:
    write(text)
    with pytest.raises(YoloAttnError, match=message):
        load_model_yaml("yolov8n-test.yaml")


BRANCHES = """  - [P3, 1, SE, [], {name: one}]
  - [[P3, P4], 1, FPTGround, [], {name: two}]
  - [[P3, one, two], 1, Concat, [1]]"""


def test_a_named_insert_is_read_by_later_inserts_alone(write) -> None:
    d = overlay(write, BRANCHES)
    rows, back = rows_of(d), d["yolo_attn"]["rows"]
    assert [row[2] for row in rows[4:11]] == [
        "C2f", "SE", "Conv", "C2f", "FPTGround", "Concat", "Conv",
    ]  # fmt: skip
    assert rows[5][0] == -1 and rows[6][0] == 4 and rows[8][0] == [4, 7]
    assert rows[9][0] == [4, 5, 8]
    assert rows[10][0] == 7 and back[10] == 7, "the backbone goes on from P4 itself"
    neck = next(row for i, row in enumerate(rows) if back[i] == 14)
    assert neck[0] == [-1, 9], "the neck reads what was made of P3"
    run(d)


def test_a_branch_may_be_refined(write) -> None:
    d = overlay(
        write,
        "  - [P5, 1, SE, [], {name: one}]\n  - [one, 1, ECA, []]\n  - [[P5, one], 1, Concat, [1]]\n"
        "  - [P5, 1, Conv, [1024, 1]]",
    )
    rows = rows_of(d)
    assert [row[2] for row in rows[10:14]] == ["SE", "ECA", "Concat", "Conv"]
    assert rows[12][0] == [9, 11]


def test_identity_start_leaves_branches_as_they_are(write) -> None:
    d = overlay(write, BRANCHES, more="identity_start: true")
    assert [row[3] for row in rows_of(d) if row[2] == "SE"] == [[]]


@pytest.mark.parametrize(
    ("insert", "message"),
    [
        ("  - [P5, 1, SE, [], {name: one}]", "no later insert reads 'one'"),
        ("  - [P5, 1, SE, [], {name: P9}]", "a word that is no tap"),
        ("  - [P5, 1, SE, [], {nam: one}]", "a word that is no tap"),
        ("  - [P5, 1, SE, [], one]", "a word that is no tap"),
        ("  - [P5, 1, SE, [], {name: a b}]", "a word that is no tap"),
        (
            "  - [P5, 1, SE, [], {name: one}]\n  - [P4, 1, SE, [], {name: one}]",
            "insert 2: the name 'one' stands for an earlier insert",
        ),
        ("  - [[P5, one], 1, Concat, [1]]\n  - [P5, 1, SE, [], {name: one}]", "no tap 'one'"),
        ("  - [P5, 1, SE, [], {name: one}]\n  - [[P5, two], 1, Concat, [1]]", "no tap 'two' .*one"),
    ],
)
def test_branches_that_make_no_sense_are_refused(write, insert: str, message: str) -> None:
    with pytest.raises(YoloAttnError, match=message):
        overlay(write, insert)
    write("base: yolov8.yaml\nreplace:\n  - [9, 1, SPP, [1024], {name: one}]\n")
    with pytest.raises(YoloAttnError, match="replace 1: .* .accepted: .index, repeats"):
        load_model_yaml("yolov8n-test.yaml")
