"""Dataset statistics: bins on original pixels, faults counted, ignored area from the COCO file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.processes import python
from yolo_attn.cli import app
from yolo_attn.data.stats import COCO_BINS, TINY_BINS, count_bins, dataset_stats, stats_tables
from yolo_attn.data.synthetic import make_smallshapes
from yolo_attn.data.visdrone import convert_visdrone
from yolo_attn.errors import YoloAttnError

from .test_data_convert import coco_set, convert_coco, image, row

pytest.importorskip("ultralytics")


def dataset(root: Path, images: dict[str, tuple[int, int]], labels: dict[str, str]) -> Path:
    """A set of one split; names are split/stem."""
    for name, size in images.items():
        image(root / "images" / f"{name}.png", size=size)
    for name, text in labels.items():
        file = root / "labels" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    splits = sorted({name.split("/")[0] for name in images}, reverse=True)
    rows = [f"{split}: images/{split}" for split in splits]
    rows += [] if "train" in splits else [f"train: images/{splits[0]}"]
    (root / "data.yaml").write_text("\n".join([*rows, "names: [cat, dog]", ""]))
    return root / "data.yaml"


def boxes(
    *sizes: tuple[float, float], image: tuple[int, int], cls: int = 0, digits: int = 6
) -> str:
    rows = []
    for i, (w, h) in enumerate(sizes):
        x = 0.2 + 0.01 * i
        rows.append(f"{cls} {x:.6f} 0.5 {w / image[0]:.{digits}f} {h / image[1]:.{digits}f}\n")
    return "".join(rows)


@pytest.fixture
def small(tmp_path) -> Path:
    size = {"train/a": (640, 480), "train/b": (333, 777), "train/c": (50, 50), "val/d": (100, 100)}
    labels = {
        # Edges of the bins, as they come out of labels with six decimals.
        "train/a": boxes((2, 2), (8, 8), (4, 16), (16, 16), (32, 32), image=(640, 480)),
        "train/b": boxes((96, 96), (1, 3), (64, 64), image=(333, 777), cls=1),
        "val/d": boxes((10, 10), image=(100, 100)),
    }
    return dataset(tmp_path / "set", size, labels)


def test_boxes_are_binned_by_original_pixels_and_edges_belong_upwards(small):
    stats = dataset_stats(small)
    d = stats.as_dict()["splits"]["train"]
    assert d["tiny_bins"] == {"<2": 1, "2-8": 1, "8-16": 2, "16-32": 1, "32-64": 1, ">=64": 2}
    assert d["coco"] == {"small": 5, "medium": 2, "large": 1}
    assert (d["images"], d["images_without_objects"], d["boxes"]) == (3, 1, 8)
    assert d["boxes_per_image"] == {"mean": 8 / 3, "median": 3, "max": 5}
    assert d["per_class"]["dog"]["boxes"] == 3 and d["per_class"]["dog"]["images"] == 1
    assert d["per_class"]["dog"]["coco"] == {"small": 1, "medium": 1, "large": 1}
    assert d["per_class"]["cat"]["size"] == {"min": 2.0, "median": 8.0, "max": 32.0}
    assert d["ignored"] is None and d["skipped_label_rows"] == {}
    assert stats.as_dict()["splits"]["val"]["boxes"] == 1


def test_bins_leave_nothing_out():
    sizes = np.random.default_rng(0).gamma(1.0, 40.0, 5000)
    for bins in (TINY_BINS, COCO_BINS):
        assert sum(count_bins(sizes, bins).values()) == 5000


def test_unusable_label_rows_are_counted_with_their_places(tmp_path):
    good = "0 0.5 0.5 0.1 0.1"
    faulty = [
        good,
        "2 0.5 0.5 0.1 0.1",
        "0.5 0.5 0.5 0.1 0.1",
        "0 0.5 0.5 0.1",
        "0 0.5 0.5 0.1 0.1 0.1",
        "0 5 5 10 10",
        "0 0.5 0.5 -0.1 0.1",
        "0 0.5 0.5 0 0.1",
        "0 nan 0.5 0.1 0.1",
        "zero 0.5 0.5 0.1 0.1",
    ]
    labels = {"val/a": "\n".join([good, "", *faulty])}
    data = dataset(tmp_path / "set", {"val/a": (100, 100), "val/b": (100, 100)}, labels)
    (tmp_path / "set" / "labels" / "val" / "b.txt").write_bytes(b"\xff\xfe0")
    stats = dataset_stats(data, splits=["val"])
    split = stats.splits["val"]
    assert len(split.sizes) == 1
    assert sum(split.faults.reasons.values()) == len(faulty) + 1
    assert sorted(split.faults.reasons.values()) == [1, 1, 1, 2, 2, 2, 2]
    text = "\n".join(str(part) for part in stats_tables(stats))
    assert "a.txt line 4" in text and "Ultralytics leaves its image out" in text


def test_polygons_count_by_their_box(tmp_path):
    polygon = "0 0.1 0.1 0.3 0.1 0.3 0.5 0.2 0.5"
    data = dataset(tmp_path / "set", {"val/a": (100, 100)}, {"val/a": polygon})
    assert dataset_stats(data).splits["val"].sizes == pytest.approx([np.sqrt(20 * 40)], abs=0.01)


def test_statistics_agree_with_what_ultralytics_loads(tmp_path):
    loader = pytest.importorskip("ultralytics.data")
    root = make_smallshapes(tmp_path / "s", image_size=96, train_images=6, val_images=2)
    loaded = loader.YOLODataset(
        img_path=str(root / "images" / "train"), data={"names": dict(enumerate("abcde"))}
    )
    stats = dataset_stats(root / "data.yaml").splits["train"]
    sizes = [96 * np.sqrt(b[:, 2] * b[:, 3]) for b in (x["bboxes"] for x in loaded.labels)]
    assert np.allclose(np.sort(stats.sizes), np.sort(np.concatenate(sizes)), atol=0.006)
    classes = np.concatenate([x["cls"].ravel() for x in loaded.labels])
    assert np.array_equal(np.bincount(stats.classes), np.bincount(classes.astype(int)))
    assert sorted(stats.per_image) == sorted(len(x["cls"]) for x in loaded.labels)


def test_ignored_area_is_the_union_of_regions_inside_the_images(tmp_path):
    src = tmp_path / "VisDrone2019-DET-val"
    for name in ("a", "b"):
        image(src / "images" / f"{name}.jpg", "RGB", (100, 50))
        (src / "annotations").mkdir(exist_ok=True)
    rows = ["0,0,20,20,0,0,0,0", "10,10,20,20,0,0,0,0", "90,40,500,500,0,0,0,0"]
    rows += ["5,5,8,8,1,4,0,0", "5,5,8,8,0,4,0,0", "1,1,5,5,1,11,0,0"]
    (src / "annotations" / "a.txt").write_text("\n".join(rows))
    (src / "annotations" / "b.txt").write_text("5,5,40,40,1,1,0,0")
    convert_visdrone(src, tmp_path / "dst")
    stats = dataset_stats(tmp_path / "dst" / "data.yaml")
    d = stats.as_dict()["splits"]["val"]
    union = 400 + 400 - 100 + 100
    assert d["ignored"] == {
        "regions": 3,
        "region_area_fraction": union / (2 * 100 * 50),
        "objects": 1,
        "others": 1,
        "coco_by_annotated_area": {"small": 1, "medium": 1, "large": 0},
    }
    assert list(stats.distinct()) == ["train = val"]


def test_annotated_areas_are_told_beside_box_areas(tmp_path):
    coco_rows = [row([0, 0, 40, 20], id=1, area=2000), row([1, 1, 9, 9], id=2, iscrowd=1)]
    content = {
        "images": [{"id": 7, "file_name": "a.jpg"}],
        "categories": [{"id": 9, "name": "kite"}],
        "annotations": coco_rows,
    }
    convert_coco(coco_set(tmp_path / "src", content), tmp_path / "dst")
    d = dataset_stats(tmp_path / "dst" / "data.yaml").as_dict()["splits"]["train"]
    assert d["coco"] == {"small": 1, "medium": 0, "large": 0}
    assert d["ignored"]["coco_by_annotated_area"] == {"small": 0, "medium": 1, "large": 0}
    assert d["ignored"]["objects"] == 1


def test_coco_file_of_other_images_is_not_used_and_a_broken_one_is_named(small):
    folder = small.parent / "annotations"
    folder.mkdir()
    other = {"images": [{"id": 1, "file_name": "z.png", "width": 9, "height": 9}]}
    (folder / "val.json").write_text(json.dumps({**other, "annotations": []}))
    assert dataset_stats(small).splits["val"].ignored is None
    for broken in ("{", "[]", "{}", json.dumps({"images": [{}], "annotations": []})):
        (folder / "val.json").write_text(broken)
        with pytest.raises(YoloAttnError, match=r"annotations/val\.json: not COCO annotations"):
            dataset_stats(small)


def test_lists_of_images_are_read_as_ultralytics_reads_them(small):
    root = small.parent
    (root / "list.txt").write_text("./images/train/a.png\n\n./images/val/d.png\n")
    small.write_text("train: [list.txt]\nval: images/val\nnames: [cat, dog]\n")
    assert len(dataset_stats(small).splits["train"].sizes) == 6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: images/train\nval: images/nowhere\nnames: [a]", "not a dataset YAML"),
        ("train: images/nowhere\nval: images/val\nnames: [a]", "no folder or list of images"),
        ("train: labels\nval: images/val\nnames: [a]", "no image in"),
        ("val: images/val\nnames: [a]", "not a dataset YAML"),
        ("[", "not a dataset YAML"),
        ("", "not a dataset YAML"),
    ],
)
def test_a_yaml_at_fault_is_one_line(small, text, says):
    small.write_text(text)
    with pytest.raises(YoloAttnError, match=says) as caught:
        dataset_stats(small)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(small))


def test_an_image_that_is_none_and_a_split_that_is_none(small):
    with pytest.raises(YoloAttnError, match="no split 'vla' .*did you mean 'val'"):
        dataset_stats(small, splits=["vla"])
    (small.parent / "images" / "val" / "d.png").write_bytes(b"no image")
    with pytest.raises(YoloAttnError, match=r"d\.png: not an image"):
        dataset_stats(small)


def test_command_prints_a_table_and_draws_a_picture(small, tmp_path):
    png = tmp_path / "p.png"
    done = CliRunner().invoke(app, ["data", "stats", str(small), "--png", str(png)])
    assert done.exit_code == 0, (done.output, done.exception)
    for text in ("8-16", "medium", "ignored regions", "cat", "not known", f"wrote {png}"):
        assert text in done.output
    drawn = Image.open(png)
    assert drawn.format == "PNG" and min(drawn.size) > 800
    assert len(drawn.convert("RGB").getcolors(10**6)) > 50  # something is on it
    for wrong, says in (("p.jpg", "end in .png"), ("nowhere/p.png", "no such folder")):
        args = ["data", "stats", str(small), "--png", str(tmp_path / wrong)]
        done = CliRunner().invoke(app, args)
        assert isinstance(done.exception, YoloAttnError) and says in str(done.exception)


def test_json_alone_on_stdout_in_a_fresh_process(small, tmp_path):
    cli = ("-m", "yolo_attn.cli", "data", "stats", str(small), "--json")
    done = python(*cli, cwd=tmp_path, YOLO_CONFIG_DIR=str(tmp_path / "fresh"))
    assert json.loads(done.stdout)["splits"]["val"]["boxes"] == 1


def test_help_has_examples_and_importing_the_command_line_is_cheap():
    for command in ("make", "stats"):
        assert (
            "Example: yolo-attn data" in CliRunner().invoke(app, ["data", command, "--help"]).output
        )
    heavy = "{'torch', 'cv2', 'matplotlib', 'ultralytics'}"
    code = f"import sys, yolo_attn.cli; print({heavy} & set(sys.modules))"
    assert python("-c", code).stdout.strip() == "set()"


def test_a_set_without_a_single_box_is_drawn_too(tmp_path):
    from yolo_attn.data.stats_plot import draw_stats

    data = dataset(tmp_path / "set", {"val/a": (100, 100)}, {})
    stats = dataset_stats(data)
    draw_stats(stats, tmp_path / "p.png")
    assert stats.as_dict()["splits"]["val"]["size"]["median"] is None
    assert (tmp_path / "p.png").stat().st_size > 1000
