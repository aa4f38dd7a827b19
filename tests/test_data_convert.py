"""VOC and COCO conversion: boxes in place, every drop counted, sources untouched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from yolo_attn.data.coco import convert_coco
from yolo_attn.data.layout import whole_folder
from yolo_attn.data.voc import convert_voc
from yolo_attn.errors import YoloAttnError

from .test_data_synthetic import digests

W, H = 40, 20


def image(path: Path, mode: str = "L", size: tuple[int, int] = (W, H), **save) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path, **save)


def xml(objects: str, filename: str = "a", size: tuple[int, int] | None = (W, H)) -> str:
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation><filename>{filename}</filename>{stated}{objects}</annotation>"


def obj(x1, y1, x2, y2, name: str = "Target", more: str = "") -> str:
    corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


@pytest.fixture
def voc(tmp_path) -> Path:
    """Two images as SIRST lays them out: a in train, b in val."""
    src = tmp_path / "src"
    for name, split in (("a", "train"), ("b", "val")):
        image(src / "images" / f"{name}.png")
        for folder in ("annotations", "splits"):
            (src / folder).mkdir(exist_ok=True)
        (src / "annotations" / f"{name}.xml").write_text(xml(obj(11, 6, 21, 16), name))
        (src / "splits" / f"{split}.txt").write_text(name)  # no newline at the end, as in SIRST
    return src


def labels(dst: Path, split: str, stem: str, size: tuple[int, int] = (W, H)) -> np.ndarray:
    """Rows class x1 y1 x2 y2 in pixels."""
    rows = np.loadtxt(dst / "labels" / split / f"{stem}.txt", ndmin=2).reshape(-1, 5)
    w, h = size
    centre, half = rows[:, 1:3] * [w, h], rows[:, 3:] * [w, h] / 2
    return np.hstack([rows[:, :1], centre - half, centre + half])


@pytest.mark.parametrize(
    ("boxes", "edges"),
    [
        (None, (10, 5, 20, 15)),
        ("one-based", (10, 5, 20, 15)),
        ("inclusive", (10, 5, 21, 16)),
        ("zero-based", (11, 6, 21, 16)),
    ],
)
def test_voc_box_convention(voc, tmp_path, boxes, edges):
    report = convert_voc(voc, tmp_path / "dst", boxes=boxes)
    assert np.allclose(labels(tmp_path / "dst", "train", "a"), [[0, *edges]], atol=1e-5)
    assert (report.splits["train"].images, report.splits["train"].boxes) == (1, 1)
    assert any((boxes or "one-based") in line for line in report.lines())


def test_voc_standard_layout_is_inclusive_and_uses_trainval(voc, tmp_path):
    for old, new in (("images", "JPEGImages"), ("annotations", "Annotations")):
        (voc / old).rename(voc / new)
    (voc / "ImageSets").mkdir()
    (voc / "splits").rename(voc / "ImageSets" / "Main")
    main = voc / "ImageSets" / "Main"
    (main / "train.txt").rename(main / "trainval.txt")
    (main / "val.txt").rename(main / "test.txt")
    (main / "aeroplane_train.txt").write_text("a -1\n")
    report = convert_voc(voc, tmp_path / "dst")
    assert np.allclose(labels(tmp_path / "dst", "train", "a"), [[0, 10, 5, 21, 16]], atol=1e-5)
    assert yaml.safe_load(report.data_yaml.read_text())["val"] == "images/test"
    assert any("no val split" in note for note in report.notes)


def test_stock_ultralytics_reads_the_result_from_any_folder(voc, tmp_path, monkeypatch):
    utils = pytest.importorskip("ultralytics.data.utils")
    monkeypatch.chdir(tmp_path)
    convert_voc(voc, "dst")
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    data = utils.check_det_dataset(tmp_path / "dst" / "data.yaml")
    assert Path(data["train"]) == tmp_path / "dst" / "images" / "train"
    assert data["names"] == {0: "Target"}


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "I;16", "1"])
def test_every_image_mode_loads_in_ultralytics(voc, tmp_path, mode):
    utils = pytest.importorskip("ultralytics.data.utils")
    patches = pytest.importorskip("ultralytics.utils.patches")
    image(voc / "images" / "a.png", mode)
    convert_voc(voc, tmp_path / "dst")
    file = tmp_path / "dst" / "images" / "train" / "a.png"
    label = tmp_path / "dst" / "labels" / "train" / "a.txt"
    found = utils.verify_image_label((str(file), str(label), "", False, 1, 0, 0, False))
    assert found[0] == str(file) and len(found[1]) == 1
    assert patches.imread(str(file)).shape == (H, W, 3)


def test_voc_counts_all_that_it_drops_or_alters(voc, tmp_path):
    good = obj(11, 6, 21, 16)
    difficult = obj(3, 3, 9, 9, more="<difficult>1</difficult>")
    objects = [good, good, obj(5, 5, 5, 9), obj(90, 3, 99, 9), obj(31, 6, 61, 16), difficult]
    stated = xml("".join([*objects, obj(1, 1, 5, 5, "Bird")]), size=(W + 1, H))
    (voc / "annotations" / "a.xml").write_text(stated)
    image(voc / "images" / "tiny.png", size=(8, 8))
    (voc / "annotations" / "tiny.xml").write_text(xml("", "tiny", None))
    (voc / "annotations" / "lost.xml").write_text(xml(good, "lost"))
    (voc / "splits" / "train.txt").write_text("a\na\n\nlost\ntiny\nnoxml\n")
    image(voc / "images" / "extra.png")
    before = digests(voc)
    report = convert_voc(voc, tmp_path / "dst", classes=["Target"])
    train = report.splits["train"]
    assert (train.images, train.boxes) == (1, 2)
    assert dict(train.dropped_boxes) == {
        "duplicate": 1,
        "zero or negative size": 1,
        "outside the image": 1,
        "unknown class": 1,
        "difficult (kept in annotations/, not a label)": 1,
        "with their image: image missing": 1,
    }
    assert sum(train.dropped_boxes.values()) + train.boxes == 7 + 1
    assert sum(train.dropped_images.values()) == 4
    assert {"listed twice", "image missing", "annotation missing"} < set(train.dropped_images)
    assert train.altered["box clipped at the image's edge"] == 1
    assert train.altered["annotation states another image size; the image's own was used"] == 1
    assert np.allclose(
        labels(tmp_path / "dst", "train", "a")[:, 1:], [[10, 5, 20, 15], [30, 5, 40, 15]], atol=1e-5
    )
    assert any("in no split: 1" in note for note in report.notes)
    coco = json.loads((tmp_path / "dst" / "annotations" / "train.json").read_text())
    assert [a.get("ignore", 0) for a in coco["annotations"]] == [0, 0, 1]
    assert digests(voc) == before
    text = "\n".join(report.lines())
    assert "a.xml object 3" in text and "41x20" in text
    assert json.loads(json.dumps(report.as_dict()))["splits"]["train"]["boxes"] == 2


def test_voc_difficult_and_foreign_filename(voc, tmp_path):
    (voc / "images" / "a.png").rename(voc / "images" / "other.png")
    difficult = obj(3, 3, 9, 9, more="<difficult>1</difficult>")
    (voc / "annotations" / "a.xml").write_text(xml(difficult, "C:\\data\\other.png"))
    report = convert_voc(voc, tmp_path / "dst", difficult=True)
    assert report.splits["train"].boxes == 1 and sum(report.splits["train"].altered.values()) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not well-formed"),
        ("<annotation>", "not well-formed"),
        ("\x00\x01garbage", "not well-formed"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not well-formed"),
        ("<html/>", "root is <html>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "DOCTYPE"),
        (xml("<object><name>Target</name></object>"), "<object> 1: no <bndbox>"),
        (xml(obj(1, 1, 5, 5) + obj(1, 1, 5, 5, "")), "<object> 2: no <name>"),
        (xml(obj("one", 1, 5, 5)), "<xmin>: expected a number, found 'one'"),
        (xml(obj(1, "nan", 5, 5)), "<ymin>: expected a number"),
        (xml(obj(1, 1, 5, "")), "no <ymax>"),
        (xml("", size=("wide", 3)), "<width>: expected a number"),
    ],
)
def test_voc_garbage_is_one_error_that_names_file_and_element(voc, tmp_path, content, says):
    (voc / "annotations" / "a.xml").write_text(content)
    with pytest.raises(YoloAttnError) as caught:
        convert_voc(voc, tmp_path / "dst")
    message = str(caught.value)
    assert "a.xml" in message and says in message and "\n" not in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["src"]


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_not_an_image_is_named(voc, tmp_path, data):
    (voc / "images" / "a.png").write_bytes(data)
    with pytest.raises(YoloAttnError, match=r"a\.png: not an image"):
        convert_voc(voc, tmp_path / "dst")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["src"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"boxes": "inclusiv"}, "did you mean 'inclusive'"),
        ({"classes": "Target"}, "list of distinct names"),
        ({"classes": []}, "list of distinct names"),
    ],
)
def test_voc_options_are_checked(voc, tmp_path, options, says):
    with pytest.raises(YoloAttnError, match=says):
        convert_voc(voc, tmp_path / "dst", **options)


def test_destinations(voc, tmp_path):
    dst = tmp_path / "dst"
    convert_voc(voc, dst)
    with pytest.raises(YoloAttnError, match="not empty"):
        convert_voc(voc, dst)
    before = digests(dst)
    (voc / "annotations" / "a.xml").write_text("<")
    with pytest.raises(YoloAttnError, match="well-formed"):
        convert_voc(voc, dst, overwrite=True)
    assert digests(dst) == before  # the old set stays until the new one is complete
    (voc / "annotations" / "a.xml").write_text(xml(obj(1, 1, 9, 9)))
    convert_voc(voc, dst, overwrite=True)
    assert digests(dst) != before
    for overlapping in (voc, voc / "new", tmp_path):
        with pytest.raises(YoloAttnError, match="overlaps the source"):
            convert_voc(voc, overlapping, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.yaml").write_text("names: [a]")
    with pytest.raises(YoloAttnError, match="not written by yolo-attn"):
        convert_voc(voc, tmp_path / "mine", overwrite=True)
    with pytest.raises(YoloAttnError, match="is a file"):
        convert_voc(voc, tmp_path / "mine" / "data.yaml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dst", "mine", "src"]


def test_interrupted_replacement_keeps_the_old(tmp_path):
    with whole_folder(tmp_path / "d") as partial:
        (partial / "data.yaml").write_text("# Written by yolo-attn: old")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "d", overwrite=True) as partial:
        (partial / "data.yaml").write_text("# Written by yolo-attn: new")
        raise KeyboardInterrupt
    assert "old" in (tmp_path / "d" / "data.yaml").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def coco_file(**changes) -> dict:
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": W, "height": H}],
        "categories": [{"id": 9, "name": "kite"}, {"id": 2, "name": "bird"}],
        "annotations": [
            {"id": 5, "image_id": 7, "category_id": 9, "bbox": [10, 5, 10, 10], "area": 33.5}
        ],
    }
    return {**content, **changes}


def coco_set(root: Path, content: object) -> Path:
    image(root / "images" / "a.jpg", "RGB")
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "annotations.json").write_text(text)
    return root


def row(bbox, **more) -> dict:
    return {"image_id": 7, "category_id": 9, "bbox": bbox, **more}


def test_coco_keeps_crowds_areas_and_unusable_boxes_beside_the_labels(tmp_path):
    annotations = [
        row([10, 5, 10, 10], id=5, area=33.5),
        row([10, 5, 10, 10], id=6),
        row([0, 0, 40, 20], id=7, iscrowd=1, area=400, segmentation={"counts": []}),
        row([30, 5, 30, 10], id=8, category_id=2),
        row([30, 5, 0, 10], id=9),
        row([50, 5, 5, 10], id=10),
        row([1, 1, 5, 5], id=11, category_id=4),
        row([1, 1, 5, 5], id=12, image_id=99),
        row([1, 1, 5, 5], id=13, image_id=8),
    ]
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "lost.jpg"}]
    src = coco_set(tmp_path / "src", coco_file(annotations=annotations, images=images))
    before = digests(src)
    report = convert_coco(src, tmp_path / "dst")
    assert report.classes == ["bird", "kite"]
    train = report.splits["train"]
    assert (train.images, train.boxes, sum(train.dropped_boxes.values())) == (1, 2, 7)
    assert train.dropped_images == {"image missing": 1}
    rows = labels(tmp_path / "dst", "train", "a")
    assert np.allclose(rows, [[1, 10, 5, 20, 15], [0, 30, 5, 40, 15]], atol=1e-5)
    kept = json.loads((tmp_path / "dst" / "annotations" / "val.json").read_text())
    assert [(a["id"], a["area"], a["iscrowd"]) for a in kept["annotations"]] == [
        (5, 33.5, 0),
        (6, 100, 0),
        (7, 400, 1),
        (8, 300, 0),
        (9, 0, 0),
        (10, 50, 0),
    ]
    assert kept["annotations"][3]["bbox"] == [30, 5, 30, 10] and kept["images"][0]["id"] == 7
    data = yaml.safe_load(report.data_yaml.read_text())
    assert data["train"] == data["val"] == "images/train" and "path" not in data
    assert any("same images" in note for note in report.notes)
    assert digests(src) == before


def test_coco_json_file_images_elsewhere_and_names_with_folders(tmp_path):
    content = coco_file(images=[{"id": 7, "file_name": "images/x/a.jpg"}])
    image(tmp_path / "pics" / "images" / "x" / "a.jpg", "RGB")
    (tmp_path / "my.json").write_text(json.dumps(content), encoding="utf-8-sig")
    report = convert_coco(
        tmp_path / "my.json", tmp_path / "dst", images=tmp_path / "pics", split="train"
    )
    assert (tmp_path / "dst" / "labels" / "train" / "images_x_a.txt").is_file()
    assert any("no val split" in note for note in report.notes)


def test_coco_standard_layout(tmp_path):
    src = tmp_path / "coco"
    (src / "annotations").mkdir(parents=True)
    for folder in ("train2017", "val2017"):
        image(src / folder / "a.jpg", "RGB")
        (src / "annotations" / f"instances_{folder}.json").write_text(json.dumps(coco_file()))
    report = convert_coco(src, tmp_path / "dst")
    assert {name: s.boxes for name, s in report.splits.items()} == {"train": 1, "val": 1}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100000, "not JSON"),
        ("[]", "expected an object"),
        (coco_file(images=None), "no list 'images'"),
        (coco_file(images=[1]), "images[0]: expected an object"),
        (coco_file(images=[{"id": 7}]), "images[0]: 'file_name'"),
        (coco_file(images=[{"id": 7, "file_name": "../a.jpg"}]), "below the images' folder"),
        (coco_file(images=[{"id": 7, "file_name": "/a.jpg"}]), "below the images' folder"),
        (coco_file(images=[{"id": [7], "file_name": "a.jpg"}]), "images[0]: 'id'"),
        (coco_file(images=coco_file()["images"] * 2), "images[1]: id 7 is there twice"),
        (coco_file(categories=[]), "'categories' is empty"),
        (coco_file(categories=[{"id": 1}]), "categories[0]: 'name'"),
        (coco_file(categories=coco_file()["categories"] * 2), "categories[2]: id 9"),
        (coco_file(annotations=[{"image_id": 7, "category_id": 9}]), "annotations[0]: 'bbox'"),
        (coco_file(annotations=[row([1, 2, 3])]), "annotations[0]: 'bbox' should be [x, y"),
        (coco_file(annotations=[row([1, 2, 3, "4px"])]), "expected a number, found '4px'"),
        (coco_file(annotations=[row([1, 2, 3, float("nan")])]), "expected a number, found nan"),
        (coco_file(annotations=[row([1, 2, 3, 4], iscrowd=[1])]), "'iscrowd' should be"),
        (coco_file(annotations=[row([1, 2, 3, 4], category_id="9")]), "'category_id' should be"),
        (coco_file(categories=[{"id": 9, "name": "a\ud800"}]), "not valid Unicode"),
    ],
)
def test_coco_garbage_is_one_error_that_names_file_and_element(tmp_path, content, says):
    src = coco_set(tmp_path / "src", content)
    with pytest.raises(YoloAttnError) as caught:
        convert_coco(src, tmp_path / "dst")
    message = str(caught.value)
    assert "annotations.json" in message and says in message and "\n" not in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["src"]


@pytest.mark.parametrize(
    ("options", "says"),
    [({"split": "train,trian"}, "train,val,test"), ({"images": "nowhere"}, "no such folder")],
)
def test_coco_options_are_checked(tmp_path, options, says):
    with pytest.raises(YoloAttnError, match=says):
        convert_coco(coco_set(tmp_path / "src", coco_file()), tmp_path / "dst", **options)


def test_coco_two_images_with_one_label_file_are_refused(tmp_path):
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "a.png"}]
    src = coco_set(tmp_path / "src", coco_file(images=images))
    image(src / "images" / "a.png")
    with pytest.raises(YoloAttnError, match=r"a\.txt"):
        convert_coco(src, tmp_path / "dst")


def test_sideways_photo_is_measured_as_ultralytics_shows_it(tmp_path):
    src = coco_set(tmp_path / "src", coco_file())
    exif = Image.Exif()
    exif[274] = 6
    image(src / "images" / "a.jpg", "RGB", (H, W), exif=exif)
    report = convert_coco(src, tmp_path / "dst")
    assert not report.splits["train"].altered
    assert np.allclose(labels(tmp_path / "dst", "train", "a"), [[1, 10, 5, 20, 15]], atol=1e-5)


def test_nothing_left_is_an_error(tmp_path):
    src = coco_set(tmp_path / "src", coco_file(images=[{"id": 7, "file_name": "lost.jpg"}]))
    with pytest.raises(YoloAttnError, match="no image is left .*image missing"):
        convert_coco(src, tmp_path / "dst")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["src"]


def test_coco_annotation_ids_that_coco_eval_cannot_use_are_made_new_and_noted(tmp_path):
    rows = [row([10, 5, 10, 10], id=0), row([1, 5, 10, 10], id=3)]
    report = convert_coco(coco_set(tmp_path / "src", coco_file(annotations=rows)), tmp_path / "dst")
    kept = json.loads((tmp_path / "dst" / "annotations" / "train.json").read_text())
    assert [a["id"] for a in kept["annotations"]] == [1, 2]
    assert sum("new annotation ids" in note for note in report.notes) == 1


@pytest.mark.parametrize("name", ["x" * 3000, "a\nb", "no\0such"])
def test_strange_names_are_counted_on_one_short_line(voc, tmp_path, name):
    (voc / "splits" / "train.txt").write_text(f"a\n{name}\n")
    report = convert_voc(voc, tmp_path / "dst")
    assert sum(report.splits["train"].dropped_images.values()) == 1
    assert all(len(line) < 200 and line.isprintable() for line in report.lines())

    images = [*coco_file()["images"], {"id": 8, "file_name": name.replace("\0", "")}]
    report = convert_coco(
        coco_set(tmp_path / "coco", coco_file(images=images)), tmp_path / "dst", overwrite=True
    )
    assert report.splits["train"].dropped_images == {"image missing": 1}
    assert all(len(line) < 200 and line.isprintable() for line in report.lines())


@pytest.mark.parametrize("corner", [1e200, 1e308])
def test_boxes_beyond_all_bounds_leave_no_infinity_in_the_json(voc, tmp_path, corner):
    (voc / "annotations" / "a.xml").write_text(xml(obj(-corner, -corner, corner, corner)))
    report = convert_voc(voc, tmp_path / "dst")
    assert report.splits["train"].dropped_boxes == {"size beyond all bounds": 1}
    assert "Infinity" not in (tmp_path / "dst" / "annotations" / "train.json").read_text()


def test_full_disk_is_one_error_and_leaves_nothing(voc, tmp_path, monkeypatch):
    def full(src, dst):
        raise OSError(28, "No space left on device", str(dst))

    monkeypatch.setattr("yolo_attn.data.layout.shutil.copyfile", full)
    with pytest.raises(YoloAttnError, match="could not be made .*No space left"):
        convert_voc(voc, tmp_path / "dst")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["src"]
