"""From a checkpoint and a dataset YAML to the numbers of every protocol."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.evaluation_sets import CLASSES, write_coco, write_model, write_plain
from yolo_attn.data.coco import convert_coco
from yolo_attn.data.visdrone import convert_visdrone
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation import protocols
from yolo_attn.evaluation.ground_truth import from_labels, from_sidecar
from yolo_attn.evaluation.notes import Warnings
from yolo_attn.evaluation.predict import predict
from yolo_attn.evaluation.visdrone_files import read_annotations


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def dataset(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("yolo") / "set"
    convert_coco(source, folder)
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return write_model(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def found(weights, dataset):
    return predict(weights, str(dataset), imgsz=160, device="cpu")


def pycocotools_scores(gt: dict, dets: list, max_dets=(1, 10, 100)) -> dict[str, float]:
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = gt
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(dets), "bbox")
        judge.params.maxDets = list(max_dets)
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][..., -1]
    views = {"AP": precision[:, :, :, 0], "AP50": precision[:1, :, :, 0]}
    views.update({f"AP_{n}": precision[:, :, :, i] for i, n in enumerate(("small", "medium"), 1)})
    return {name: 100 * v[v > -1].mean() for name, v in views.items()}


def test_ap_and_ap_small_are_those_of_pycocotools(found, source) -> None:
    truth, dets = found.truth, found.dets
    gt = json.loads((source / "annotations.json").read_text())
    assert len(dets.score) > 500 and set(dets.category) == {3, 7}
    ids = [next(i["id"] for i in gt["images"] if i["file_name"] == n) for n in truth.gt.names]
    rows = [
        {"image_id": ids[i], "category_id": c, "bbox": b, "score": s}
        for i, c, b, s in zip(
            *(x.tolist() for x in (dets.image, dets.category, dets.boxes, dets.score))
        )
    ]
    for name, caps in (("coco", (1, 10, 100)), ("coco-500", (1, 10, 500))):
        result = protocols.evaluate(truth.gt, dets, protocols.pick([name]))[name]
        for metric, value in pycocotools_scores(gt, rows, caps).items():
            assert result["metrics"][metric] == pytest.approx(value, abs=1e-9), (name, metric)
        assert result["metrics"]["AP"] > 0 and result["ignored"]["crowds"] == 5


def test_ultralytics_column_is_what_yolo_val_gives(found, weights, dataset, tmp_path) -> None:
    from ultralytics import YOLO

    box = YOLO(weights).val(
        data=str(dataset), imgsz=160, device="cpu", plots=False, max_det=500,
        project=str(tmp_path), workers=0,
    ).box  # fmt: skip
    ours = found.ultralytics["metrics"]
    assert ours["AP"] == 100 * box.map > 0 and ours["AP50"] == 100 * box.map50
    assert found.ultralytics["max_dets"] == [500]


def test_sidecar_is_found_and_what_is_odd_is_said(found, dataset) -> None:
    assert found.truth.source == str(dataset.parent / "annotations" / "val.json")
    assert found.truth.categories == {0: 3, 1: 7}
    assert "scene_03.png" in found.truth.gt.names  # no object, but false positives count
    assert "500 detections an image" in found.notes[0]
    assert not found.warnings.counts


def test_without_sidecar_the_labels_serve(weights, dataset, tmp_path) -> None:
    plain = write_plain(tmp_path / "plain", dataset.parent)
    plain.write_text(plain.read_text().replace("person", "van"))
    again = predict(weights, str(plain), imgsz=160, max_det=50, device="cpu")
    assert "label files" in again.notes[1] and "at most 50 detections" in again.notes[0]
    assert np.bincount(again.dets.image).max() == 50
    (line,) = again.warnings.lines()
    assert "name differently" in line and "'person' and 'van'" in line
    with_sidecar = from_sidecar(
        dataset.parent / "annotations" / "val.json", list(again.truth.image), {0: "car"}, Warnings()
    )
    a, b = again.truth.gt, with_sidecar.gt
    assert a.names == b.names and not a.ignored.any() and b.classes == {3: "car"}
    cars = a.boxes[a.category == 0]
    np.testing.assert_allclose(cars, b.boxes[b.category == 3], atol=1e-3)


def test_a_visdrone_sidecar_is_the_official_annotation(tmp_path) -> None:
    src = tmp_path / "VisDrone2019-DET-val"
    for kind in ("images", "annotations"):
        (src / kind).mkdir(parents=True)
    rows = {"b": "5,5,20,20,1,4,0,0,\n0,0,40,40,0,0,0,0\n50,50,9,9,0,1,0,0\n60,60,9,9,1,11,0,0\n",
            "a": "30,30,10,12,1,10,0,0\n"}  # fmt: skip
    for name, text in rows.items():
        Image.new("RGB", (100, 90)).save(src / "images" / f"{name}.jpg")
        (src / "annotations" / f"{name}.txt").write_text(text)
    dst = tmp_path / "set"
    convert_visdrone(src, dst)
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps({"a": [100, 90], "b": [100, 90]}))
    official = read_annotations(src / "annotations", sizes, Warnings())
    names = yaml.safe_load((dst / "data.yaml").read_text())["names"]
    images = [str(dst / "images" / "val" / f"{n}.jpg") for n in "ba"]
    truth = from_sidecar(dst / "annotations" / "val.json", images, names, Warnings())
    assert truth.image == {images[1]: 0, images[0]: 1} and truth.categories[0] == 1
    dets = truth.detections(
        {images[0]: [[4, 5, 26, 25, 0.9, 3]], images[1]: [[30, 30, 40, 42, 0.3, 9]]}
    )
    for ours, theirs in zip(
        protocols.evaluate(truth.gt, dets).values(), protocols.evaluate(official, dets).values()
    ):
        assert ours["metrics"] == theirs["metrics"]
    # Plain COCO knows no regions; COCO-500 and VisDrone drop what they cover.
    results = protocols.evaluate(truth.gt, dets)
    dropped = {n: r["ignored"]["objects_dropped"] for n, r in results.items() if "ignored" in r}
    assert dropped == {"coco": 0, "coco-500": 1, "tiny": 0}
    assert results["visdrone"]["kept"]["b.jpg"] == [1, 0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["images"].pop(), "no entry for .*1 of the 6 images"),
        (lambda c: c["categories"][0].update(name="cart"), "no category 'car', which is class 0"),
        (lambda c: c["images"][0].update(file_name=c["images"][1]["file_name"]), "2 images are"),
        (lambda c: c.update(annotations=3), "'annotations' should be a list"),
        (lambda c: c.update(ignored_regions=[{"image_id": 99}]), "ignored_regions.0.: image_id 99"),
    ],
)  # fmt: skip
def test_a_sidecar_that_does_not_fit_is_said(change, said, found, dataset, tmp_path) -> None:
    content = json.loads((dataset.parent / "annotations" / "val.json").read_text())
    last = content["images"][-1]["id"]
    change(content)
    kept = {i["id"] for i in content["images"]}
    if last not in kept:
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(YoloAttnError, match=said):
        from_sidecar(
            tmp_path / "val.json", list(found.truth.image), dict(enumerate(CLASSES)), Warnings()
        )


def test_labels_are_boxes_in_pixels() -> None:
    labels = [
        {"im_file": f"/d/{name}", "shape": (90, 120), "cls": np.array([[1.0]]),
         "bboxes": np.array([[0.5, 0.5, 8 / 120, 8 / 90]], np.float32)}
        for name in ("y/1.jpg", "x/1.jpg")
    ]  # fmt: skip
    truth = from_labels(labels, {0: "a", 1: "b"})
    assert truth.gt.names == ("x/1.jpg", "y/1.jpg") and truth.image["/d/y/1.jpg"] == 1
    np.testing.assert_allclose(truth.gt.boxes, [[56, 41, 8, 8]] * 2, atol=1e-5)
    assert truth.gt.area.tolist() == [64, 64]  # not 63.9999: the edge of a bin
    with pytest.raises(YoloAttnError, match="class 7"):
        truth.detections({"/d/x/1.jpg": [[0, 0, 1, 1, 0.5, 7]]})
    with pytest.raises(YoloAttnError, match="no entry"):
        truth.detections({"/d/z.jpg": [[0, 0, 1, 1, 0.5, 1]]})


def evaluate(**given):
    from yolo_attn.evaluation.command import evaluate_command

    options = dict.fromkeys(
        "model data imgsz device gt pred protocol sizes max_dets bins errors records "
        "save_visdrone slice_size slice_overlap".split()
    )
    evaluate_command(
        **{**options, "split": "val", "max_det": 500, "batch": 16, "as_json": False, **given}
    )


def test_the_command_puts_ultralytics_beside_the_protocols(weights, dataset, tmp_path, capsys):
    given = {"model": weights, "data": str(dataset), "imgsz": 160, "device": "cpu"}
    evaluate(**given, save_visdrone=tmp_path / "out", records=tmp_path / "r.npz")
    out, err = capsys.readouterr()
    titles = ("COCO, 100", "COCO-500, 500", "tiny, 1500", "VisDrone, 500", "Ultralytics, 500")
    for title in titles:
        assert title in out
    assert "val.json" in err and "mAP50-95" not in out
    assert len(list((tmp_path / "out").glob("*.txt"))) == 6
    evaluate(**given, protocol=["coco"], as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["AP"] == answer["metrics"]["AP"] and answer["ultralytics"]["metrics"]["AP50"] > 0
    assert "500" in answer["notes"][0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give a checkpoint and --data"),
        ({"model": "m.pt"}, "goes with --data"),
        ({"model": "m.pt", "data": "d.yaml", "pred": Path("x")}, "goes with --data"),
        ({"model": "m.pt", "data": "nowhere.yaml"}, "nowhere.yaml: not a dataset YAML"),
    ],
)
def test_wrong_options_are_one_line(given, said) -> None:
    with pytest.raises(YoloAttnError) as raised:
        evaluate(**given)
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_what_cannot_be_run_is_said(weights, dataset, tmp_path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    for model, split, said in (
        (str(tmp_path / "broken.pt"), "val", "broken.pt on .*could not run"),
        (weights, "test", "no split 'test' .it has train, val"),
    ):
        with pytest.raises(YoloAttnError, match=said):
            predict(model, str(dataset), split=split, imgsz=160, device="cpu")
    one = tmp_path / "one.yaml"
    one.write_text(
        f"path: {dataset.parent}\ntrain: images/train\nval: images/train\nnames: [car]\n"
    )
    with pytest.raises(YoloAttnError, match="predicts 2 classes, but .*one.yaml has 1"):
        predict(weights, str(one), imgsz=160, device="cpu")
