"""Property tests over every registered name: no block can dodge them."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from torch import Tensor, nn

from yolo_attn import block_info, create, list_blocks
from yolo_attn.errors import YoloAttnError
from yolo_attn.registry import list_layers

from .layer_variants import EQUAL_WIDTHS, EVEN_ONLY, LAYER_VARIANTS, LINEAR_TAILS, output_size

WIDTHS = (16, 24, 40, 64, 72, 96, 160, 256)
SIZES = ((20, 20), (13, 17), (5, 5), (1, 1))
# Options that take another path through a block than its defaults; "Name:key=value,..." in the test
# ids.
VARIANTS = {
    "NonLocal": [
        {"mode": "gaussian"},
        {"mode": "gaussian", "sub_sample": "after"},
        {"mode": "dot_product"},
        {"mode": "concatenation"},
        {"mode": "concatenation", "sub_sample": "after", "norm": "none"},
        {"scale": "sqrt_d", "sub_sample": "before", "norm": "none"},
    ],
    "GlobalContext": [{"pooling": "avg"}, {"fusion": "mul"}, {"fusion": "both"}],
    "SE": [{"pool": "avg_max", "norm": "bn", "act": "silu", "gate": "hard_sigmoid", "bias": False}],
    "SEv2": [{"residual": False}],
    "SK": [
        {"split_input": True, "groups": 1, "rd_channels": 8},
        {"keep_3x3": False, "kernel_size": [1, 3, 5]},
    ],
    "CBAM": [
        {"norm": "bn", "pools": ["avg", "max", "lp", "lse"]},
        {"spatial": False},
        {"bias": False, "rd_min": 1},
    ],
    "CoordAtt": [{"act": "relu", "bias": False}, {"act": "silu"}],
    "ChannelGate": [{"pools": ["max", "lse"], "rd_channels": 8}],
    "SpatialGate": [{"norm": "bn", "kernel_size": 3}],
    "GAM": [
        {"groups": 4, "shuffle": 4, "channel_gate": "none"},
        {"padding": "replicate", "channel_gate": "none"},
    ],
    "ChannelGram": [{"sign": "minus"}],
    "DANet": [{"outputs": "all", "sign": "minus", "dropout": 0.1}, {"out_channels": 24}],
    "CrissCross": [{"recurrence": 1}, {"recurrence": 3, "rd_channels": 5}],
    "APNB": [
        {"units": 2, "value_channels": 6, "pool_sizes": [1, 2], "dropout": 0.05},
        {"sampling": "max"},
    ],
    "AFNB": [{"units": 2, "out_channels": 24, "rd_channels": 6}, {"sampling": "both"}],
    "BiFormer": [
        {"attention_only": True},
        {"border": "bias", "routing": "soft", "n_win": 3},
        {"border": "zero", "topk": 1, "side_dwconv": 0, "before_attn_dwconv": 0},
        {"kv_downsample_mode": "ada_maxpool", "kv_per_win": 2, "n_win": 3, "mlp_dwconv": True},
    ],
    "Container": [
        {"form": "cblock", "kernel_size": 3, "mlp_ratio": 2},
        {"form": "mixer_core", "num_heads": 4},
        {"form": "pam", "size": 16},
        {"form": "pam", "size": [6, 9], "qkv_bias": False},
        {"form": "general"},
        {"form": "general", "static": "dense", "size": [16, 16]},
        {"form": "transformer", "qk_scale": 0.5},
        {"form": "depthwise"},
        {"form": "mlp_mixer", "size": [20, 12]},
    ],
    "RevColumns": [
        {"columns": 2, "drop_path": 0.05, "kernel_size": 5, "depths": [1, 2, 1, 1]},
        {"reversible": False, "widths": [8, 16, 24, 40]},
        {"columns": 2, "layer_scale_init": 0},
    ],
    "RevColAttnFusion": [{"context": False, "rd_channels": 4}],
    "DoubleAttention": [
        {"form": "projected", "descriptors": 40},
        {"form": "plain", "rd_channels": 6, "descriptors": 5},
        {"descriptors": 40},
    ],
    "SimAM": [{"e_lambda": 0.1, "correction": 1}],
    "EMA": [{"factor": 8}, {"factor": 1}],
    "EMAU": [{"bases": 5, "steps": 1, "momentum": 1.0}],
    "LSK": [{"form": "encoder", "mlp_ratio": 2.0, "dropout": 0.1, "drop_path": 0.1}],
    "PPA": [
        {"patch_mean": "memory", "border": "drop", "dropout": 0.0},
        {"out_channels": 24},
    ],
    "DASI": [{"out_channels": 24}],
    "MDCR": [
        {"out_channels": 24, "groups": 128, "rates": [1, 2, 3, 4]},
        {"norm": "none", "activation": False},
        {"stats": "shared"},
    ],
    "FPTSelf": [
        {"num_heads": 2, "n_mix": 4, "prior": "query", "concat": True},
        {"kq_transform": "dffn", "pooling": False, "n_mix": 1},
        {"kq_transform": "ffn", "rd_ratio": 0.5, "value_channels": 12},
    ],
    "FPTGround": [
        {"n_mix": 1, "residual": False},
        {"mode": "embedded", "norm": "none"},
        {"mode": "dot"},
        {"mode": "concatenate"},
        {"mode": "local"},
        {"mode": "local", "kernel_size": 5, "value_mix": 3},
    ],
    "FPTRender": [{"order": "conv_first"}],
    "FcaNet": [{"frequencies": "low32", "dct_h": 14, "dct_w": 5}],
    **LAYER_VARIANTS,
}
# Blocks whose paper lets no gradient through a part.
GRADIENT_CUT = {"EMAU": "the EM steps run without gradient, as the authors intend"}
SOFT_CUT = "soft routing weighs regions by means that get no gradient, as the authors have it"
BLOCKS = [*list_blocks(), *list_layers()]
CASES = [(name, options) for name in BLOCKS for options in ({}, *VARIANTS.get(name, ()))]
each_block = pytest.mark.parametrize("name", BLOCKS)
each_case = pytest.mark.parametrize(
    ("name", "options"),
    CASES,
    ids=[f"{n}:{','.join(f'{k}={v}' for k, v in o.items())}" if o else n for n, o in CASES],
)


def channels_of(name: str, width: int) -> int | list[int]:
    """Channels of the inputs: one width, or widths that differ from level to level."""
    info = block_info(name)
    if not info.takes_list:
        return 3 if width == 0 else width
    factors = (1, 1, 1) if name in EQUAL_WIDTHS else (1, 2, 3)
    return [width * factors[i % 3] for i in range(max(info.min_inputs, min(3, info.max_inputs)))]


def inputs_of(
    name: str, channels: int | list[int], size=(8, 8), batch=2, dtype=torch.float32, **kw
):
    """Random input maps of the sizes that the block declares."""
    info = block_info(name)
    if isinstance(channels, int):
        return torch.randn(batch, channels, *size, dtype=dtype, **kw)
    levels = [*info.levels, *[info.levels[-1] if info.levels else 1.0] * len(channels)]
    return [
        torch.randn(
            batch, c, *(max(1, -int(-side * level // 1)) for side in size), dtype=dtype, **kw
        )
        for c, level in zip(channels, levels)
    ]


def build(
    name: str, options: dict, width: int = 32, random: bool = True
) -> tuple[nn.Module, int | list[int]]:
    """The block; `random` moves every parameter off its start, where gradients may vanish."""
    torch.manual_seed(0)
    channels = channels_of(name, width)
    block = create(name, channels, **options)
    if random:
        with torch.no_grad():
            for p in block.parameters():
                p.add_(torch.randn_like(p) * 0.1)
    return block, channels


def outputs(y: Tensor | list[Tensor]) -> list[Tensor]:
    return [y] if isinstance(y, Tensor) else list(y)


def leaves(x: Tensor | list[Tensor]) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else x


@each_case
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_any_width_and_any_size(name: str, options: dict, size: tuple[int, int]) -> None:
    for width in WIDTHS:
        block, channels = build(name, options, width)
        block.eval()
        x = inputs_of(name, channels, size)
        odd = any(side % 2 for side in size)
        if min(size) < block_info(name).min_size or (odd and name in EVEN_ONLY):
            with pytest.raises(YoloAttnError, match=name):
                block(x)
            continue
        before = [t.clone() for t in leaves(x)]
        ys = outputs(block(x))
        declared = (
            block.out_channels if isinstance(block.out_channels, list) else [block.out_channels]
        )
        assert [y.shape[1] for y in ys] == declared
        if len(ys) == 1:
            assert ys[0].shape[2:] == output_size(name, options, leaves(x)[0].shape[2:])
        assert all(torch.isfinite(y).all() for y in ys)
        assert all(torch.equal(a, b) for a, b in zip(leaves(x), before)), (
            "the block wrote into its input"
        )


@each_case
def test_one_image_does_not_depend_on_the_others_in_eval(name: str, options: dict) -> None:
    block, channels = build(name, options)
    block.eval().double()
    x = inputs_of(name, channels, (16, 16), batch=4, dtype=torch.float64)
    together = outputs(block(x))
    for i in range(4):
        alone = outputs(block(x[i : i + 1] if isinstance(x, Tensor) else [t[i : i + 1] for t in x]))
        for a, b in zip(alone, together):
            torch.testing.assert_close(a, b[i : i + 1], rtol=1e-9, atol=1e-9)


@each_case
def test_every_parameter_gets_a_gradient(name: str, options: dict) -> None:
    block, channels = build(name, options)
    block.double()
    x = inputs_of(name, channels, (16, 16), dtype=torch.float64, requires_grad=True)
    sum((y * torch.randn_like(y)).sum() for y in outputs(block.train()(x))).backward()
    dead = set(block_info(name).dead_parameters)
    size = {n: 0.0 if p.grad is None else p.grad.norm().item() for n, p in block.named_parameters()}
    # A gradient that cancels is rounding, 1e-16 of the others or by luck 0; the smallest true one
    # is 4e-7 of the largest.
    without = {n for n, s in size.items() if s <= 1e-11 * max(size.values())}
    if options and name in LINEAR_TAILS:
        dead |= {n for n in size if re.fullmatch(LINEAR_TAILS[name], n)}
    # The declaration is that of the default options.
    assert without == dead or (options and without < dead), f"{sorted(without)}; declared: {dead}"


@each_case
def test_the_gradient_of_one_image_is_that_of_finite_differences(name: str, options: dict) -> None:
    if name in GRADIENT_CUT:
        pytest.skip(GRADIENT_CUT[name])
    if options.get("routing") == "soft":
        pytest.skip(SOFT_CUT)
    block, channels = build(name, options)
    block.double().train()
    kwargs = {"batch": 1, "dtype": torch.float64}
    x, step = ([t] if isinstance(t, Tensor) else t for t in (
        inputs_of(name, channels, (12, 14), **kwargs), inputs_of(name, channels, (12, 14), **kwargs)
    ))  # fmt: skip
    weights: list[Tensor] = []

    def value(shift: float) -> Tensor:
        moved = [t + shift * s for t, s in zip(x, step)]
        torch.manual_seed(3)  # dropout
        ys = outputs(block(moved if block_info(name).takes_list else moved[0]))
        if not weights:
            weights.extend(torch.randn_like(y) for y in ys)
        return sum((y * w).sum() for y, w in zip(ys, weights))

    for t in x:
        t.requires_grad_()
    grads = torch.autograd.grad(value(0.0), x)
    slope = sum((g * s).sum() for g, s in zip(grads, step))
    with torch.no_grad():
        measured = (value(1e-6) - value(-1e-6)) / 2e-6
    # Where a ReLU or a maximum changes sides within the step, a small error is right.
    torch.testing.assert_close(slope, measured, rtol=1e-3, atol=1e-4)


@each_case
def test_trains_with_a_batch_of_one_image(name: str, options: dict) -> None:
    block, channels = build(name, options)
    ys = outputs(block.train()(inputs_of(name, channels, (16, 16), batch=1, requires_grad=True)))
    sum(y.sum() for y in ys).backward()
    assert all(torch.isfinite(y).all() for y in ys)


@each_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_finite_in_half_precision_with_large_activations(
    name: str, options: dict, dtype: torch.dtype
) -> None:
    block, channels = build(name, options, random=False)
    x = inputs_of(name, channels, (16, 16), dtype=dtype)
    x = x * 100 if isinstance(x, Tensor) else [t * 100 for t in x]
    for y in outputs(copy.deepcopy(block).to(dtype).eval()(x)):
        assert y.dtype == dtype
        assert torch.isfinite(y).all()
    x = inputs_of(name, channels, (16, 16), requires_grad=True)
    x = x * 100 if isinstance(x, Tensor) else [t * 100 for t in x]
    with torch.autocast("cpu", dtype=dtype):
        ys = outputs(block.train()(x))
        assert all(torch.isfinite(y).all() for y in ys)
        sum(y.float().mean() for y in ys).backward()
    assert all(torch.isfinite(p.grad).all() for p in block.parameters() if p.grad is not None)


@each_case
def test_copies_equal_the_original(name: str, options: dict) -> None:
    block, channels = build(name, options)
    x = inputs_of(name, channels, (16, 16))
    outputs(
        block.train()(x)
    )  # a forward with a graph must leave nothing behind that cannot be copied
    block.eval()
    fresh, _ = build(name, options, random=False)
    fresh.load_state_dict(block.state_dict())
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block)), fresh.eval()):
        for a, b in zip(outputs(other(x)), outputs(block(x))):
            assert torch.equal(a, b)


@each_case
def test_survives_what_ultralytics_does_to_a_checkpoint(name: str, options: dict) -> None:
    """Half precision on disk, `inplace` flags forced on, every parameter made trainable."""
    block, channels = build(name, options)
    block.eval()
    x = inputs_of(name, channels, (16, 16))
    state = {
        k: v.half().float() if v.is_floating_point() else v for k, v in block.state_dict().items()
    }
    block.load_state_dict(state)
    before = [y.clone() for y in outputs(block(x))]
    for module in block.modules():
        if hasattr(module, "inplace"):
            module.inplace = True
    for a, b in zip(outputs(block(x)), before):
        assert torch.equal(a, b)
    for key, value in state.items():
        assert torch.isfinite(value).all(), f"{key} is not finite in float16"
    for key, buffer in block.named_buffers():
        assert not buffer.requires_grad, key
    for key, parameter in block.named_parameters():
        assert parameter.requires_grad, f"{key}: a fixed tensor must be a buffer"
        assert parameter.ndim in (1, 2, 4), (
            f"{key} has {parameter.ndim} dimensions: MuSGD of 8.4.0 refuses it"
        )


@each_case
def test_forward_on_the_meta_device(name: str, options: dict) -> None:
    with torch.device("meta"):
        block = create(name, channels_of(name, 32), **options)
        x = inputs_of(name, channels_of(name, 32), (16, 16))
        assert all(y.is_meta for y in outputs(block(x)))


@each_case
def test_channels_last_gives_the_same(name: str, options: dict) -> None:
    block, channels = build(name, options)
    block.eval()
    x = inputs_of(name, channels, (16, 16))
    expected = outputs(block(x))
    block = block.to(memory_format=torch.channels_last)
    last = [t.to(memory_format=torch.channels_last) for t in leaves(x)]
    for a, b in zip(outputs(block(last[0] if isinstance(x, Tensor) else last)), expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@each_case
def test_deterministic_algorithms(name: str, options: dict) -> None:
    block, channels = build(name, options)
    odd = block_info(name).levels == () and name not in EVEN_ONLY
    x = inputs_of(name, channels, (13, 17) if odd else (16, 16))
    for t in leaves(x):
        t.requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        sum(y.sum() for y in outputs(block(x))).backward()
    finally:
        torch.use_deterministic_algorithms(False)


@each_case
def test_identity_at_the_start_where_declared(name: str, options: dict) -> None:
    block, channels = build(name, options, random=False)
    x = inputs_of(name, channels, (16, 16))
    first = leaves(x)[0]
    for mode in (True, False):
        y = outputs(block.train(mode)(x))[0]
        same = y.shape == first.shape and torch.equal(y, first)
        declared = getattr(block, "starts_as_identity", block_info(name).identity_at_start)
        assert same == declared and (options or declared == block_info(name).identity_at_start)
    zero = block.zero_started() if hasattr(block, "zero_started") else None
    assert (zero is not None) == declared, "zero_started() tells what makes it the identity"
    if zero is not None:
        assert not zero.any()
        with torch.no_grad():  # zero may be a multiple of the parameter
            for parameter in block.parameters():
                parameter.add_(0.5 * (parameter.numel() > 0 and not parameter.any()))
        assert bool(block.zero_started().any())
        assert not torch.equal(outputs(block(x))[0], first)


@each_case
def test_a_training_step_lowers_a_loss(name: str, options: dict) -> None:
    block, channels = build(name, options)
    # A gate of few weights changes the loss by less than float32 resolves.
    block.double()
    x = inputs_of(name, channels, (16, 16), batch=4, dtype=torch.float64)
    targets = [torch.randn_like(y) for y in outputs(block(x))]
    if not list(block.parameters()):
        pytest.skip("no parameters to train")
    rate, steps = 1e-3, 5
    optimizer = torch.optim.SGD(block.parameters(), lr=rate)
    losses, slopes = [], []
    for _ in range(steps + 1):
        torch.manual_seed(0)  # the same channels are dropped in every step
        loss = sum(((y - t) ** 2).mean() for y, t in zip(outputs(block(x)), targets))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        slopes.append(
            sum(p.grad.square().sum().item() for p in block.parameters() if p.grad is not None)
        )
        optimizer.step()
    # So much lower as the gradient promises; a third of it where a step is too long (LSK).
    assert losses[0] - losses[-1] > 0.1 * rate * steps * slopes[0] > 0
