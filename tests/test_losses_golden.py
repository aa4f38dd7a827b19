"""The losses against golden numbers: ``--loss-golden DIR`` runs another folder of the same layout.

float64 at each file's own tolerance (1e-12 for this project's own definitions), float32 at 1e-4.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from yolo_attn.errors import YoloAttnError
from yolo_attn.losses import box_loss, class_loss
from yolo_attn.losses.options import expand

FLOAT32 = 1e-4


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        data = {key: arrays[key] for key in arrays.files}
    return data, json.loads(str(data["config"]))


def off(ours: torch.Tensor, theirs: np.ndarray, rows: np.ndarray) -> float:
    """Largest difference in these rows, relative to max(1, abs)."""
    difference = np.abs(ours.detach().double().numpy() - theirs) / np.maximum(1, np.abs(theirs))
    return float(difference[rows].max(initial=0))


def test_every_golden_file_is_of_a_kind_that_is_compared(any_loss_golden: Path) -> None:
    assert any_loss_golden.name.startswith(("c_", "r_", "cls_", "seam_"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.filterwarnings("ignore:loss")
def test_box_losses_agree_with_golden_numbers(box_golden: Path, dtype: torch.dtype) -> None:
    data, config = read(box_golden)
    loss = box_loss(config["loss"])
    loss.state = data["state"][0]
    tolerance = {key: config[f"tol_{key}"] for key in ("loss", "grad")}
    if dtype == torch.float32:
        tolerance = {key: value and max(value, FLOAT32) for key, value in tolerance.items()}
    if data["loss"].ndim == 1:  # not a sequence
        for key in ("pred", "target", "loss", "gpred", "finite", "gmask"):
            data[key] = data[key][None]
    assert len(data["loss"]) == config["steps"]
    stride, imgsz = torch.tensor(data["stride"], dtype=dtype), tuple(data["imgsz"])
    for k in range(config["steps"]):
        pred = torch.tensor(data["pred"][k], dtype=dtype, requires_grad=True)
        target = torch.tensor(data["target"][k], dtype=dtype)
        ours = loss(pred, target, stride, imgsz, train=config["train"])
        ours.sum().backward()
        grad = pred.grad
        assert ours.dtype == dtype and ours.shape == (len(pred),)
        assert grad is not None and ours.isfinite().all() and grad.isfinite().all()
        # None: another formula, kept to show the size of the deviation.
        if tolerance["loss"] is not None:
            assert off(ours, data["loss"][k], data["finite"][k]) <= tolerance["loss"]
            # The references move a mean in version 1, too, which does not use it.
            if config["loss"].get("wise", {}).get("version") != 1:
                assert abs(loss.state - data["state"][k + 1]) <= tolerance["loss"]
        if tolerance["grad"] is not None:
            assert off(grad, data["gpred"][k], data["gmask"][k]) <= tolerance["grad"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_class_losses_agree_with_golden_numbers(class_golden: Path, dtype: torch.dtype) -> None:
    data, config = read(class_golden)
    spec = dict(config["loss"])
    inputs, mu = spec.pop("inputs", None), spec.pop("mu", None)
    loss = class_loss(spec)
    if inputs:
        loss.state = data["state"][0]
        for value, after in zip(inputs, data["state"][1:]):
            loss.update(value)
            assert loss.state == pytest.approx(after, abs=1e-12)
    elif mu is not None:
        loss.state = mu
    logits = torch.tensor(data["logits"], dtype=dtype, requires_grad=True)
    ours = loss(logits, torch.tensor(data["target"], dtype=dtype))
    ours.sum().backward()
    assert ours.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()
    tolerances = [config["tol_loss"], config["tol_grad"]]
    if dtype == torch.float32:
        tolerances = [max(t, FLOAT32) for t in tolerances]
    assert off(ours, data["loss"], data["finite"]) <= tolerances[0]
    assert off(logits.grad, data["glogits"], data["finite"]) <= tolerances[1]


@pytest.fixture
def grammar(request: pytest.FixtureRequest) -> dict[str, Any]:
    folder = Path(request.config.getoption("--loss-golden"))
    found: dict[str, Any] = json.loads((folder / "grammar.json").read_text(encoding="utf-8"))
    return found


def test_the_grammar_accepts_and_expands(grammar: dict[str, Any]) -> None:
    for value, expanded in grammar["accept"]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert box_loss(value).spec == expanded, value


def test_what_is_expanded_expands_to_itself(grammar: dict[str, Any]) -> None:
    for value, _ in grammar["accept"]:
        spec = expand(value).spec
        assert expand(spec).spec == spec


def test_the_grammar_refuses(grammar: dict[str, Any]) -> None:
    for value in grammar["refuse"]:
        with pytest.raises(YoloAttnError, match="accepted") as caught:
            box_loss(value)
        assert "\n" not in str(caught.value), value


def test_the_grammar_warns(grammar: dict[str, Any]) -> None:
    for value in grammar["warn"]:
        with pytest.warns(UserWarning, match="loss"):
            box_loss(value)
