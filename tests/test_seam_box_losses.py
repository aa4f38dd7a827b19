"""The key ``loss`` in Ultralytics' criteria: the chosen sum, stock models untouched, the state."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics.nn import tasks
from ultralytics.utils import DEFAULT_CFG
from ultralytics.utils.loss import BboxLoss

from tests import loss_steps
from tests.processes import python
from tests.test_losses_golden import FLOAT32, off, read
from yolo_attn.errors import YoloAttnError
from yolo_attn.losses.options import expand
from yolo_attn.seam import box_losses, loss_state
from yolo_attn.seam.box_losses import CHOICE

WORKER = str(Path(loss_steps.__file__))
KINDS = [k for k in loss_steps.MODELS if k != "obb" and loss_steps.exists(k)]
WISE = {"box": "wiou", "wise": {"version": 3, "momentum": 0.5}}


def loss_of(kind: str, net: torch.nn.Module, **batch: Any) -> tuple[torch.Tensor, list[float]]:
    return loss_steps.total(net.loss(loss_steps.batch(kind, **batch)))


def steps(*arguments: str, **environment: str) -> list[str]:
    # One thread: small maps gain nothing from more, and the same sums in the same order.
    return python(WORKER, *arguments, OMP_NUM_THREADS="1", **environment).stdout.splitlines()


def criteria(net: torch.nn.Module) -> list[Any]:
    found = net.criterion
    return [found.one2many, found.one2one] if hasattr(found, "one2one") else [found]


# The whole weighted sum against golden numbers.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("passed", [True, False], ids=["sizes passed", "sizes of the anchors"])
def test_the_weighted_sum_agrees_with_golden_numbers(
    sum_golden: Path, dtype: torch.dtype, passed: bool
) -> None:
    data, config = read(sum_golden)
    spec = expand(config["loss"]).spec
    module = BboxLoss(16)
    strides = [8.0, 16.0, 32.0]
    state = loss_state.start_of(spec)
    module.__dict__[CHOICE] = {"spec": spec, "strides": strides, "state": state}
    t = {k: torch.tensor(v, dtype=dtype) for k, v in data.items() if v.dtype.kind == "f"}
    foreground = torch.tensor(data["fg_mask"])
    pred = t["pred_bboxes"].requires_grad_()
    stock = (torch.zeros(()), torch.tensor(3.0))
    seven = (
        *(torch.zeros(()), pred, t["anchor_points"], t["target_bboxes"], t["target_scores"]),
        *(t["target_scores_sum"], foreground),
    )
    sizes = (t["imgsz"], t["stride"]) if passed else ()
    if not passed and not np.isin(data["stride"], strides).all():
        pytest.skip("other strides")
    loss, dfl = box_losses.forward(lambda *_: stock, module, *seven, *sizes)
    assert dfl is stock[1]
    if spec == {"box": "ciou"}:
        assert loss is stock[0]  # stock code's own
        spec = {"box": "ciou", "focaler": [0.0, 1.0]}
        module.__dict__[CHOICE]["spec"] = spec
        loss, _ = box_losses.forward(lambda *_: stock, module, *seven, *sizes)
    (grad,) = torch.autograd.grad(loss, pred)
    tolerance = max(config["tol_loss"], FLOAT32 if dtype == torch.float32 else 0)
    every = np.ones((), bool)
    assert off(loss, data["loss_iou"], every) <= tolerance
    assert off(grad, data["gpred"], np.ones(data["gpred"].shape, bool)) <= tolerance
    if state:
        assert abs(state["mean"] - data["state"][1]) <= tolerance
    if not foreground.any():
        assert loss == 0 and not grad.any()


# Who has no key `loss`, or a key that says what Ultralytics does anyway, notices nothing.
def test_three_training_steps_of_stock_models_are_stock_to_the_bit() -> None:
    kinds = [k for k in loss_steps.MODELS if loss_steps.exists(k)]
    stock = steps(*kinds, YOLO_ATTN_DISABLE="1")
    hooked = steps(*kinds)
    assert len(stock) == len(kinds) and hooked == stock


def test_a_key_that_says_ciou_and_bce_takes_the_stock_path() -> None:
    values = [{"box": "ciou", "cls": "bce"}, "ciou"]
    arguments = [f"{k}={json.dumps(v)}" for k in ("detect", "segment") for v in values]
    lines = steps("detect", *arguments)
    told = [line for line in lines if line.startswith("yolo_attn loss")]
    prints = [line.split("\t")[1:] for line in lines if "\t" in line]
    assert len(told) == len(arguments) and all("own code" in line for line in told)
    assert prints[0] == prints[1] == prints[2] and prints[3] == prints[4]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_trains_with_the_choice(kind: str) -> None:
    stock, stock_items = loss_of(kind, loss_steps.model(kind))
    # The same value by our code: the path is taken, with the right boxes, weights and sum.
    same, items = loss_of(kind, loss_steps.model(kind, loss={"box": "ciou", "focaler": [0, 1]}))
    assert items == pytest.approx(stock_items, rel=1e-5)
    net = loss_steps.model(kind, loss={"box": "giou", "nwd": 0.5, "cls": "quality_focal"})
    other, items = loss_of(kind, net)
    assert [a != pytest.approx(b, rel=1e-4) for a, b in zip(stock_items, items)].count(True) == 2
    other.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    assert [CHOICE in c.bbox_loss.__dict__ for c in criteria(net)] == [True] * len(criteria(net))


@pytest.mark.parametrize("kind", ["detect", "26"])
def test_a_batch_without_objects_changes_no_state(kind: str) -> None:
    if not loss_steps.exists(kind):
        pytest.skip("no such model in this version")
    net = loss_steps.model(kind, loss=WISE)
    value, _ = loss_of(kind, net, objects=0)
    value.backward()
    assert value.isfinite()
    assert {tuple(s.values()) for s in net.yaml["loss_state"].values()} == {(1.0,)}


def test_sizes_read_from_anchors_are_those_of_the_image() -> None:
    from ultralytics.utils.tal import make_anchors

    feats = [torch.zeros(1, 1, 24 // k, 40 // k) for k in (1, 2, 4)]
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        anchors, stride = make_anchors([f.to(dtype) for f in feats], [8, 16, 32], 0.5)
        found, imgsz = box_losses._sizes(anchors, {"strides": [8.0, 16.0, 32.0]})
        assert torch.equal(found, stride.flatten().float()) and imgsz == (192, 320)


# Refused when the model is built.
@pytest.mark.parametrize(
    ("name", "loss", "part"),
    [
        ("yolov8n-obb.yaml", "wiou", "loss box: a model with the head OBB"),
        ("yolov8n-obb.yaml", {"cls": "slide"}, "loss cls: a model with the head OBB"),
        ("yolov8n-cls.yaml", "wiou", "head Classify"),
        ("rtdetr-l.yaml", {"cls": "focal"}, "head RTDETRDecoder"),
        ("yolov8n.yaml", "wio", "did you mean"),
        ("yolov8n.yaml", {"box": "ciou", "scale": 1}, "belongs to box shapeiou"),
    ],
)
def test_what_the_head_would_not_train_is_refused_at_build(name: str, loss: Any, part: str) -> None:
    d = {**tasks.yaml_model_load(name), "loss": loss}
    with pytest.raises(YoloAttnError, match=part) as caught:
        tasks.parse_model(copy.deepcopy(d), 3, False)
    assert name in str(caught.value)


def test_oriented_boxes_may_choose_a_class_loss() -> None:
    net = loss_steps.model("obb", loss={"cls": "varifocal"})
    value, items = loss_of("obb", net)
    _, stock = loss_of("obb", loss_steps.model("obb"))
    assert items[0] == stock[0] and items[1] != stock[1]
    net = loss_steps.model("obb")
    net.yaml = {**net.yaml, "loss": "wiou"}  # a choice that no build has seen
    with pytest.raises(YoloAttnError, match="head OBB"):
        loss_of("obb", net)


# The running numbers.
def test_the_mean_is_in_the_yaml_and_a_new_training_starts_anew() -> None:
    d = tasks.yaml_model_load("yolov8n.yaml")
    net = tasks.DetectionModel({**d, "loss": WISE}, verbose=False)
    net.args = DEFAULT_CFG
    given = net.yaml
    loss_of("detect", net)
    first = net.yaml["loss_state"]["10"]["mean"]
    assert first != 1.0 and "loss_state" not in given, "the caller's dictionary is his own"
    net.criterion = None
    loss_of("detect", net)
    assert net.yaml["loss_state"]["10"]["mean"] == first  # from 1 again, with the same batch
    loss_of("detect", net)
    second = net.yaml["loss_state"]["10"]["mean"]
    assert second != first
    net.args = copy.copy(DEFAULT_CFG)
    net.args.resume = True
    net.criterion = net.init_criterion()
    assert net.yaml["loss_state"]["10"]["mean"] == second


def test_the_ema_validates_with_the_trained_mean_and_moves_nothing() -> None:
    net = loss_steps.model("detect", loss=WISE)
    ema = copy.deepcopy(net)
    loss_of("detect", net)
    ema.yaml = net.yaml  # as the trainer does before each validation
    trained = net.yaml["loss_state"]["10"]["mean"]
    with torch.inference_mode():
        loss_of("detect", ema)
    choices = [m.criterion.bbox_loss.__dict__[CHOICE]["state"] for m in (net, ema)]
    assert choices[0] is choices[1] and choices[0] == {"mean": trained}
    loss_of("detect", net)  # training goes on after it
    assert choices[1]["mean"] != trained


@pytest.mark.skipif(not loss_steps.exists("26"), reason="no YOLO26 in this version")
def test_both_criteria_of_an_end_to_end_model_have_a_mean_of_their_own() -> None:
    net = loss_steps.model("26", loss=WISE)
    loss_of("26", net)
    means = {key: state["mean"] for key, state in net.yaml["loss_state"].items()}
    assert set(means) == {"10", "7"} and means["10"] != means["7"]


@pytest.mark.parametrize("cls", ["slide", "ema_slide"])
def test_slide_follows_the_mean_iou_of_the_batch_before(cls: str) -> None:
    net = loss_steps.model("detect", loss={"cls": cls})
    _, first = loss_of("detect", net)
    state = net.yaml["loss_state"]["10"]
    assert -1 <= state["mu"] < 1 and first == loss_of("detect", loss_steps.model("detect"))[1]
    before = dict(state)
    with torch.no_grad():
        loss_of("detect", net)
    assert state == before


def test_a_strangers_state_is_not_trusted() -> None:
    net = loss_steps.model("detect", loss=WISE, loss_state={"10": {"mean": "a lot"}})
    with torch.no_grad():
        loss_of("detect", net)
    assert net.yaml["loss_state"]["10"] == {"mean": 1.0}


def test_the_environment_chooses_and_reaches_the_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLO_ATTN_LOSS", "{box: ciou, nwd: 0.5}")
    net = loss_steps.model("detect")
    loss_of("detect", net)
    assert net.yaml["loss"] == {"box": "ciou", "nwd": 0.5}
    assert net.criterion.bbox_loss.__dict__[CHOICE]["spec"]["nwd"] == 0.5
    monkeypatch.setenv("YOLO_ATTN_LOSS", "{box: ciou")
    with pytest.raises(YoloAttnError, match="not YAML"):
        loss_of("detect", loss_steps.model("detect"))


# Up to 8.4.60 a checkpoint holds the criterion.
def test_a_pickled_criterion_names_nothing_of_ours() -> None:
    net = loss_steps.model("detect", loss={**WISE, "cls": "slide"})
    loss_of("detect", net)
    buffer = io.BytesIO()
    torch.save({"criterion": net.criterion, "yaml": net.yaml}, buffer)
    assert b"yolo_attn.seam" not in buffer.getvalue()
    again = pickle.loads(pickle.dumps(net.criterion.bce))
    assert type(again) is torch.nn.BCEWithLogitsLoss and again.reduction == "none"
    copied = copy.deepcopy(net.criterion)
    assert type(copied.bce) is box_losses.ClassCriterion
    assert copied.bce.__dict__["box"] is copied.bbox_loss


def test_numbers_on_an_accelerator_are_written_at_the_end_of_the_epoch() -> None:
    module = BboxLoss(16)
    module.__dict__[CHOICE] = {"state": {"mean": 1.0}}
    state = module.__dict__[CHOICE]["state"]
    value = torch.tensor(0.25)
    loss_state._ON_DEVICE[module] = {"mean": value}  # what put() does for a tensor of a device
    assert state["mean"] == 1.0 and loss_state.get(module, state, "mean") is value
    loss_state.write_out()
    assert state["mean"] == 0.25
