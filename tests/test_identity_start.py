"""IdentityStart: the input to the bit before training, the block itself with a gate of 1."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor

from yolo_attn import block_info, create, list_blocks
from yolo_attn.blocks.identity_start import IdentityStart
from yolo_attn.errors import YoloAttnError

from .test_blocks import CASES, channels_of, inputs_of, leaves
from .transfer_harness import detection, lively, overlay

WIDTH = 16


def is_wrapped(name: str, options: dict) -> bool:
    """Whether the seam wraps the block: it keeps the width and does not start as the identity."""
    info = block_info(name)
    channels = channels_of(name, WIDTH)
    first = channels if isinstance(channels, int) else channels[0]
    block = create(name, channels, **options)
    starts = getattr(block, "starts_as_identity", info.identity_at_start)
    return not info.layer and not starts and getattr(block, "out_channels", first) == first


WRAPPED = [(name, options) for name, options in CASES if is_wrapped(name, options)]
each_case = pytest.mark.parametrize(
    ("name", "options"),
    WRAPPED,
    ids=[f"{n}:{','.join(f'{k}={v}' for k, v in o.items())}" if o else n for n, o in WRAPPED],
)


def wrapped(
    name: str, options: dict, scalar: bool = False
) -> tuple[IdentityStart, int | list[int]]:
    """The block behind its gate; its parameters are off their start, where its branches vanish."""
    torch.manual_seed(0)
    info, channels = block_info(name), channels_of(name, WIDTH)
    module = IdentityStart(info.cls, channels, info.bind([options]), scalar)
    with torch.no_grad():
        for parameter in module.block.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module, channels


def test_every_block_that_is_not_the_identity_is_among_the_cases() -> None:
    names = {name for name, _ in WRAPPED}
    missing = {n for n in list_blocks() if not block_info(n).identity_at_start} - names
    for name in missing:  # they change the width or have several outputs
        channels = channels_of(name, WIDTH)
        with pytest.raises(YoloAttnError, match=f"{name}: identity_start needs"):
            IdentityStart(block_info(name).cls, channels, [])
    assert len(names) > len(missing)


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_it_is_the_identity_to_the_bit(
    name: str, options: dict, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    module, channels = wrapped(name, options)
    module.to(dtype).to(memory_format=layout).eval()
    x = inputs_of(name, channels, (16, 16), dtype=dtype)
    x = (
        x.contiguous(memory_format=layout)
        if isinstance(x, Tensor)
        else [t.contiguous(memory_format=layout) for t in x]
    )
    with torch.no_grad():
        y = module(x)
    first = leaves(x)[0]
    assert y.dtype == dtype and torch.equal(y, first)
    assert y.is_contiguous(memory_format=layout)


@each_case
def test_under_autocast_too(name: str, options: dict) -> None:
    module, channels = wrapped(name, options)
    x = inputs_of(name, channels, (16, 16), dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, leaves(x)[0])


@each_case
def test_the_gate_has_a_gradient_at_once_and_the_block_after_a_step(
    name: str, options: dict
) -> None:
    module, channels = wrapped(name, options)
    x = inputs_of(name, channels, (16, 16), batch=4)
    target = torch.randn_like(leaves(x)[0])
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)

    def backward() -> dict[str, float]:
        optimizer.zero_grad()
        ((module(x) - target) ** 2).mean().backward()
        return {
            key: 0.0 if p.grad is None else float(p.grad.abs().max())
            for key, p in module.named_parameters()
        }

    before = backward()
    assert before.pop("g") > 0 and not any(before.values())
    optimizer.step()
    after = backward()
    after.pop("g")
    assert not after or any(after.values())
    assert module.strength() > 0


@each_case
def test_with_a_gate_of_one_it_is_the_block(name: str, options: dict) -> None:
    module, channels = wrapped(name, options)
    module.eval()
    with torch.no_grad():
        module.g.fill_(1 / module.step)
        x = inputs_of(name, channels, (16, 16))
        assert torch.equal(module(x), module.block(x))
    assert module.strength() == 1.0


def test_the_strength_is_the_mean_of_the_gates() -> None:
    module, _ = wrapped("SE", {})
    assert module.strength() == 0.0 and module.g.shape == (WIDTH,)
    with torch.no_grad():
        module.g[: WIDTH // 2] = -0.04
    assert module.strength() == pytest.approx(0.2)


def old_formula(module: IdentityStart, x: Tensor) -> Tensor:
    """What 0.1 computed."""
    return x + module.g * (module.block(x) - x)


def test_the_form_of_before_0_2_is_still_there() -> None:
    module, channels = wrapped("SE", {}, scalar=True)
    x = inputs_of("SE", channels)
    assert module.g.shape == (1,) and torch.equal(module(x), x)
    with torch.no_grad():
        module.g.fill_(0.19)
    torch.testing.assert_close(module(x), old_formula(module, x))
    assert module.strength() == pytest.approx(0.19)


def test_a_pickle_of_before_0_2_goes_on_as_it_was() -> None:
    module, channels = wrapped("SE", {}, scalar=True)
    with torch.no_grad():
        module.g.fill_(0.19)
    del module.__dict__["step"]  # 0.1 had none
    stored = io.BytesIO()
    torch.save(module, stored)
    stored.seek(0)
    again = torch.load(stored, weights_only=False)
    x = inputs_of("SE", channels)
    torch.testing.assert_close(again(x), old_formula(module, x))
    assert again.strength() == pytest.approx(0.19)
    assert torch.equal(copy.deepcopy(again)(x), again(x))


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_in_a_model_predictions_are_the_base_s_to_the_bit(fused: bool, tmp_path: Path) -> None:
    base = lively(detection("yolov8n.yaml")).eval()
    names = [n for n in list_blocks() if block_info(n).inputs == 1]
    rows = "".join(
        f"  - [{('P3', 'P4', 'N3', 'N4')[i % 4]}, 1, {name}, []]\n"
        for i, name in enumerate(n for n in names if any(n == w for w, _ in WRAPPED))
    )
    text = f"identity_start: true\ninsert:\n{rows}"
    model = detection(overlay(tmp_path, "yolov8n", text)).eval()
    assert sum(isinstance(m, IdentityStart) for m in model.modules()) > 15
    model.load(base)
    image = torch.rand(1, 3, 64, 96)
    if fused:
        base, model = base.fuse(), model.fuse()
    with torch.no_grad():
        assert torch.equal(model(image)[0], base(image)[0])


def test_old_gates_do_not_pass_for_new_ones() -> None:
    """Times ten they would be another function: they are left behind."""
    old = {"g": torch.full((1,), 0.19)}
    module, _ = wrapped("SE", {})
    with pytest.raises(RuntimeError, match="size mismatch for g"):
        module.load_state_dict(old, strict=False)
