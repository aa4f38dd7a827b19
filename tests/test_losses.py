"""Promises of the losses beyond the golden numbers: finite everywhere, float32, messages."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from yolo_attn.errors import YoloAttnError
from yolo_attn.losses import box_loss, class_loss
from yolo_attn.losses.class_options import CLASS_OPTIONS
from yolo_attn.losses.options import ALPHA_BASES, BASES, expand

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
MIXED = {"box": "ciou", "inner": 1.3, "focal": 0.5, "nwd": 0.5, "nwd_units": "grid"}
SPECS: list[Any] = [
    *BASES,
    *(f"inner-{b}" for b in BASES if b != "nwd"),
    *(f"focaler-{b}" for b in BASES if b != "nwd"),
    *(f"alpha-{b}" for b in ALPHA_BASES),
    *({"box": b, "alpha": a} for b in ALPHA_BASES for a in (0.5, 6)),
    *(f"wise-{b}" for b in BASES if b != "nwd"),
    *("wiou-v1", "wiou-v2", "focal-eiou", "wise-inner-siou", "wise-focaler-mpdiou"),
    *({"box": "shapeiou", "scale": s} for s in (1, 4)),
    *({"box": "siou", "theta": 1}, {"box": "piou2", "lambda": 5}, MIXED),
]


def made(spec: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return box_loss(spec)


def degenerate_pairs(n: int = 10_000) -> tuple[Tensor, Tensor]:
    """Points, lines, inverted, equal, touching, tiny, huge and far boxes, in every mixture."""
    g = torch.Generator().manual_seed(22)

    def boxes(inverted: bool) -> Tensor:
        centre = torch.rand(n, 2, generator=g, dtype=torch.float64) * 80
        power = torch.randint(-7, 5, (n, 2), generator=g).double()
        sides = torch.rand(n, 2, generator=g, dtype=torch.float64) * 10.0**power
        sides = torch.where(torch.rand(n, 2, generator=g) < 0.25, torch.zeros(1).double(), sides)
        if inverted:
            sides = torch.where(torch.rand(n, 2, generator=g) < 0.25, -sides, sides)
        found = torch.cat([centre - sides / 2, centre + sides / 2], 1)
        # Whole numbers make edges and centres meet exactly.
        whole = torch.rand(n, 1, generator=g) < 0.3
        return torch.where(whole, (found / 8).round(), found)

    pred, target = boxes(inverted=True), boxes(inverted=False)
    kind = torch.randint(0, 10, (n, 1), generator=g)
    pred = torch.where(kind == 0, target, pred)  # equal
    touching = torch.cat([target[:, 2:3], target[:, 1:2], target[:, 2:3] + 1, target[:, 3:]], 1)
    pred = torch.where(kind == 1, touching, pred)
    pred = torch.where(kind == 2, pred.roll(1, 0) * 500, pred)  # up to 40 000 units off
    minus_eps = torch.cat([pred[:, :3], pred[:, 1:2] - 1e-7], 1)  # its height plus eps is 0
    return torch.where(kind == 3, minus_eps, pred), target


PAIRS = degenerate_pairs()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_degenerate_pair_has_a_finite_loss_and_gradient(spec: Any, dtype: Any) -> None:
    pred, target = (boxes.clamp(-60_000, 60_000).to(dtype) for boxes in PAIRS)
    pred.requires_grad_()
    loss = made(spec)
    for stride in (1.0, 32.0):
        ours = loss(pred, target, stride, (480, 640))
        (grad,) = torch.autograd.grad(ours.sum(), pred)
        assert ours.isfinite().all() and grad.isfinite().all()
        assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert grad.dtype == dtype
    assert math.isfinite(loss.state)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_autocast_computes_in_float32(spec: Any) -> None:
    pred, target = (boxes[:50].float() for boxes in PAIRS)
    plain = made(spec)(pred, target, 8.0, (480, 640))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = made(spec)(pred, target, 8.0, (480, 640))
    assert under.dtype == torch.float32 and torch.equal(under, plain)


@pytest.mark.parametrize("name", CLASS_OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_class_losses_are_finite_at_both_ends(name: str, dtype: Any) -> None:
    z = torch.linspace(-300, 300, 61, dtype=dtype)[:, None].repeat(1, 5).requires_grad_()
    t = torch.tensor([0, 1e-4, 0.4, 0.9, 1], dtype=dtype).expand(61, 5)
    small = {key: 0.5 for key in ("gamma", "beta") if key in CLASS_OPTIONS[name]}
    for spec in (name, {"cls": name, **small}):
        loss = class_loss(spec)(z, t)
        (grad,) = torch.autograd.grad(loss.sum(), z)
        assert loss.isfinite().all() and grad.isfinite().all()
        assert loss.shape == z.shape and loss.dtype != torch.float16


@pytest.mark.parametrize("name", CLASS_OPTIONS)
def test_class_losses_leave_autocast(name: str) -> None:
    z, t = torch.randn(4, 3), torch.rand(4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = class_loss(name)(z.bfloat16(), t)
    assert torch.equal(under, class_loss(name)(z.bfloat16().float(), t))


def test_running_mean_moves_only_in_training_with_boxes() -> None:
    pred, target = (boxes[:8].clone() for boxes in PAIRS)
    loss = made({"box": "wiou", "wise": {"version": 3, "momentum": 0.5}})
    loss.state = 0.4
    loss(pred, target, train=False)
    with torch.no_grad():
        loss(pred, target)
    empty = loss(pred[:0].requires_grad_(), target[:0])
    assert empty.shape == (0,) and empty.sum() == 0
    bad = pred.clone()
    bad[0] = math.nan
    loss(bad, target)
    assert loss.state == 0.4
    loss(pred, target)
    assert 0.4 < loss.state < 1.0


def test_mean_near_zero_is_no_division_by_zero() -> None:
    loss = made("wiou")
    loss.state = 0.0
    pred = PAIRS[0][:8].clone().requires_grad_()
    assert loss(pred, PAIRS[1][:8], train=False).isfinite().all()


@pytest.mark.parametrize("base", [b for b in BASES if b != "nwd"])
def test_inner_moves_only_the_overlap_term(base: str) -> None:
    # L_inner-X = L_X + IoU - IoU_inner, for all that are a sum.
    if base in ("piou2", "wiou"):
        return
    pred, target = PAIRS[0][:200].clone(), PAIRS[1][:200].clone()
    args = (pred, target, 8.0, (480, 640))
    change = made(f"inner-{base}")(*args) - made(base)(*args)
    expected = made("inner-iou")(*args) - made("iou")(*args)
    torch.testing.assert_close(change, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ({"box": "ciou", "innr": 0.7}, "did you mean 'inner'"),
        ({"box": "cio"}, "did you mean 'ciou'"),
        ({"box": "siou", "alpha": 3}, "siou has no alpha form"),
        ({"box": "ciou", "alpha": 0}, "above 0"),
        ({"box": "ciou", "inner": 0.7, "focaler": [0, 0.9]}, "both replace the IoU"),
        ({"box": "ciou", "inner": True}, "True"),
        ({"box": "ciou", "inner": math.nan}, "nan"),
        ({"box": "ciou", "focal": 0.5, "wise": 2}, "focuses already"),
        ("focal-wiou", "wiou means wiou-v3"),
        ("ciou-v2", "belongs to wiou"),
        ("inner-inner-ciou", "no loss"),
        ("inner-ciou-giou", "no loss"),
        ({"box": "ciou", "wise": 4}, "1, 2, 3"),
        ({"box": "ciou", "wise": {"version": 3, "momentum": 2}}, "up to 1"),
        ({"box": "ciou", "wise": {"version": 3, "beta": 2}}, "unknown key 'beta'"),
        ({"box": "ciou", "nwd": 1}, "box: nwd"),
        ({"box": "siou", "theta": 0.5}, "from 1"),
        ({"box": "ciou", "cls": "focl"}, "did you mean 'focal'"),
        ({"cls": {"cls": "focal", "beta": 2}}, "no option 'beta'"),
        ({"cls": {"cls": "slide", "middle": "mu"}}, "exp(mu)"),
        ({"cls": {"gamma": 2}}, "mapping such as"),
        (None, "accepted"),
        ([], "accepted"),
    ],
)
def test_refusals_say_what_is_accepted(value: Any, part: str) -> None:
    with pytest.raises(YoloAttnError) as caught:
        expand(value)
    assert part in str(caught.value) and "accepted" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ({"box": "ciou", "inner": 1}, "no effect"),
        ({"box": "ciou", "alpha": 1}, "no effect"),
        ({"box": "iou", "inner": 0.7}, "no gradient"),
        ({"box": "nwd", "nwd_units": "grid"}, "every level"),
        ({"box": "piou2", "wise": 2}, "second time"),
        ({"box": "ciou", "wise": 1}, "no effect"),
        ({"box": "ciou", "wise": {"version": 2, "delta": 3}}, "ignored"),
    ],
)
def test_what_is_accepted_with_a_warning(value: Any, part: str) -> None:
    with pytest.warns(UserWarning, match=part):
        box_loss(value)


def test_box_defaults_to_ciou_and_alpha_1_is_no_alpha() -> None:
    assert expand({"cls": "slide"}).spec["box"] == "ciou"
    assert expand({"box": "ciou", "alpha": 1}).stock_box
    assert expand("ciou").stock_box and expand("ciou").stock_class
    assert expand({"cls": "bce"}).stock_class and not expand({"cls": "focal"}).stock_class
    assert not expand("inner-ciou").stock_box


def test_mpdiou_asks_for_the_image_size() -> None:
    with pytest.raises(YoloAttnError, match="imgsz"):
        box_loss("mpdiou")(*(boxes[:2] for boxes in PAIRS))


@pytest.mark.parametrize(
    "value", [{"wise": [3]}, {"wise": {"version": {"a": 1}}}, {"cls": {"cls": ["focal"]}}]
)
def test_lists_and_mappings_in_place_of_a_name_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(YoloAttnError, match="accepted"):
        box_loss(value)
