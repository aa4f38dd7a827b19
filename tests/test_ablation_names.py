"""Names and arguments of a study that would collide with something else are refused in one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.ablation_study import finished_study
from yolo_attn.ablation.command import study_from
from yolo_attn.ablation.report import write_report
from yolo_attn.ablation.runner import plan_study
from yolo_attn.ablation.spec import from_dict
from yolo_attn.ablation.store import TAKEN_NAMES
from yolo_attn.cli import app
from yolo_attn.data.synthetic import make_smallshapes
from yolo_attn.errors import YoloAttnError
from yolo_attn.seam.compat import UnexpectedHostError


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"a": "a.yaml", "report.html": "b.yaml"}, "cannot be named 'report.html': report.html in"),
        ({"a": "a.yaml", "Figures": "b.yaml"}, "cannot be named 'Figures': figures in"),
        ({"archive": "a.yaml", "b": "b.yaml"}, "cannot be named 'archive'"),
        ({"GC": "a.yaml", "gc": "b.yaml"}, "two arms are named 'GC' and 'gc', one folder on many"),
        ({"a": "a.yaml", "a-match-params": "b.yaml"}, "so is the control that `match` adds"),
    ],
)
def test_an_arm_whose_folder_is_something_else_is_refused(arms: dict, message: str) -> None:
    with pytest.raises(YoloAttnError, match=message):
        from_dict({"arms": arms, "data": "d.yaml", "match": "params"})


def test_every_file_of_a_report_is_a_name_that_no_arm_may_have(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    folder = finished_study(tmp_path)
    write_report(folder)
    arms = {"baseline", "block", "odd_arm"}
    assert {p.name for p in folder.iterdir() if p.name[0] != "."} - arms <= TAKEN_NAMES


def test_arguments_from_a_file_are_refused() -> None:
    arms = ["a.yaml", {"model": "b.yaml", "args": {"cfg": "x.yaml"}}]
    for content in ({"arms": arms}, {"arms": arms[:1] + ["c.yaml"], "train": {"cfg": "x.yaml"}}):
        with pytest.raises(YoloAttnError, match="cfg is not set here but by its keys, one by one"):
            from_dict({**content, "data": "d.yaml"})


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "+0.1e-3"])
def test_a_number_that_yolo_takes_is_a_number_for_a_study(tmp_path: Path, text: str) -> None:
    typed = study_from([f"lr0={text}"], "a.yaml,b.yaml", {"data": "d.yaml"})
    assert typed.train["lr0"] == pytest.approx(1e-4)
    file = tmp_path / "s.yaml"
    file.write_text(f"arms: [a.yaml, b.yaml]\ndata: d.yaml\ntrain: {{lr0: {text}}}\n")
    assert study_from([str(file)], None, {}).train["lr0"] == pytest.approx(1e-4)
    with pytest.raises(YoloAttnError, match="lr0 '1e-x'"):
        study_from(["lr0=1e-x"], "a.yaml,b.yaml", {"data": "d.yaml"})


def test_an_error_of_the_seam_survives_a_trip_to_another_process() -> None:
    error = UnexpectedHostError("parse_model", "one function")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UnexpectedHostError and str(copy) == str(error)


def test_a_study_is_named_after_its_arms_and_its_data(tmp_path: Path) -> None:
    make_smallshapes(
        tmp_path / "shapes", image_size=64, train_images=2, val_images=1, object_size=(6, 9)
    )

    def name_of(models: str) -> str:
        words = ["ablate", "--models", models, "--data", str(tmp_path / "shapes" / "data.yaml")]
        words += ["--project", str(tmp_path / "runs"), "--dry-run", "--json", "imgsz=64"]
        result = CliRunner().invoke(app, words)
        return json.loads(result.stdout)["study"]["name"]

    assert name_of("yolov8n.yaml,yolov8n-gc.yaml") == "yolov8n-vs-yolov8n-gc-on-shapes"
    assert name_of("yolov8n.yaml,yolov8n-se.yaml") == "yolov8n-vs-yolov8n-se-on-shapes"


def test_classes_of_a_training_do_not_go_with_slices(tmp_path: Path) -> None:
    pytest.importorskip("sahi")
    arms = [{"model": "yolov8n.yaml"}, {"model": "yolov8n.yaml", "slice": 64}]
    for train in ({"single_cls": True}, {"classes": [0]}):
        study = from_dict({"arms": arms, "data": "d.yaml", "train": train})
        with pytest.raises(YoloAttnError, match="does not go with an arm that predicts slices"):
            plan_study(study)
