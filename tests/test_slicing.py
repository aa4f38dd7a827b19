"""Slices of an image: SAHI's predictions as arrays, in `evaluate` and as an arm of a study."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.evaluation_sets import write_coco, write_model, write_plain
from yolo_attn.ablation.costs import measure_predictions
from yolo_attn.ablation.older_trials import dataset_digest
from yolo_attn.ablation.plan import make_plan
from yolo_attn.ablation.runner import plan_study, run_plan
from yolo_attn.ablation.shared_training import in_two_rounds
from yolo_attn.ablation.spec import from_dict
from yolo_attn.ablation.store import DONE, TrialFolder, write_json
from yolo_attn.data.coco import convert_coco
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.predict import CONFIDENCE, predict
from yolo_attn.evaluation.predict_sliced import predict_sliced
from yolo_attn.evaluation.slicing import count_slices, sliced_detections

SIZES = [(120, 90), (64, 100)]


def fake_sahi(monkeypatch, found):
    """A stand-in that finds the same boxes in every image; the calls it got."""

    def one(score, index, box):
        return types.SimpleNamespace(
            score=types.SimpleNamespace(value=score),
            category=types.SimpleNamespace(id=index),
            bbox=types.SimpleNamespace(to_xyxy=lambda: list(box)),
        )

    calls = []

    def predict(image, model, **options):
        calls.append((image, options))
        predictions = [one(*f) for f in found]
        return types.SimpleNamespace(
            object_prediction_list=predictions, image_width=1000, image_height=640
        )

    class Auto:
        @staticmethod
        def from_pretrained(**options):
            calls.append(("model", options))

    monkeypatch.setitem(
        sys.modules, "sahi", types.SimpleNamespace(AutoDetectionModel=Auto, __path__=[])
    )
    predict_module = types.SimpleNamespace(get_sliced_prediction=predict)
    monkeypatch.setitem(sys.modules, "sahi.predict", predict_module)
    return calls


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for i, (width, height) in enumerate(SIZES):
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), pixels)
    return [tmp_path / f"{i}.png" for i in range(len(SIZES))]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("yolo") / "set"
    convert_coco(write_coco(tmp_path_factory.mktemp("coco")), folder)
    return folder / "data.yaml"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    return write_model(tmp_path_factory.mktemp("weights"))


def test_slices_are_counted_as_sahi_cuts():
    # 1000 px in slices of 640 with a fifth overlap: at 0 and, flush right, at 360.
    assert count_slices(1000, 640, 640) == 2
    assert count_slices(640, 640, 640) == count_slices(100, 100, 640) == 1
    assert count_slices(1153, 1152, 640) == 3 * 2


def test_sliced_detections_become_arrays(monkeypatch, images, tmp_path):
    found = [(0.2, 0, (1, 2, 4, 8)), (0.9, 1, (10, 10, 30, 20)), (0.5, 0, (0, 0, 1, 1))]
    calls = fake_sahi(monkeypatch, found)
    checkpoint = tmp_path / "best.pt"
    checkpoint.write_bytes(b"")
    got = sliced_detections(checkpoint, images, 640, max_dets=2, categories={0: 5, 1: 7})
    assert got.detections.boxes.tolist() == [[10, 10, 20, 10], [0, 0, 1, 1]] * 2
    assert got.detections.category.tolist() == [7, 5] * 2
    assert got.detections.image.tolist() == [0, 0, 1, 1]
    assert got.slices.tolist() == [2, 2] and (got.seconds > 0).all()
    assert calls[1][1]["overlap_height_ratio"] == 0.2 and calls[1][1]["slice_width"] == 640
    # The first image once more, before the clock: a model's first run pays for its set-up.
    assert [image for image, _ in calls[1:]] == [str(images[0]), *map(str, images)]
    assert got.cost["slices"] == 2 and got.cost["latency_p95_ms"] >= got.cost["latency_ms"] > 0


def test_real_sahi_finds_what_the_model_finds(weights, dataset):
    pytest.importorskip("sahi.predict")
    from ultralytics import YOLO

    whole = predict_sliced(weights, str(dataset), 160, imgsz=160, device="cpu")
    assert whole.slicing["slices"] == 1 and whole.slicing["slice_overlap"] == 0.2
    net = YOLO(weights)
    for path, i in whole.truth.image.items():
        # Not `predict`: `yolo val` pads an image otherwise, which this block sees everywhere.
        (result,) = net.predict(
            cv2.imread(path), imgsz=160, conf=CONFIDENCE, iou=0.7, device="cpu", verbose=False
        )
        boxes, found = result.boxes, whole.dets.keep(whole.dets.image == i)
        # Merging drops boxes but moves none; the best one stays.
        best = int(boxes.conf.argmax())
        assert found.score[0] == pytest.approx(float(boxes.conf[best]), abs=1e-4)
        x1, y1, x2, y2 = boxes.xyxy[best].tolist()
        np.testing.assert_allclose(found.boxes[0], [x1, y1, x2 - x1, y2 - y1], atol=0.01)
        assert 0 < len(found.score) <= len(boxes)
    cut = predict_sliced(weights, str(dataset), 96, overlap=0.5, device="cpu")
    assert cut.slicing["slices"] == count_slices(160, 128, 96, 0.5) == 6


@pytest.mark.parametrize(
    "options", [{"slice_size": 8}, {"overlap": 1.0}, {"overlap": True}, {"conf": -1}]
)
def test_slicing_refuses_numbers_out_of_range(options):
    with pytest.raises(YoloAttnError, match="accepted"):
        sliced_detections("best.pt", [], **{"slice_size": 640, **options})


def test_missing_sahi_is_named(monkeypatch, images):
    monkeypatch.setitem(sys.modules, "sahi", None)
    with pytest.raises(YoloAttnError, match=r"pip install 'yolo-attn\[slice\]'"):
        sliced_detections(images[0], images, 640)


@pytest.mark.parametrize("sidecar", [True, False])
def test_the_ground_truth_is_that_of_whole_images(sidecar, monkeypatch, weights, dataset, tmp_path):
    data = dataset if sidecar else write_plain(tmp_path / "plain", dataset.parent)
    calls = fake_sahi(monkeypatch, [(0.9, 1, (10, 10, 30, 20))])
    plain = predict(weights, str(data), imgsz=160, device="cpu")
    cut = predict_sliced(weights, str(data), 96, imgsz=160, device="cpu")
    assert cut.truth.gt.names == plain.truth.gt.names and cut.truth.image == plain.truth.image
    for key in ("image", "boxes", "category", "ignored", "area"):
        np.testing.assert_array_equal(getattr(cut.truth.gt, key), getattr(plain.truth.gt, key))
    assert calls[0][1]["image_size"] == 160 and calls[0][1]["confidence_threshold"] == CONFIDENCE
    # Detections carry the numbers of the ground truth, and image i is its image i.
    assert set(cut.dets.category) == {plain.truth.categories[1]}
    seen = [Path(image).name for image, _ in calls[2:]]
    assert seen == [Path(name).name for name in plain.truth.gt.names]
    assert cut.dets.image.tolist() == list(range(len(seen)))
    slices = count_slices(1000, 640, 96)  # the stand-in says that size of every image
    assert f"{slices:.1f} slices (mean)" in cut.notes[1] and not cut.ultralytics


def test_what_cannot_be_sliced_is_said(monkeypatch, weights, dataset, tmp_path):
    fake_sahi(monkeypatch, [])
    one = tmp_path / "one.yaml"
    one.write_text(
        f"path: {dataset.parent}\ntrain: images/train\nval: images/train\nnames: [car]\n"
    )
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    for model, data, split, said in (
        (weights, one, "val", "predicts 2 classes, but .*one.yaml has 1"),
        (weights, dataset, "test", "no split 'test' .it has train, val"),
        ("model.onnx", dataset, "val", "need a checkpoint"),
        (str(tmp_path / "broken.pt"), dataset, "val", "cannot be loaded"),
    ):
        with pytest.raises(YoloAttnError, match=said):
            predict_sliced(model, str(data), 96, split=split, device="cpu")


def evaluate(**given):
    from yolo_attn.evaluation.command import evaluate_command

    options = dict.fromkeys(
        "model data imgsz device gt pred protocol sizes max_dets bins errors records "
        "save_visdrone slice_size slice_overlap".split()
    )
    base = {"split": "val", "max_det": 500, "batch": 16, "as_json": False}
    evaluate_command(**{**options, **base, **given})


def test_the_command_scores_slices_by_the_same_protocols(monkeypatch, weights, dataset, capsys):
    fake_sahi(monkeypatch, [(0.9, 0, (10, 10, 30, 20))])
    given = {"model": weights, "data": str(dataset), "imgsz": 160, "device": "cpu"}
    evaluate(**given, slice_size=96)
    out, err = capsys.readouterr()
    assert "VisDrone, 500" in out and "Ultralytics" not in out
    assert "slices of 96 px, overlap 0.2" in err and "latency of an image: median" in err
    evaluate(**given, slice_size=96, slice_overlap=0.5, protocol=["coco"], as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["slicing"]["slice"] == 96 and answer["slicing"]["slice_overlap"] == 0.5
    assert answer["slicing"]["latency_ms"] > 0 and answer["AP"] == answer["metrics"]["AP"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gt": Path("a"), "pred": Path("b"), "slice_size": 640}, "not with prediction files"),
        ({"model": "m.pt", "data": "d.yaml", "slice_overlap": 0.3}, "goes with --slice"),
        ({"model": "m.pt", "data": "d.yaml", "slice_size": 4}, "slice: 4 .accepted"),
        (
            {"model": "m.pt", "data": "d.yaml", "slice_size": 640, "slice_overlap": 1.0},
            "overlap of slices: 1.0",
        ),
    ],
)
def test_wrong_options_are_one_line(given, said):
    with pytest.raises(YoloAttnError, match=said) as error:
        evaluate(**given)
    assert "\n" not in str(error.value)


# An arm of a study

ARMS = ["yolov8n.yaml", {"model": "yolov8n.yaml", "slice": 96}, "yolov8n-gc.yaml"]


def study_in(folder: Path, dataset: Path, **more):
    content = {"arms": ARMS, "data": str(dataset), "project": str(folder), "seeds": 1, "name": "s"}
    return from_dict({**content, **more})


def test_an_arm_says_its_slices(tmp_path, dataset):
    study = study_in(tmp_path, dataset)
    assert [arm.name for arm in study.arms] == ["yolov8n", "yolov8n-slice96", "yolov8n-gc"]
    assert (study.arms[1].slice, study.arms[1].slice_overlap) == (96, 0.2)
    assert from_dict(study.as_dict()) == study
    assert "slice_overlap" not in study.as_dict()["arms"][0]
    for arm, said in (
        ({"slice": 8}, "arm 2: slice: 8"),
        ({"slice": "big"}, "arm 2: slice: 'big'"),
        ({"slice": 96, "slice_overlap": 1.5}, "arm 2: overlap of slices: 1.5"),
        ({"slice_overlap": 0.1}, "arm 2: slice_overlap goes with `slice`"),
    ):
        with pytest.raises(YoloAttnError, match=said):
            study_in(tmp_path, dataset, arms=["a.yaml", {"model": "b.yaml", **arm}])


def test_missing_sahi_is_said_before_any_training(monkeypatch, tmp_path, dataset):
    monkeypatch.setitem(sys.modules, "sahi", None)
    with pytest.raises(YoloAttnError, match="slicing needs SAHI"):
        make_plan(study_in(tmp_path, dataset))
    make_plan(study_in(tmp_path, dataset, arms=[ARMS[0], ARMS[2]]))


@pytest.fixture
def plan(monkeypatch, tmp_path, dataset):
    fake_sahi(monkeypatch, [])
    return make_plan(study_in(tmp_path, dataset, train={"imgsz": 96, "epochs": 2}))


def test_other_slices_than_those_of_a_finished_trial_are_refused(plan, tmp_path, dataset):
    job = plan.jobs[1]
    assert job.evaluate["slice_size"] == 96 and "slice_size" not in plan.jobs[0].evaluate
    folder = TrialFolder(Path(job.folder))
    folder.path.mkdir(parents=True)
    # As the releases wrote it that recorded no identity.
    record = {"status": DONE, "command": job.train, **json.loads(json.dumps(job.manifest))}
    record["dataset"]["sha256"] = dataset_digest(job.source["data"], "val")[1]
    record["metrics"] = {name: {"metrics": {}} for name in plan.study.protocols}
    write_json(folder.path / "trial.json", record)
    plan_study(plan.study)
    arms = [replace(arm, slice=64) if arm.slice else arm for arm in plan.study.arms]
    with pytest.raises(YoloAttnError, match="'slice_size': 96.*'slice_size': 64.*--force"):
        plan_study(replace(plan.study, arms=tuple(arms)))


class Stub:
    """An executor that "trains" what is not trained yet, and notes what it had to do."""

    def __init__(self, failing=()):
        self.trained, self.rounds, self.failing = [], [], failing

    def execute(self, jobs, report):
        self.rounds.append([job.arm for job in jobs])
        for job in jobs:
            folder = TrialFolder(Path(job.folder))
            folder.path.mkdir(parents=True, exist_ok=True)
            if not folder.trained:
                self.trained.append(job.arm)
                folder.best.parent.mkdir(parents=True, exist_ok=True)
                folder.best.write_text(f"weights of {job.arm}")
            error = {"what": "told to", "tail": []} if job.arm in self.failing else None
            status = "failed" if error else DONE
            record = folder.write(
                status=status, error=error, command=job.train, epochs=2, epoch_seconds=3.0,
                seconds=1.0, **job.manifest,
            )  # fmt: skip
            report(job, record)


def test_an_arm_that_only_slices_is_not_trained_again(plan):
    executor = Stub()
    outcome = run_plan(plan, executor)
    assert len(outcome.done) == 3 and executor.trained == ["yolov8n", "yolov8n-gc"]
    assert executor.rounds == [["yolov8n", "yolov8n-gc"], ["yolov8n-slice96"]]
    cut = TrialFolder(Path(plan.jobs[1].folder))
    assert cut.best.read_text() == "weights of yolov8n"
    assert cut.record["weights_of"] == "yolov8n/0" and cut.record["epoch_seconds"] == 3.0


def test_it_trains_where_there_are_no_weights_to_take(plan):
    alone = Stub()
    run_plan(plan, alone, only=["yolov8n-slice96"])
    assert alone.trained == ["yolov8n-slice96"]
    assert "weights_of" not in TrialFolder(Path(plan.jobs[1].folder)).record


def test_it_trains_where_the_other_training_failed(plan):
    executor = Stub(failing=("yolov8n",))
    run_plan(plan, executor)
    assert executor.trained == ["yolov8n", "yolov8n-gc", "yolov8n-slice96"]


def test_only_slices_share_a_training(monkeypatch, tmp_path, dataset):
    fake_sahi(monkeypatch, [])
    twice = [{"name": name, "model": "yolov8n.yaml"} for name in ("a", "b")]
    cut = [{"name": n, "model": "yolov8n.yaml", "slice": s} for n, s in (("c", 96), ("d", 64))]
    other = {"name": "e", "model": "yolov8n.yaml", "slice": 64, "args": {"lr0": 0.5}}

    def rounds(arms):
        jobs = make_plan(study_in(tmp_path, dataset, arms=arms)).jobs
        return [[job.arm for job in part] for part in in_two_rounds(jobs, jobs)]

    assert rounds([*cut, *twice, other]) == [["a", "b", "e"], ["c", "d"]]
    assert rounds(cut) == [["c"], ["d"]]


def test_latency_is_of_whole_predictions(monkeypatch):
    from yolo_attn.ablation import costs

    seen, clock = [], [0.0]
    # A clock of its own: real ones tell how busy the machine is.
    monkeypatch.setattr(costs.time, "perf_counter", lambda: clock[0])

    def predictor(name, seconds):
        def predict(image):
            seen.append((name, image))
            clock[0] += seconds

        return predict

    images = [str(i) for i in range(120)]
    arms = {"whole": predictor("whole", 0.0005), "cut": predictor("cut", 0.003)}
    found = measure_predictions(arms, images, "cpu")
    assert found["rounds"] == 40 and found["conf"] == CONFIDENCE  # every third image
    latency = {arm: of["latency_ms"] for arm, of in found["arms"].items()}
    assert latency == pytest.approx({"whole": 0.5, "cut": 3})
    assert seen[2:6] == [("whole", "0"), ("cut", "0"), ("whole", "3"), ("cut", "3")]
