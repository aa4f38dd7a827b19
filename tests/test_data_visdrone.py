"""VisDrone conversion: labels in place, the official rows recoverable, every oddity counted."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from yolo_attn.cli import app
from yolo_attn.data.visdrone import CLASSES, convert_visdrone, official_ground_truth
from yolo_attn.errors import YoloAttnError
from yolo_attn.paths import datasets_dir

from .test_data_convert import H, W, image, labels
from .test_data_synthetic import digests

TRAIN, VAL, TEST = (f"VisDrone2019-DET-{s}" for s in ("train", "val", "test-dev"))
KEPT = " (kept in annotations/, not a label)"
CAR = "10,5,10,10,1,4,0,0"


def add(folder: Path, name: str, text: str | bytes = CAR, suffix: str = ".jpg") -> None:
    image(folder / "images" / f"{name}{suffix}", "RGB")
    (folder / "annotations").mkdir(exist_ok=True)
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "annotations" / f"{name}.txt").write_bytes(data)


def zipped(folder: Path, inside: str = "") -> Path:
    file = folder.with_suffix(".zip")
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(path, inside + path.relative_to(folder).as_posix())
    return file


@pytest.fixture
def src(tmp_path) -> Path:
    """One image in each of the three official folders."""
    for folder in (TRAIN, VAL, TEST):
        add(tmp_path / "src" / folder, folder[-5:])
    return tmp_path / "src"


def test_official_folders_become_the_layout_of_ultralytics_own_yaml(src, tmp_path):
    before = digests(src)
    report = convert_visdrone(src, tmp_path / "dst")
    data = yaml.safe_load(report.data_yaml.read_text())
    shipped = yaml.safe_load((datasets_dir() / "VisDrone.yaml").read_text())
    for key in ("train", "val", "test", "names"):
        assert data[key] == shipped[key]
    for split, stem in (("train", "train"), ("val", "T-val"), ("test", "t-dev")):
        rows = labels(tmp_path / "dst", split, stem)
        assert np.allclose(rows, [[3, 10, 5, 20, 15]], atol=1e-5)
        assert (tmp_path / "dst" / "images" / split / f"{stem}.jpg").is_file()
        assert report.splits[split].boxes == 1
    assert digests(src) == before


def test_shipped_yaml_agrees_with_the_installed_ultralytics():
    cfg = pytest.importorskip("ultralytics.utils").ROOT / "cfg" / "datasets" / "VisDrone.yaml"
    stock = yaml.safe_load(cfg.read_text(encoding="utf-8"))
    shipped = yaml.safe_load((datasets_dir() / "VisDrone.yaml").read_text())
    assert shipped["names"] == stock["names"] == dict(enumerate(CLASSES))


def test_nothing_that_the_protocol_needs_is_lost(src, tmp_path):
    text = (
        "1,2,3,4,1,1,0,0\n"  # pedestrian
        "-5,3,60,9,0,0,0,0\n"  # ignored region that leaves the image
        "8,9,5,5,0,4,1,2\n"  # score-0 car
        "20,5,0,4,1,10,0,0\n"  # no size
        "15,5,5,5,1,11,0,0\n"  # others
        "1,2,3,4,1,1,0,0\n"  # duplicate
        "30.5,15.25,20,10,1,9,0,1\n"  # leaves the image
        "50,5,5,5,1,4,0,0\n"  # outside
        "5,5,5,5,1,12,0,0\n"  # no such category
    )
    add(src / VAL, "a", text)
    report = convert_visdrone(src, tmp_path / "dst")
    val = report.splits["val"]
    assert (val.images, val.boxes) == (2, 3)
    assert dict(val.dropped_boxes) == {
        f"ignored region{KEPT}": 1,
        f"score 0{KEPT}": 1,
        f"zero or negative size{KEPT}": 1,
        f"category 'others'{KEPT}": 1,
        f"duplicate{KEPT}": 1,
        f"outside the image{KEPT}": 1,
        "unknown class": 1,
    }
    assert val.altered == {"box clipped at the image's edge": 1}
    rows = labels(tmp_path / "dst", "val", "a")
    assert np.allclose(rows, [[0, 1, 2, 4, 6], [8, 30.5, 15.25, W, H]], atol=1e-5)

    sidecar = tmp_path / "dst" / "annotations" / "val.json"
    truth, sizes = official_ground_truth(sidecar)
    official = np.array([line.split(",") for line in text.split()[:-1]], float)
    assert np.array_equal(truth["a"], official)
    assert sizes == {"a": (W, H), "T-val": (W, H)}
    content = json.loads(sidecar.read_text())
    assert [a["line"] for a in content["annotations"] if a["iscrowd"]] == [3]
    assert len(content["annotations"]) == 6 + 1
    assert [r["bbox"] for r in content["ignored_regions"]] == [[-5, 3, 60, 9]]
    assert [c["id"] for c in content["categories"]] == list(range(1, 11))


def test_images_come_in_the_order_of_the_official_toolkit(src, tmp_path):
    for name in ("b", "a-1", "a", "B"):
        add(src / VAL, name)
    convert_visdrone(src, tmp_path / "dst")
    truth, _ = official_ground_truth(tmp_path / "dst" / "annotations" / "val.json")
    assert list(truth) == ["B", "T-val", "a-1", "a", "b"]  # "a-1.txt" < "a.txt"


def test_sidecar_is_a_file_that_pycocotools_reads(src, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    add(src / VAL, "a", "0,0,9,9,0,0,0,0\n1,1,5,5,0,4,0,0\n1,1,6,6,1,4,0,0\n")
    convert_visdrone(src, tmp_path / "dst")
    truth = coco.COCO(str(tmp_path / "dst" / "annotations" / "val.json"))
    assert len(truth.getAnnIds(catIds=[4])) == 3 and len(truth.getAnnIds(iscrowd=True)) == 1


@pytest.mark.parametrize(
    ("data", "counted"),
    [
        (f"{CAR},\n{CAR[:-1]}1,\n", {"trailing comma": 2}),
        (f"{CAR}\r\n", {"Windows line ends": 1}),
        (f"\ufeff{CAR}", {"byte order mark at the start of the file": 1}),
        (f"\n{CAR}\n  \n", {"blank line": 2}),
        (CAR.replace(",", " "), {"spaces instead of commas": 1}),
        ("1e1,5.0, 10,10,1,4.0,0,0", {}),
        ("", {"annotation file without a row": 1}),
        ("10,5,10,10,0.5,4,0,0", {"score neither 0 nor 1 (taken for 0)": 1}),
    ],
)
def test_oddities_of_real_files_are_read_and_counted(src, tmp_path, data, counted):
    add(src / TRAIN, "a", data)
    report = convert_visdrone(src, tmp_path / "dst")
    assert report.splits["train"].altered == counted
    if data and "0.5" not in data:
        rows = labels(tmp_path / "dst", "train", "a")
        assert np.allclose(rows[0], [3, 10, 5, 20, 15], atol=1e-5)
    else:
        assert (tmp_path / "dst" / "labels" / "train" / "a.txt").read_bytes() == b""
    assert all(reason in "\n".join(report.lines()) for reason in counted)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (f"{CAR}\n1,2,3", "line 2: expected the 8 numbers"),
        (f"{CAR},9", "line 1: expected the 8 numbers"),
        ("a,5,10,10,1,4,0,0", "line 1: left: expected a number"),
        ("10,nan,10,10,1,4,0,0", "line 1: top: expected a number"),
        ("10,5,1e999,10,1,4,0,0", "line 1: width: expected a number"),
        ("10,5,10,1_0,1,4,0,0", "line 1: height: expected a number"),
        ("10,5,10,10,1,,0,0", "line 1: category: expected a number"),
        (f"{CAR}\n\xff".encode("latin-1"), "line 2: not text"),
        ("\ufeffx".encode("utf-16"), "line 1: not text"),
    ],
)
def test_garbage_is_one_error_that_names_file_and_line(src, tmp_path, data, says):
    add(src / VAL, "a", data)
    with pytest.raises(YoloAttnError) as caught:
        convert_visdrone(src, tmp_path / "dst")
    message = str(caught.value)
    assert f"{VAL}/annotations/a.txt {says}" in message and "\n" not in message
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_images_and_annotations_without_partner_are_counted(src, tmp_path):
    image(src / VAL / "images" / "lonely.jpg", "RGB")
    image(src / VAL / "images" / "tiny.jpg", "RGB", (8, 8))
    for name in ("lost", "tiny"):
        (src / VAL / "annotations" / f"{name}.txt").write_text(f"{CAR}\n0,0,5,5,0,0,0,0")
    (src / VAL / "images" / "notes.md").write_text("notes")
    report = convert_visdrone(src, tmp_path / "dst")
    val = report.splits["val"]
    small = "side below 10 px (Ultralytics refuses it)"
    assert dict(val.dropped_images) == {"annotation missing": 1, "image missing": 1, small: 1}
    assert val.dropped_boxes == {
        "with their image: image missing": 2,
        f"with their image: {small}": 2,
    }
    assert any("neither images nor annotations, left out: 1" in n for n in report.notes)


@pytest.mark.parametrize("inside", ["", f"{VAL}/", f"data/{VAL}/{VAL}/"])
def test_a_zip_gives_what_its_folder_gives(src, tmp_path, inside):
    add(src / VAL, "a", f"{CAR}\n0,0,9,9,0,0,0,0")
    convert_visdrone(src / VAL, tmp_path / "folder")
    file = zipped(src / VAL, inside)
    convert_visdrone(file, tmp_path / "zip")
    with zipfile.ZipFile(file, "a") as archive:
        for folder in ("images", "annotations"):
            archive.writestr(f"__MACOSX/{inside}{folder}/._a.txt", "shadow")
    convert_visdrone(file, tmp_path / "zip", overwrite=True)
    assert digests(tmp_path / "zip") == digests(tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "src", "zip"]


def test_folder_of_zips_and_folders(src, tmp_path):
    convert_visdrone(src, tmp_path / "folders")
    for folder in (TRAIN, VAL, TEST):
        zipped(src / folder, f"{folder}/")
    shutil.rmtree(src / TRAIN)
    (src / "VisDrone2019-DET-test-challenge" / "images").mkdir(parents=True)
    before = digests(src)
    report = convert_visdrone(src, tmp_path / "mixed")
    assert digests(src) == before
    assert digests(tmp_path / "mixed") == digests(tmp_path / "folders")
    assert sum("its folder is there too" in note for note in report.notes) == 2
    assert any("test-challenge: left out" in note for note in report.notes)


def test_error_in_a_zip_names_the_place_in_it(src, tmp_path):
    (src / VAL / "images" / "T-val.jpg").write_bytes(b"not an image")
    with pytest.raises(YoloAttnError, match=rf"{VAL}\.zip/images/T-val\.jpg: not an image"):
        convert_visdrone(zipped(src / VAL), tmp_path / "dst")


@pytest.mark.parametrize("cut", [0, 100, -30])
def test_broken_zip_is_one_error(src, tmp_path, cut):
    file = zipped(src / VAL)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(YoloAttnError, match="zip that can be read"):
        convert_visdrone(file, tmp_path / "dst")


def test_damaged_member_of_a_zip_is_one_error(src, tmp_path):
    file = zipped(src / VAL)
    file.write_bytes(file.read_bytes().replace(CAR.encode(), CAR.encode()[::-1]))
    with pytest.raises(YoloAttnError, match=r"T-val\.txt: cannot be read \(BadZipFile"):
        convert_visdrone(file, tmp_path / "dst")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_split_of_a_folder_with_another_name(src, tmp_path):
    (src / VAL).rename(tmp_path / "mine")
    with pytest.raises(YoloAttnError, match="say which split it is"):
        convert_visdrone(tmp_path / "mine", tmp_path / "dst")
    report = convert_visdrone(tmp_path / "mine", tmp_path / "dst", split="val")
    assert list(report.splits) == ["val"]
    with pytest.raises(YoloAttnError, match="expected one of train, val, test"):
        convert_visdrone(tmp_path / "mine", tmp_path / "dev", split="dev")
    with pytest.raises(YoloAttnError, match="holds 2 splits"):
        convert_visdrone(src, tmp_path / "dst2", split="val")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda s: shutil.rmtree(s), "no such file or folder"),
        (lambda s: [shutil.rmtree(p) for p in s.iterdir()], "holds no folder with images/"),
        (lambda s: shutil.copytree(s / VAL, s / VAL.replace("2019", "2018")), "a second val split"),
        (lambda s: (s / VAL / "annotations" / "T-val.txt").unlink(), r"no \.txt file"),
        (lambda s: add(s / VAL, "T-val", suffix=".png"), "same annotation as"),
    ],
)
def test_sources_that_leave_a_question_are_refused(src, tmp_path, make, says):
    make(src)
    with pytest.raises(YoloAttnError, match=says):
        convert_visdrone(src, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_again_gives_the_same_bytes_and_only_when_told(src, tmp_path):
    convert_visdrone(src, tmp_path / "dst")
    before = digests(tmp_path / "dst")
    with pytest.raises(YoloAttnError, match="not empty"):
        convert_visdrone(src, tmp_path / "dst")
    convert_visdrone(src, tmp_path / "dst", overwrite=True)
    assert digests(tmp_path / "dst") == before
    (src / VAL / "annotations" / "T-val.txt").write_text("garbage")
    with pytest.raises(YoloAttnError, match="line 1"):
        convert_visdrone(src, tmp_path / "dst", overwrite=True)
    assert digests(tmp_path / "dst") == before
    for overlapping in (src, src / "new", tmp_path):
        with pytest.raises(YoloAttnError, match="overlaps the source"):
            convert_visdrone(src, overlapping, overwrite=True)


def test_grey_regions_in_training_images_only_and_not_over_objects(src, tmp_path):
    text = f"{CAR}\n-5,2,18,50,0,0,0,0\n2,2,3,3,0,4,0,0"
    for folder in (TRAIN, VAL):
        add(src / folder, "a", text)
        Image.new("RGB", (W, H), (250, 30, 30)).save(src / folder / "images" / "a.jpg", quality=100)
    before = digests(src)
    report = convert_visdrone(src, tmp_path / "dst", grey_ignored=True)
    painted = np.asarray(Image.open(tmp_path / "dst" / "images" / "train" / "a.jpg"), int)
    grey = np.abs(painted - 114).max(2) < 40  # JPEG smears the edges
    assert grey[6:, :8].all() and grey[18:, :11].all()
    assert not grey[:1].any() and not grey[:, 15:].any() and not grey[7:13, 11:].any()
    assert report.splits["train"].altered["ignored regions painted grey"] == 1
    assert any("painted grey: 1" in note for note in report.notes)
    # The object in the region keeps its label; validation and images without regions stay.
    assert len(labels(tmp_path / "dst", "train", "a")) == 1
    for folder, name in ((VAL, "val/a"), (TRAIN, "train/train")):
        split, stem = name.split("/")
        same = (tmp_path / "dst" / "images" / split / f"{stem}.jpg").read_bytes()
        assert same == (src / folder / "images" / f"{stem}.jpg").read_bytes()
    assert digests(src) == before
    with pytest.raises(YoloAttnError, match="training images alone"):
        convert_visdrone(src / TRAIN, tmp_path / "train", grey_ignored=True)
    convert_visdrone(src, tmp_path / "plain")
    plain = (tmp_path / "plain" / "images" / "train" / "a.jpg").read_bytes()
    assert plain == (src / TRAIN / "images" / "a.jpg").read_bytes()


def test_shipped_yaml_downloads_and_ends_in_the_converter(src, tmp_path, monkeypatch, capsys):
    downloads = pytest.importorskip("ultralytics.utils.downloads")
    asked = []

    def download(urls, dir, unzip, threads):
        assert not unzip and threads == 3
        dir.mkdir()
        for url in urls:
            asked.append(url)
            zipped(src / Path(url).stem).rename(dir / Path(url).name)

    monkeypatch.setattr(downloads, "download", download)
    content = yaml.safe_load((datasets_dir() / "VisDrone.yaml").read_text(encoding="utf-8"))
    exec(content["download"], {"yaml": {"path": tmp_path / "VisDrone"}})
    assert len(asked) == 3 and all(url.startswith("https://github.com/") for url in asked)
    for split in ("train", "val", "test"):
        assert (tmp_path / "VisDrone" / content[split]).is_dir()
        assert official_ground_truth(tmp_path / "VisDrone" / "annotations" / f"{split}.json")[0]
    assert "kept 1 image, 1 box" in capsys.readouterr().out
    assert (tmp_path / "VisDrone-zips" / f"{VAL}.zip").is_file()


def test_shipped_yaml_finds_a_converted_set(src, tmp_path, monkeypatch):
    utils = pytest.importorskip("ultralytics.data.utils")
    convert_visdrone(src, tmp_path / "VisDrone")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(utils, "DATASETS_DIR", tmp_path)  # 8.3.0 looks there alone
    for file in (datasets_dir() / "VisDrone.yaml", tmp_path / "VisDrone" / "data.yaml"):
        data = utils.check_det_dataset(file, autodownload=False)
        for split in ("train", "val", "test"):
            assert Path(data[split]) == tmp_path / "VisDrone" / "images" / split


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": [], "annotations": [1]}'])
def test_official_rows_from_another_file_are_one_error(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(YoloAttnError, match="not the annotations of a VisDrone conversion"):
        official_ground_truth(tmp_path / "x.json")


def test_command(src, tmp_path):
    dst = tmp_path / "dst"
    args = ["convert", "visdrone", str(src), str(dst), "--grey-ignored"]
    done = CliRunner().invoke(app, [*args, "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["splits"]["val"]["boxes"] == 1
    done = CliRunner().invoke(app, args)
    assert isinstance(done.exception, YoloAttnError)  # main() makes it one line and exit code 1
    assert "Example: yolo-attn convert" in CliRunner().invoke(app, [*args[:2], "--help"]).output
