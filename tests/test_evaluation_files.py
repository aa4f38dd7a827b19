"""Bad input is said by name; odd input that real files have is read as the toolkit reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation import coco, visdrone
from yolo_attn.evaluation.coco_files import read_coco
from yolo_attn.evaluation.submission import write_visdrone
from yolo_attn.evaluation.visdrone_files import read_visdrone

OBJECT = "10,10,20,20,1,4,0,0\n"
FOUND = "10,10,20,20,0.9,4,-1,-1\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    for part, line in (("gt", OBJECT), ("pred", FOUND)):
        (tmp_path / part).mkdir()
        for name in "ab":
            (tmp_path / part / f"{name}.txt").write_text(line)
    (tmp_path / "sizes.json").write_text('{"a": [100, 80], "b": [100, 80]}')
    return tmp_path


def read(folder: Path, sizes: bool = True):
    given = folder / "sizes.json" if sizes else None
    return read_visdrone(folder / "gt", folder / "pred", given)


def said_by(folder: Path) -> str:
    with pytest.raises(YoloAttnError) as raised:
        read(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_missing_result_file_is_an_error_by_name(folder):
    (folder / "pred" / "b.txt").unlink()
    assert f"{folder / 'pred' / 'b.txt'}: no such file" in said_by(folder)


def test_result_files_of_unknown_images_and_stray_files_are_counted(folder):
    (folder / "pred" / "c.txt").write_text(FOUND)
    (folder / "gt" / "readme.md").write_text("x")
    gt, dets, warnings = read(folder)
    assert gt.names == ("a", "b") and len(dets.score) == 2
    text = "\n".join(warnings.lines())
    assert "without an annotation file, not read" in text and str(folder / "pred/c.txt") in text
    assert "not a .txt" in text and "readme.md" in text


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ('{"a": [100, 80]}', "no size for 'b'"),
        ('{"a": [100, 80], "b": [0, 80]}', "'b': [0, 80] should be [width, height]"),
        ('{"a": [100, 80], "b": "x"}', "'b': 'x' should be"),
        ("[1]", "expected an object"),
        ('{"a": [100,\n 80', "line 2: not JSON"),
    ],
)
def test_sizes_that_disagree_are_an_error_by_name(folder, sizes, said):
    (folder / "sizes.json").write_text(sizes)
    message = said_by(folder)
    assert said in message and str(folder / "sizes.json") in message


def test_sizes_of_other_images_are_counted(folder):
    (folder / "sizes.json").write_text('{"a": [100, 80], "b": [100, 80], "zz": [1, 1]}')
    assert "'zz'" in "\n".join(read(folder)[2].lines())


def test_sizes_are_needed_only_for_ignored_regions(folder):
    assert read(folder, sizes=False)[0].sizes is None
    (folder / "gt" / "a.txt").write_text(OBJECT + "0,0,5,5,0,0,0,0\n")
    with pytest.raises(YoloAttnError, match="--sizes sizes.json"):
        read(folder, sizes=False)


def test_categories_out_of_range_are_counted_with_their_lines(folder):
    (folder / "pred" / "a.txt").write_text(FOUND + "1,1,5,5,0.5,99,-1,-1\n")
    (folder / "gt" / "b.txt").write_text(OBJECT + "1,1,5,5,1,-2,0,0\n")
    gt, dets, warnings = read(folder)
    text = "\n".join(warnings.lines())
    assert f"{folder / 'pred/a.txt'} line 2" in text and f"{folder / 'gt/b.txt'} line 2" in text
    assert visdrone.evaluate(gt, dets)["metrics"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    "lines",
    [
        "10,10,20,20,1,4,0,0,\n",
        "10,10,20,20,1,4,0,0\r\n\r\n",
        "10 10 20  20 1 4 0 0",
        "1e1, 10.0, 2.0E1, 20, 1, 4, 0, 0\n",
        "\ufeff10,10,20,20,1,4,0,0\n",
        "10,10,20,20,1,4\n",
    ],
    ids=["trailing comma", "CRLF", "spaces", "exponents", "byte order mark", "six columns"],
)
def test_real_files_are_read(folder, lines):
    (folder / "gt" / "a.txt").write_text(lines, encoding="utf-8")
    gt, _, _ = read(folder)
    assert np.array_equal(gt.boxes[0], [10, 10, 20, 20]) and gt.category[0] == 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1,2,3\n", "line 2: 3 columns; expected 8"),
        ("1,2,3,4,5,6,7,8,9\n", "line 2: 9 columns"),
        ("1,,3,4,1,4,0,0\n", "line 2: top ''"),
        ("1,nan,3,4,1,4,0,0\n", "line 2: top 'nan'"),
        ("1,2,1e30,4,1,4,0,0\n", "line 2: width '1e30'"),
        ("1,2,3,4,1,4.5,0,0\n", "line 2: category '4.5'"),
        ("1,2,3,4,1,\xe9,0,0\n", "line 2: byte 0xc3 is no plain text"),
    ],
)
def test_broken_lines_are_an_error_with_file_and_line(folder, line, said):
    for part in ("gt", "pred"):
        path = folder / part / "b.txt"
        before = path.read_text()
        path.write_text(before + line, encoding="utf-8")
        assert f"{path} {said}" in said_by(folder)
        path.write_text(before)


def test_odd_rows_are_counted_and_kept(folder):
    rows = "1,1,0,5,1,4,0,0\n1,1,5,-5,1,4,0,0\n1,1,5,5,0.5,4,0,0\n1.5,1,5,5,0,0,0,0\n"
    (folder / "gt" / "a.txt").write_text(OBJECT + rows)
    unsorted = "10,10,20,20,0.1,4,-1,-1\n10,10,20,20,1.9,4,-1,-1\n"
    (folder / "pred" / "a.txt").write_text(unsorted + FOUND * 500)
    gt, dets, warnings = read(folder)
    assert len(gt.boxes) == 5 and len(gt.region_boxes) == 1 and len(dets.score) == 503
    counts = {what.split(" (")[0]: n for what, n in warnings.counts.items()}
    assert counts == {
        "annotation without width or height": 2,
        "annotation with a score other than 0 or 1, taken as 0": 1,
        "ignored region with fractions": 1,
        "detection with a score outside 0-1": 1,
        "result file not sorted by score": 1,
        "result file with more than 500 rows": 1,
    }


@pytest.fixture
def small(tmp_path) -> tuple[dict, list, Path]:
    gt = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 80}],
        "categories": [{"id": 3, "name": "x"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 9, 9], "area": 81}
        ],
    }
    dets = [{"image_id": 7, "category_id": 3, "bbox": [1, 1, 9, 9], "score": 0.5}]
    return gt, dets, tmp_path


def read_small(small):
    gt, dets, folder = small
    (folder / "gt.json").write_text(json.dumps(gt))
    (folder / "dets.json").write_text(json.dumps(dets))
    return read_coco(folder / "gt.json", folder / "dets.json")


def test_coco_files_are_read(small):
    gt, dets, warnings = read_small(small)
    assert gt.names == ("a.jpg",) and gt.classes == {3: "x"} and not warnings.counts
    assert coco.evaluate(gt, dets)["AP"] == pytest.approx(100)
    assert visdrone.evaluate(gt, dets)["AP"] == pytest.approx(100)


def test_odd_coco_elements_are_counted(small):
    gt, dets, _ = small
    one = gt["annotations"][0]
    gt["annotations"] += [
        {**one, "id": 2, "category_id": 9},
        {**one, "id": 3, "image_id": 8},
        {**one, "id": 0, "bbox": [1, 1, 0, 5], "area": None},
    ]
    dets.append({**dets[0], "category_id": 9, "score": 3})
    _, _, warnings = read_small(small)
    text = "\n".join(warnings.lines())
    for said in (
        "annotation of a category not in 'categories'",
        "annotation of an image that is not in 'images'",
        "without 'area'",
        "annotation without width or height",
        "id 0",
        "detection of a category not in the ground truth",
        "detection with a score outside 0-1",
    ):
        assert said in text, said
    assert sum(warnings.counts.values()) == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda g, d: d[0].update(image_id=8), "dets.json: detection [0]: image_id 8 is no image"),
        (lambda g, d: d[0].pop("score"), "dets.json: detection [0]: 'score': None"),
        (lambda g, d: d[0].update(bbox=[1, 2, 3]), "'bbox' [1, 2, 3] should be"),
        (lambda g, d: d[0].update(score=float("nan")), "nan is not a finite number"),
        (lambda g, d: g.pop("categories"), "gt.json: 'categories' should be a list"),
        (lambda g, d: g["images"].append(g["images"][0]), "images[1]: id 7 is that of [0] too"),
        (lambda g, d: g["annotations"].append(g["annotations"][0]), "annotations[1]: id 1 is that"),
        (lambda g, d: g["annotations"][0].update(iscrowd=2), "'iscrowd' 2 should be 0 or 1"),
        (lambda g, d: g["images"].clear(), "images: an empty list"),
        (lambda g, d: g["categories"][0].update(name="\ud800"), "is not valid Unicode"),
        (lambda g, d: g["images"][0].update(file_name=3), "images[0]: 'file_name' should be str"),
    ],
)
def test_broken_coco_elements_are_an_error_by_name(small, change, said):
    change(small[0], small[1])
    with pytest.raises(YoloAttnError) as raised:
        read_small(small)
    assert said in str(raised.value)


def test_swapped_coco_files_are_said(small):
    read_small(small)
    gt, dets = (small[2] / name for name in ("gt.json", "dets.json"))
    with pytest.raises(YoloAttnError, match="a results file?"):
        read_coco(dets, gt)
    with pytest.raises(YoloAttnError, match="the annotations file?"):
        read_coco(gt, gt)


def detections(category: int = 4) -> visdrone.Detections:
    return visdrone.Detections([0], [[1, 2, 3, 4]], [category], [0.5])


def test_result_files_have_the_official_columns(tmp_path):
    write_visdrone(tmp_path, ["a.jpg"], detections(0), shift=1)
    assert (tmp_path / "a.txt").read_text() == "1,2,3,4,0.5,1,-1,-1\n"


@pytest.mark.parametrize(
    ("names", "category", "said"),
    [
        (["a.jpg"], 12, "category 12"),
        (["a.jpg", "b/a.png"], 4, "named 'a'"),
        ([".."], 4, "no name for a result file"),
        (["x" * 300], 4, "cannot be written"),
    ],
)
def test_result_files_that_cannot_be_are_said(tmp_path, names, category, said):
    with pytest.raises(YoloAttnError, match=said):
        write_visdrone(tmp_path / "new", names, detections(category))
    assert not list((tmp_path / "new").glob("*"))


def test_result_files_do_not_mix_with_those_of_another_set(tmp_path):
    (tmp_path / "z.txt").write_text("1")
    with pytest.raises(YoloAttnError, match=r"z\.txt: belongs to no image"):
        write_visdrone(tmp_path, ["a"], detections())
    assert (tmp_path / "z.txt").read_text() == "1" and not (tmp_path / "a.txt").exists()


def test_outputs_that_cannot_be_written_are_said(tmp_path):
    from yolo_attn.evaluation.errors import error_analysis, plot_errors
    from yolo_attn.evaluation.records import save_records

    gt = visdrone.GroundTruth(["a"], {4: "car"}, [0], [[1, 2, 3, 4]], [4])
    with pytest.raises(YoloAttnError, match="cannot be written"):
        save_records(tmp_path / "no" / "r.npz", {"x": visdrone.match_records(gt, detections())})
    for path in (tmp_path / "no" / "e.png", tmp_path / "e.unknown"):
        with pytest.raises(YoloAttnError, match="cannot be written"):
            plot_errors(error_analysis(gt, detections()), path)
