"""Every numeric option of every block and layer has a range, and its error says which."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch

from yolo_attn import block_info, create
from yolo_attn.errors import YoloAttnError
from yolo_attn.registry import list_layers

from .test_blocks import BLOCKS, channels_of

# What must be given besides, for the option to be used at all.
NEEDS: dict[tuple[str, str], dict[str, Any]] = {
    ("Container", "num_heads"): {"form": "transformer"},
    ("Container", "qk_scale"): {"form": "transformer"},
    ("Container", "mlp_ratio"): {"form": "cblock"},
    ("Container", "size"): {"form": "pam"},
    ("LSK", "mlp_ratio"): {"form": "encoder"},
    ("RevColumns", "num_classes"): {"supervision": "classification"},
    ("RevColumns", "image_weight"): {"supervision": "objectness"},
    ("RevColumns", "term_weight"): {"supervision": "objectness"},
}


def numeric_options() -> list[tuple[str, str]]:
    """(block, option) of all options whose annotation or default is a number, or numbers."""
    found = []
    for name in BLOCKS:
        parameters = inspect.signature(block_info(name).cls.__init__).parameters
        for option, parameter in list(parameters.items())[2:]:
            kind, default = str(parameter.annotation), parameter.default
            number = isinstance(default, (int, float)) and not isinstance(default, bool)
            if number or re.search(r"\b(int|float)\b", kind):
                found.append((name, option))
    return found


each_numeric_option = pytest.mark.parametrize(("name", "option"), numeric_options())


def build(name: str, width: int, **options: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return create(name, channels_of(name, width), **options)


def length_of(name: str, option: str) -> int | None:
    """How many numbers the option takes; None for a single one."""
    parameter = inspect.signature(block_info(name).cls.__init__).parameters[option]
    if option == "levels" and block_info(name).takes_list:
        return len(channels_of(name, 16)) - 1  # type: ignore[arg-type]
    if isinstance(parameter.default, tuple):
        return len(parameter.default)
    many = re.search(r"Sequence|list|tuple", str(parameter.annotation))
    single = str(parameter.annotation).startswith("int |")
    return 4 if many and not single else None


@each_numeric_option
def test_a_number_out_of_range_is_refused_and_the_range_said(name: str, option: str) -> None:
    count = length_of(name, option)
    for value in (-1000, 10**6, 10**9 + 1, 1e30, float("nan"), float("inf")):
        given = value if count is None else [value] * count
        with pytest.raises(YoloAttnError) as caught:
            build(name, 64, **NEEDS.get((name, option), {}), **{option: given})
        said = str(caught.value)
        assert option in said and "accepted: " in said, said


@each_numeric_option
def test_the_error_of_a_huge_number_says_the_highest(name: str, option: str) -> None:
    count = length_of(name, option)
    value = 10**7 + 1
    with pytest.raises(YoloAttnError) as caught:
        given = value if count is None else [value] * count
        build(name, 64, **NEEDS.get((name, option), {}), **{option: given})
    accepted = str(caught.value).rsplit("accepted: ", 1)[-1]
    assert re.search(r"\d", accepted) and ">=" not in accepted, accepted


RATIOS = [name for name, option in numeric_options() if option == "rd_ratio"]
RD_CHANNELS = [name for name, option in numeric_options() if option == "rd_channels"]


@pytest.mark.parametrize("name", RATIOS)
@pytest.mark.parametrize("value", [0, -0.5, 2.001, 3, 16, 64, True, "half"])
def test_a_ratio_is_above_0_and_at_most_2(name: str, value: Any) -> None:
    for rest in ({}, {"rd_channels": 8}):
        with pytest.raises(YoloAttnError, match="rd_ratio.*above 0, at most 2"):
            build(name, 64, rd_ratio=value, **rest)


@pytest.mark.parametrize("name", RATIOS)
@pytest.mark.parametrize("width", [16, 72, 256])
def test_a_ratio_within_its_range_builds(name: str, width: int) -> None:
    for ratio in (1 / 16, 1, 2):
        build(name, width, rd_ratio=ratio)


@pytest.mark.parametrize("name", RD_CHANNELS)
@pytest.mark.parametrize("width", [24, 64, 160])
def test_a_hidden_width_is_at_most_twice_the_input(name: str, width: int) -> None:
    most = max(2 * width, 32) if name == "SK" else 2 * width  # SK has a floor of 32
    build(name, width, rd_channels=2 * width)
    with pytest.raises(YoloAttnError, match=rf"rd_channels.*from 1 to {most}\b"):
        build(name, width, rd_channels=most + 2)


def test_no_rounding_gives_a_hidden_width_over_twice_the_input() -> None:
    with pytest.raises(YoloAttnError, match="hidden width of 256.*at most 32"):
        build("SE", 16, rd_divisor=256)
    with pytest.raises(YoloAttnError, match="accepted: .*128"):
        build("FPTSelf", 64, num_heads=64, n_mix=64)
    with pytest.raises(YoloAttnError, match=r"num_heads \* rd_channels=1024"):
        build("FPTSelf", 64, num_heads=16, rd_channels=64)


@each_numeric_option
def test_a_default_is_in_its_range(name: str, option: str) -> None:
    default = block_info(name).options[option]
    if default is not None:
        for width in (16, 256):
            build(name, width, **NEEDS.get((name, option), {}), **{option: default})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SimAM", {"e_lambda": "1e-4"}),
        ("SimAM", {"e_lambda": "1E-4"}),
        ("SE", {"rd_ratio": "25e-2"}),
        ("SE", {"rd_ratio": "+1e0"}),
        ("BiFormer", {"init_std": "2e-2"}),  # the default is None
        ("BiFormer", {"n_win": "7e0"}),
        ("NonLocal", {"scale": "5e-1"}),  # a name or a number
        ("RevColFusion", {"levels": ["2e0", "5e-1"]}),
    ],
)
def test_what_yaml_1_1_takes_for_a_string_is_a_number(name: str, options: dict[str, Any]) -> None:
    plain = {
        k: [float(x) for x in v] if isinstance(v, list) else float(v) for k, v in options.items()
    }
    if name == "BiFormer" and "n_win" in options:
        plain = {"n_win": 7}
    one, other = (build(name, 64, **given) for given in (options, plain))
    assert repr(one) == repr(other)
    shapes = [[tuple(p.shape) for p in m.parameters()] for m in (one, other)]
    assert shapes[0] == shapes[1]
    (key,) = options
    if name == "SimAM":
        assert one.e_lambda == other.e_lambda == 1e-4
    elif hasattr(one, key):
        assert getattr(one, key) == getattr(other, key)


def test_a_string_for_an_option_of_names_stays_a_string() -> None:
    with pytest.raises(YoloAttnError, match="mode='1e-4' is not accepted"):
        build("NonLocal", 64, mode="1e-4")


def test_layers_are_asked_too() -> None:
    assert {name for name, _ in numeric_options()} & set(list_layers())
