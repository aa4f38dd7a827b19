"""Models of yolo_attn 0.1.0 are built again as they were trained (files: tests/older/make.py)."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import ultralytics
import yaml
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import ClassificationModel, DetectionModel, yaml_model_load

import yolo_attn
from yolo_attn import create
from yolo_attn.data.synthetic import make_smallshapes
from yolo_attn.overlay.provenance import version_of
from yolo_attn.versions import earlier_defaults, made_before, made_by

OLDER = Path(__file__).parent / "older"
# Pickles hold Ultralytics' own classes; releases before the one that wrote them lack attributes.
WRITTEN_BY = (8, 4, 190)
needs_host = pytest.mark.skipif(
    tuple(map(int, ultralytics.__version__.split(".")[:3])) < WRITTEN_BY,
    reason="the checkpoints were written by Ultralytics 8.4.190",
)
HOW = {"imgsz": 96, "batch": 4, "workers": 0, "device": "cpu", "plots": False, "epochs": 1}


def pickled(name: str) -> nn.Module:
    checkpoint = torch.load(OLDER / name, weights_only=False)
    return (checkpoint.get("ema") or checkpoint["model"]).float()


def norms(model: nn.Module) -> dict[str, tuple[float, float]]:
    return {
        name: (module.eps, getattr(module, "momentum", 0.0))
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__
    }


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of five classes under the name that the checkpoints know, and one of two."""
    folder = tmp_path_factory.mktemp("older")
    make_smallshapes(folder / "shapes", image_size=96, train_images=8, val_images=4)
    names = ["disk", "square", "triangle", "cross", "ring"]
    text = f"path: {folder / 'shapes'}\ntrain: images/train\nval: images/val\nnames: "
    (folder / "shapes.yaml").write_text(text + f"{names}\n")
    (folder / "six.yaml").write_text(text + f"{[*names, 'star']}\n")
    return folder


@needs_host
@pytest.mark.parametrize("name", ["overlay_last.pt", "rows_best.pt"])
def test_a_checkpoint_is_rebuilt_as_it_was_trained(name: str) -> None:
    old = pickled(name)
    again = DetectionModel(old.yaml, verbose=False)
    assert shapes(again) == shapes(old)
    assert norms(again) == norms(old)
    again.load_state_dict(old.state_dict())
    x = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        for training in (False, True):
            a, b = (m.train(training)(x) for m in (again, old))
            a, b = (y["boxes"] if training else y[0] for y in (a, b))
            torch.testing.assert_close(a, b)


@needs_host
def test_an_expanded_yaml_is_rebuilt_as_it_was_trained(tmp_path: Path) -> None:
    old = pickled("overlay_last.pt")
    again = DetectionModel(str(OLDER / "expanded.yaml"), verbose=False)
    assert shapes(again) == shapes(old) and norms(again) == norms(old)
    # Its start is the old one, too.
    nonlocal_block = again.model[7]
    assert float(nonlocal_block.theta.weight.detach().std()) == pytest.approx(0.01, rel=0.4)
    # What stands in an old base is old.
    (tmp_path / "more.yaml").write_text(
        f"base: {OLDER / 'expanded.yaml'}\ninsert:\n  - [10, 1, SE, []]\n"
    )
    more = DetectionModel(str(tmp_path / "more.yaml"), verbose=False)
    assert shapes(more.model[8]) == shapes(old.model[8])


@needs_host
def test_an_interrupted_run_is_resumed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    model = YOLO(str(OLDER / "overlay_last.pt"))
    model.train(resume=True, data="shapes.yaml", project=str(data / "runs"), device="cpu")
    assert model.trainer.epoch == 2  # of 3
    old = pickled("overlay_last.pt")
    assert shapes(model.trainer.model) == shapes(old)
    assert norms(model.trainer.model) == norms(old)


@needs_host
@pytest.mark.parametrize("yaml_name", ["shapes.yaml", "six.yaml"])
def test_training_from_a_checkpoint_keeps_every_block(
    yaml_name: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    how = {**HOW, "optimizer": "SGD", "lr0": 0.0, "warmup_epochs": 0.0, "exist_ok": True}
    model = YOLO(str(OLDER / "rows_best.pt"))
    model.train(data=yaml_name, project=str(data / "runs"), name="again", **how)
    old, trained = pickled("rows_best.pt"), model.trainer.model
    for i in (4, 5):  # SE, NonLocal
        for name, value in old.model[i].named_parameters():
            torch.testing.assert_close(trained.model[i].get_parameter(name), value)
    assert norms(trained.model[5]) == norms(old.model[5])
    # Trained on, it is still a model of its time.
    (best,) = data.glob("**/again/weights/best.pt")
    assert version_of(torch.load(best, weights_only=False)["model"].yaml) == "0.1.0"


def test_norms_of_an_older_classifier_stay_torch_s(tmp_path: Path) -> None:
    # Ultralytics sets no norms there, so the blocks of 0.1.0 had torch's.
    (tmp_path / "mine.yaml").write_text("base: yolov8n-cls.yaml\ninsert:\n  - [8, 1, GAM, []]\n")
    d = yaml_model_load(tmp_path / "mine.yaml")
    del d["yolo_attn"]["version"]
    model = ClassificationModel(d, verbose=False)
    assert (model.model[9].norm1.eps, model.model[9].norm1.momentum) == (1e-5, 0.1)
    assert type(model.model[9].norm1) is nn.BatchNorm2d


def test_a_model_built_from_a_dictionary_remembers_its_version(tmp_path: Path) -> None:
    rows = yaml.safe_load((OLDER / "expanded.yaml").read_text())
    del rows["yolo_attn"]
    torch.manual_seed(0)
    model = DetectionModel(rows, verbose=False)  # no file, no provenance
    assert model.model[8].groups == 2
    checkpoint = {"model": model, "train_args": {}, "epoch": -1}
    for stamp, groups in (("0.2.0", 2), (None, 16)):  # None: as 0.1.0 left it
        if stamp is None:
            del model.model.yolo_attn_version
        torch.save(checkpoint, tmp_path / "best.pt")
        again = DetectionModel(YOLO(str(tmp_path / "best.pt")).model.yaml, verbose=False)
        assert again.model[8].groups == groups


def test_a_model_of_today_says_its_version(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: yolov8n.yaml\ninsert:\n  - [P5, 1, EMA, []]\n")
    rows = yaml.safe_load((OLDER / "expanded.yaml").read_text())
    del rows["yolo_attn"]
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump(rows))
    for name in ("mine.yaml", "rows.yaml"):
        d = yaml_model_load(tmp_path / name)
        assert d["yolo_attn"]["version"] == yolo_attn.__version__ == version_of(d)
    model = DetectionModel(str(tmp_path / "rows.yaml"), verbose=False)
    assert model.model[8].groups == 2 and model.model[7].norm.eps == 1e-5
    again = DetectionModel(model.yaml, verbose=False)
    assert shapes(again) == shapes(model) and norms(again) == norms(model)


def test_stock_models_carry_no_version() -> None:
    assert "yolo_attn" not in yaml_model_load("yolov8n.yaml")


def test_a_model_of_a_newer_version_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ultralytics"):
        logging.getLogger("ultralytics").addHandler(caplog.handler)
        assert version_of({"yaml_file": "a.yaml", "yolo_attn": {"version": "99.1"}}) == "99.1"
        logging.getLogger("ultralytics").removeHandler(caplog.handler)
    (record,) = caplog.records
    assert "a.yaml was made by yolo_attn 99.1" in record.getMessage()


def test_defaults_follow_the_version() -> None:
    assert create("EMA", 64).groups == 8
    with made_by("0.1.0"):
        assert made_before("0.2.0") and earlier_defaults("EMA") == {"factor": 32}
        assert create("EMA", 64).groups == 32
        assert create("SE", 64).fc1.out_channels == 4
        assert create("SE", 64, rd_channels=6).fc1.out_channels == 6
        assert create("EMA", 64, factor=4).groups == 4
    with made_by("0.2.0"):
        assert not made_before("0.2.0") and not earlier_defaults("EMA")
    assert create("SE", 64).fc1.out_channels == 8
