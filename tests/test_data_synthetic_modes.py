"""The control modes: the same pictures, and labels that need the far sign or do not."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from yolo_attn.cli import app
from yolo_attn.data import synthetic
from yolo_attn.data.synthetic import CLASSES, draw_image, make_smallshapes
from yolo_attn.data.synthetic_context import draw_scene
from yolo_attn.errors import YoloAttnError
from yolo_attn.paths import datasets_dir

from .test_data_synthetic import SMALL, digests

SIDE = 128
SET = {"image_size": SIDE, "train_images": 12, "val_images": 4, "object_size": (5.0, 12.0)}


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("modes")
    return {m: make_smallshapes(root / m, mode=m, **SET) for m in ("context", "plain")}


def scenes(root: Path, split: str = "train") -> list[dict]:
    return json.loads((root / "scenes" / f"{split}.json").read_text())


def label_rows(root: Path, scene: dict) -> np.ndarray:
    text = (root / "labels" / "train" / scene["image"]).with_suffix(".txt").read_text()
    rows = np.array([line.split() for line in text.splitlines()], float).reshape(-1, 5)
    centre, half = rows[:, 1:3] * SIDE, rows[:, 3:] * SIDE / 2
    return np.hstack([rows[:, :1], centre - half, centre + half])


def drawn(n: int, distance: float = 40.0, **changes):
    args = {"size": (5.0, 12.0), "objects": (4, 9), "clutter": 1.0, "classes": 3, **changes}
    for seed in range(n):
        rng = np.random.default_rng(seed)
        yield draw_scene(rng, SIDE, *args.values(), "log-uniform", distance)


def test_both_modes_have_the_same_pictures_and_scenes(sets):
    context, plain = digests(sets["context"]), digests(sets["plain"])
    shared = [n for n in context if n.startswith(("images/", "scenes/"))]
    assert len(shared) == 12 + 4 + 2
    assert all(context[n] == plain[n] for n in shared)
    assert context["data.yaml"] == plain["data.yaml"]
    assert any(context[n] != plain[n] for n in context if n.startswith("labels/"))


def test_labels_follow_the_sign_in_context_and_not_in_plain(sets):
    said = set()
    for scene in scenes(sets["context"]):
        said.add(scene["counts"])
        for mode, wanted in (("context", scene["counts"]), ("plain", "bright")):
            expected = np.array([s[:5] for s in scene["shapes"] if s[5] == wanted])
            assert np.allclose(label_rows(sets[mode], scene), expected.reshape(-1, 5), atol=1e-3)
    assert said == {"bright", "dark"}


def test_without_the_sign_half_of_the_shapes_count_in_context():
    says, bright = [], []
    for _, scene in drawn(300):
        for *_, polarity in scene.shapes:
            says.append(scene.counts == "bright")
            bright.append(polarity == "bright")
    says, bright = np.array(says), np.array(bright)
    for polarity in (True, False):  # neither polarity nor the sign alone tells
        assert abs((says == bright)[bright == polarity].mean() - 0.5) < 0.06
        assert abs((says == bright)[says == polarity].mean() - 0.5) < 0.06


def test_the_sign_can_be_read_from_the_picture():
    for image, scene in drawn(40):
        x1, y1, x2, y2 = scene.sign
        patch = image[y1:y2, x1:x2].astype(float).mean(2)
        across = np.abs(np.diff(patch, axis=1)).mean() - np.abs(np.diff(patch, axis=0)).mean()
        assert ("dark" if across > 0 else "bright") == scene.counts
        assert min(abs(across), 5) == 5


def test_bright_shapes_are_brighter_than_what_surrounds_them():
    for image, scene in drawn(20, objects=(3, 3), clutter=0.0):
        grey = image.astype(float).mean(2)
        for _, *box, polarity in scene.shapes:
            x, y = int((box[0] + box[2]) / 2), int((box[1] + box[3]) / 2)
            inside = grey[y - 1 : y + 2, x - 1 : x + 2].mean()
            x1, y1, x2, y2 = (int(v) for v in (*np.floor(box[:2]) - 3, *np.ceil(box[2:]) + 3))
            ring = np.ones((SIDE, SIDE), bool)
            ring[max(y1 + 1, 0) : y2 - 1, max(x1 + 1, 0) : x2 - 1] = False
            around = np.zeros_like(ring)
            around[max(y1, 0) : y2, max(x1, 0) : x2] = True
            assert (inside > grey[ring & around].mean()) == (polarity == "bright")


@pytest.mark.parametrize("distance", [0.0, 32.0, 64.0])
def test_shapes_keep_their_distance_from_the_sign(distance):
    nearest = np.inf
    for _, scene in drawn(30, distance):
        a = np.array(scene.sign)
        for _, *box, _ in scene.shapes:
            b = np.array(box)
            nearest = min(nearest, np.maximum(b[:2] - a[2:], a[:2] - b[2:]).max())
    assert distance <= nearest < distance + 12


def test_same_bytes_again_and_the_mode_is_part_of_the_set(sets, tmp_path):
    again = make_smallshapes(tmp_path / "again", mode="context", **SET)
    assert digests(again) == digests(sets["context"])
    assert make_smallshapes(again, mode="context", **SET) == again
    for change in ({"mode": "plain"}, {"mode": "context", "distance": 20}, {}):
        with pytest.raises(YoloAttnError, match="not empty"):
            make_smallshapes(again, **SET, **change)


def test_uniform_sizes_are_larger_than_log_uniform_ones():
    medians = {}
    for name in ("log-uniform", "uniform"):
        sizes = []
        for i in range(30):
            _, rows = draw_image(
                np.random.default_rng(i), 256, (4.0, 36.0), (5, 9), 0.0, len(CLASSES), name
            )
            sizes += [256 * (w * h) ** 0.5 for _, _, _, w, h in rows]
        medians[name] = np.median(sizes)
    assert medians["log-uniform"] == pytest.approx(12, abs=2.5)  # the geometric mean
    assert medians["uniform"] == pytest.approx(20, abs=2.5)  # the middle


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mode": "contxt"}, "did you mean 'context'"),
        ({"size_distribution": "normal"}, "size_distribution='normal'"),
        ({"distance": 10}, "only the modes context and plain"),
        ({"mode": "plain", "distance": -1}, "distance=-1"),
        ({"mode": "context", "distance": 1000}, "distance=1000"),
        ({"mode": "context", "distance": float("nan")}, "distance=nan"),
    ],
)
def test_options_out_of_range_are_named(tmp_path, wrong, says):
    with pytest.raises(YoloAttnError, match=says):
        make_smallshapes(tmp_path / "set", **SMALL, **wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["context", "plain"])
def test_shipped_yaml_draws_the_set_that_it_describes(tmp_path, monkeypatch, mode):
    file = datasets_dir() / f"smallshapes-{mode}.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    made = {}
    monkeypatch.setattr(
        synthetic, "make_smallshapes", lambda root, **kw: made.update(kw, root=root)
    )
    exec(content["download"], {"yaml": {"path": tmp_path / "s"}})
    assert made["root"] == tmp_path / "s" and made["mode"] == mode
    assert tuple(content["names"].values()) == CLASSES[: made["classes"]]
    assert f"# {made['train_images']} images" in file.read_text()


def test_stock_ultralytics_loads_a_control_set(sets):
    utils = pytest.importorskip("ultralytics.data.utils")
    data = utils.check_det_dataset(sets["context"] / "data.yaml")
    assert Path(data["val"]) == sets["context"] / "images" / "val"


def test_command_makes_the_set(tmp_path):
    options = "--mode plain --image-size 96 --train 2 --val 1 --size 4,8 --objects 3,5 --clutter 0"
    more = "--classes 2 --seed 7 --distribution uniform --distance 20 --json"
    args = ["data", "make", str(tmp_path / "s"), *options.split(), *more.split()]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, (done.output, done.exception)
    answer = json.loads(done.stdout)
    direct = make_smallshapes(
        tmp_path / "direct",
        mode="plain",
        image_size=96,
        train_images=2,
        val_images=1,
        object_size=(4, 8),
        objects=(3, 5),
        clutter=0,
        classes=2,
        seed=7,
        size_distribution="uniform",
        distance=20,
    )
    assert digests(tmp_path / "s") == digests(direct)
    assert answer["data_yaml"] == str(tmp_path / "s" / "data.yaml")
    text = cv2.imread(str(direct / "images" / "val" / "00000.png"))
    assert text.shape == (96, 96, 3)
    for wrong in (["--size", "4"], ["--objects", "3,x"]):
        done = CliRunner().invoke(app, [*args, *wrong])
        assert isinstance(done.exception, YoloAttnError) and wrong[0] in str(done.exception)
