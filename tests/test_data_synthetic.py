"""smallshapes: the same bytes on every run, labels that fit, whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from yolo_attn.data import drawing, synthetic
from yolo_attn.data.synthetic import CLASSES, draw_image, make_smallshapes
from yolo_attn.errors import YoloAttnError
from yolo_attn.paths import datasets_dir

SMALL = {"image_size": 96, "train_images": 3, "val_images": 2}


def digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def test_same_bytes_on_every_run_whatever_the_global_random_state(tmp_path):
    np.random.seed(1)
    first = digests(make_smallshapes(tmp_path / "a", **SMALL))
    np.random.seed(2)
    cv2.setRNGSeed(3)
    assert digests(make_smallshapes(tmp_path / "b", **SMALL)) == first
    assert len(first) == 2 * 5 + 2
    other = digests(make_smallshapes(tmp_path / "c", **SMALL, seed=1))
    assert other["images/train/00000.png"] != first["images/train/00000.png"]


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path):
    few = digests(make_smallshapes(tmp_path / "a", **SMALL))
    many = digests(make_smallshapes(tmp_path / "b", **{**SMALL, "train_images": 5}))
    for name in few:
        if name.startswith(("images", "labels")):
            assert many[name] == few[name]


@pytest.mark.parametrize("size", [(6.0, 24.0), (4.0, 8.0)])
def test_boxes_are_inside_apart_and_of_the_stated_size(size):
    seen = []
    for i in range(12):
        image, rows = draw_image(np.random.default_rng(i), 256, size, (4, 10), 1.0, len(CLASSES))
        assert image.shape == (256, 256, 3) and image.dtype == np.uint8
        for cls, x, y, w, h in rows:
            assert 0 <= cls < len(CLASSES)
            assert 0 <= x - w / 2 and x + w / 2 <= 1 and 0 <= y - h / 2 and y + h / 2 <= 1
            assert size[0] - 1e-6 <= 256 * (w * h) ** 0.5 <= size[1] + 1e-6
            seen.append(cls)
        for i, a in enumerate(rows):
            for b in rows[:i]:
                assert abs(a[1] - b[1]) > (a[3] + b[3]) / 2 or abs(a[2] - b[2]) > (a[4] + b[4]) / 2
    assert set(seen) == set(range(len(CLASSES)))


@pytest.mark.parametrize("name", CLASSES)
def test_the_box_is_where_the_paint_is(name, monkeypatch):
    monkeypatch.setattr(drawing, "CLASSES", (name,))
    flat = np.full((64, 64, 3), 60, np.float32)
    monkeypatch.setattr(synthetic, "background", lambda rng, size: flat.copy())
    image, rows = draw_image(np.random.default_rng(0), 64, (16, 16), (1, 1), 0.0, 1)
    ((_, x, y, w, h),) = rows
    ys, xs = np.nonzero(np.abs(image.astype(float) - 60).max(2) > 25)
    box = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * 64
    painted = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    assert np.abs(box - painted).max() <= 1.5


def test_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw_image(*args)

    monkeypatch.setattr(synthetic, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_smallshapes(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_made_set_is_found_again_and_another_is_refused(tmp_path):
    root = make_smallshapes(tmp_path / "set", **SMALL)
    (root / "labels" / "train.cache").write_bytes(b"by Ultralytics")
    assert make_smallshapes(tmp_path / "set", **SMALL) == root
    assert (root / "labels" / "train.cache").exists()
    with pytest.raises(YoloAttnError, match="not empty"):
        make_smallshapes(root, **SMALL, seed=1)
    make_smallshapes(root, **SMALL, seed=1, overwrite=True)
    assert not (root / "labels" / "train.cache").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_foreign_folder_is_never_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(YoloAttnError, match="not written by yolo-attn"):
        make_smallshapes(tmp_path / "mine", **SMALL, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 8},
        {"train_images": 0},
        {"val_images": 0},
        {"object_size": (9, 6)},
        {"object_size": (6, 300)},
        {"objects": (5, 2)},
        {"clutter": -1},
        {"clutter": float("nan")},
        {"classes": 0},
        {"classes": 99},
        {"seed": -1},
    ],
)
def test_parameters_out_of_range_are_named(tmp_path, wrong):
    with pytest.raises(YoloAttnError, match=next(iter(wrong))):
        make_smallshapes(tmp_path / "set", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_shipped_yaml_draws_the_set_that_it_describes(tmp_path, monkeypatch):
    content = yaml.safe_load((datasets_dir() / "smallshapes.yaml").read_text(encoding="utf-8"))
    assert tuple(content["names"].values()) == CLASSES[: len(content["names"])]
    made = {}
    monkeypatch.setattr(synthetic, "make_smallshapes", lambda root: made.update(root=root))
    exec(content["download"], {"yaml": {"path": tmp_path / "smallshapes"}})
    assert made == {"root": tmp_path / "smallshapes"}
    assert make_smallshapes.__kwdefaults__["classes"] == len(content["names"])
