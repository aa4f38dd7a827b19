"""Single rows of forks: the block, the options and the parameters that they mean here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from yolo_attn.errors import YoloAttnError
from yolo_attn.migrate.designs import FAMILIES
from yolo_attn.migrate.names import FIELD_NAMES, LATER_NAMES
from yolo_attn.migrate.rows import RowChange, Translation, translate
from yolo_attn.registry import block_info

FORKS = Path(__file__).parent / "forks"
SCALES = {"n": [0.33, 0.25, 1024], "s": [0.33, 0.50, 1024], "l": [1.0, 1.0, 512]}


def rows() -> list[list[str]]:
    lines = (FORKS / "rows.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [line.split("\t") for line in lines]


def model(module: str, args: Any, channels: int = 256, **keys: Any) -> dict[str, Any]:
    """A model with one attention row behind a layer of `channels`, declared four times as wide."""
    keys = keys or {"depth_multiple": 0.33, "width_multiple": 0.25}
    return {
        "nc": 3,
        **keys,
        "backbone": [[-1, 1, "Conv", [4 * channels, 3, 2]], [-1, 1, module, args]],
        "head": [[[-1], 1, "Detect", ["nc"]]],
    }


def only(translation: Translation) -> RowChange:
    assert translation.refused == []
    (row,) = [r for r in translation.rows if r.row == 1]
    return row


def refusal(translation: Translation) -> str:
    (refused,) = translation.refused
    assert refused.row == 1 and translation.parameters is None
    return refused.why


def built(translation: Translation, scale: str | None = None) -> torch.nn.Module:
    """The attention layer that stock Ultralytics with the plugin builds of the result."""
    from ultralytics.nn.tasks import parse_model

    text = yaml.safe_dump(translation.model, sort_keys=False)
    d = yaml.safe_load(text)
    if scale:
        d["scale"] = scale
    with torch.device("meta"):
        return parse_model(d, 3, False)[0][1]


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("module", "args", "channels", "block", "options", "parameters"),
    rows(),
    ids=lambda value: str(value) if len(str(value)) < 20 else "",
)
@pytest.mark.parametrize("scaled", [False, True], ids=["multiple", "scales"])
def test_a_row_means_what_its_fork_means(
    module: str,
    args: str,
    channels: str,
    block: str,
    options: str,
    parameters: str,
    scaled: bool,
) -> None:
    keys = {"scales": SCALES} if scaled else {}
    translation = translate(model(module, json.loads(args), int(channels), **keys))
    row = only(translation)
    found = {k: v for k, v in row.options.items() if k != "rd_channels"}
    assert (row.block, found, row.parameters) == (block, json.loads(options), int(parameters))
    layer = built(translation)
    assert count(layer) == row.parameters
    # What is said is what builds it.
    with torch.device("meta"):
        direct = block_info(block).cls(int(channels), **row.options)
    assert count(direct) == row.parameters


@pytest.mark.parametrize(
    ("module", "args", "block", "options"),
    [
        ("SE", [1024, 8], "SE", {"bias": False, "rd_ratio": 1 / 8}),
        ("SE", [32], "SE", {"bias": False, "rd_ratio": 1 / 32}),
        ("CBAM", [1024, 16, 7], "CBAM", {"kernel_size": 7}),
        ("CBAM", [8], "CBAM", {"rd_ratio": 1 / 8}),
        ("CBAM", [1024, 1024], "CBAM", {}),
        ("CABlock", [1024, 1024], "CoordAtt", {}),
        ("CABlock", [16], "CoordAtt", {"rd_ratio": 1 / 16}),
        ("CoordAttention", [], "CoordAtt", {}),
        ("ECA", [1024, 5], "ECA", {"kernel_size": 5}),
        ("EMA", [1024, 16], "EMA", {"factor": 16}),
        ("EMA", ["8"], "EMA", {"factor": 8}),
        ("SimAm", ["1e-3"], "SimAM", {"e_lambda": 1e-3, "correction": 1}),
        ("GAM", [8], "GAM", {"rd_ratio": 1 / 8}),
        (
            "GAM_Attention",
            [1024, 1024, False],
            "GAM",
            {"shuffle": 4, "channel_gate": "none"},
        ),
        (
            "GAM_Attention",
            [1024, 1024, True, 8],
            "GAM",
            {"groups": 8, "shuffle": 4, "channel_gate": "none", "rd_ratio": 1 / 8},
        ),
        ("CrissCrossAttention", [1024], "CrissCross", {"recurrence": 1}),
        ("MLCA", [1024], "MLCA", {}),
        (
            "BiLevelRoutingAttention_nchw",
            [8, 7],
            "BiFormer",
            {"attention_only": True, "num_heads": 8, "side_dwconv": 3, "border": "zero"},
        ),
        ("SELayer", [1024, 4], "SE", {"bias": False, "rd_ratio": 1 / 4}),
        ("cbamblock", [1024], "CBAM", {}),
        ("NonLocal", [1024], "NonLocal", {}),
        ("SE", [0.25], "SE", {"rd_ratio": 0.25}),  # our own words
        ("LSK", ["unit"], "LSK", {}),
        ("NonLocal", ["dot_product"], "NonLocal", {"mode": "dot_product"}),
        ("CBAM", [{"kernel_size": 3}], "CBAM", {"kernel_size": 3}),
        ("CBAM", [512], "CBAM", {}),  # not this layer's width, and no option either
    ],
)
def test_options_beside_the_width(module: str, args: Any, block: str, options: Any) -> None:
    translation = translate(model(module, args))
    row = only(translation)
    assert (row.block, row.options) == (block, options)
    if "CBAM" == module and args == [512]:
        assert "512 dropped" in row.why and "256" in row.why
    # What was translated is in our own words: again, nothing changes.
    again = translate(translation.model)
    assert only(again).after == row.after
    assert only(again).parameters == row.parameters or not translation.model["backbone"][1][3]


@pytest.mark.parametrize("scale", SCALES)
def test_a_hidden_width_under_eight_is_right_at_every_scale(scale: str) -> None:
    translation = translate(model("CBAM", [256], 64, scales=SCALES), scale=scale)
    channels = {"n": 64, "s": 128, "l": 256}
    for letter, c in channels.items():
        assert built(translation, letter).fc1.weight.shape == (c // 16, c)
    row = only(translation)
    assert row.parameters == count(built(translation, scale))
    assert row.options.get("rd_channels") == (4 if scale == "n" else None)


@pytest.mark.parametrize(
    ("module", "weight", "hidden"),
    [
        ("GlobalContext", "mul.w1.weight", 4),
        ("CrissCrossAttention", "query.weight", 4),
        ("GAM_Attention", "fc1.weight", 8),
        ("SE", "fc1.weight", 2),
    ],
)
def test_hidden_widths_of_narrow_layers(module: str, weight: str, hidden: int) -> None:
    for keys in ({}, {"scales": SCALES}):
        translation = translate(model(module, [128], 32, **keys))
        layer = built(translation)
        assert layer.state_dict()[weight].shape[0] == hidden
        assert only(translation).parameters == count(layer)
        if keys:
            assert built(translation, "l").state_dict()[weight].shape[0] == 4 * hidden


def test_a_hidden_width_under_eight_is_written_where_there_is_one_scale() -> None:
    translation = translate(model("SE", [256], 64))
    assert translation.model["backbone"][1][3] == [{"bias": False, "rd_channels": 4}]
    assert built(translation).fc1.weight.shape[0] == 4


@pytest.mark.parametrize(
    ("design", "block", "parameters"),
    [
        ("paper", "CBAM", 8_563),
        ("nobias", "CBAM", 8_290),
        ("norm", "CBAM", 8_292),
        ("ultralytics", "UltralyticsCBAM", 65_890),
    ],
)
def test_a_design_is_chosen_and_all_are_counted(design: str, block: str, parameters: int) -> None:
    translation = translate(model("CBAM", [1024]), {"CBAM": design})
    row = only(translation)
    assert (row.block, row.parameters) == (block, parameters)
    assert count(built(translation)) == parameters
    assert "cannot tell" in row.why and "--design CBAM=" in row.why
    assert "8,563" in row.why and "65,890" in row.why and f"{design} (taken)" in row.why


@pytest.mark.parametrize(
    ("name", "args", "design", "options"),
    [
        ("EMA", [1024, 8], "32", {"factor": 32}),
        ("GAM", [4], "replicate", {"channel_gate": "none", "padding": "replicate"}),
        ("CoordAtt", [1024], "relu", {"act": "relu", "bias": False, "rd_ratio": 1 / 16}),
        ("CoordAtt", [1024], "silu", {"act": "silu"}),
        ("CA", [1024], "nobias", {"bias": False}),
        ("CA", [1024], "context", {}),
        ("SE", [1024], "bias", {}),
        ("ECA", [1024], "adaptive", {}),
    ],
)
def test_the_designs_of_other_names(name: str, args: Any, design: str, options: Any) -> None:
    translation = translate(model(name, args), {name: design})
    assert only(translation).options == options
    assert translation.parameters


def test_a_design_is_for_its_own_name_alone() -> None:
    assert only(translate(model("CBAMBlock", [1024]), {"CBAM": "ultralytics"})).block == "CBAM"
    assert only(translate(model("CBAM", [1024]), {"cbam": "nobias"})).parameters == 8_290


@pytest.mark.parametrize("designs", [{"CBAM": "papre"}, {"Cbamm": "paper"}, {"Conv": "paper"}])
def test_an_unknown_design_is_an_error_that_names_the_known(designs: dict[str, str]) -> None:
    with pytest.raises(YoloAttnError, match="--design"):
        translate(model("CBAM", []), designs)


@pytest.mark.parametrize(
    ("module", "args", "said"),
    [
        ("SKAttention", [1024], "four full convolutions"),
        ("LSE", [1024], "not equal to MLCA"),
        ("DoubleAttention", [1024, 1024, 1024, 8], "images of a batch"),
        ("CAM", [1024], "context augmentation"),
        ("BRABlock", [1024, 8], "BRABlock=paper"),
        ("DASI", [1024], "SiLU"),
        ("SimAM", [4], "cannot tell what 4 is"),
        ("SEBlock", [16, "conv"], "cannot tell what 'conv' is"),
        ("CBAMBlock", [1], "cannot tell what 1 is"),
        ("ECA", [1024, 4], "cannot tell what 4 is"),
        ("DANet", [1024, 1024, True], "what follows the width is not known"),
        ("NoSuchThing", [1024], "meaning is not known"),
        ("SEE", [16], "did you mean 'SE'"),
        ("Attention", [1024], "several unrelated classes"),
    ],
)
def test_a_row_that_cannot_be_meant_is_refused_by_name(module: str, args: Any, said: str) -> None:
    why = refusal(translate(model(module, args)))
    assert module in why and said in why and "\n" not in why


@pytest.mark.parametrize(
    "module", ["TripletAttention", "ShuffleAttention", "SA", "MHSA", "SEAM", "CNeB", "PConv"]
)
def test_modules_without_a_block_are_refused_until_there_is_one(module: str) -> None:
    if module in FIELD_NAMES or block_known(module):
        pytest.skip("there is one")
    assert "yet" in refusal(translate(model(module, [1024])))


def block_known(name: str) -> bool:
    from yolo_attn.registry import find_block

    return find_block(name) is not None


def test_a_reduction_that_leaves_no_channel_is_refused() -> None:
    assert "leave none" in refusal(translate(model("SE", [128, 40], 32)))


def test_every_refused_row_is_named_and_nothing_else_is_lost() -> None:
    d = model("CBAM", [1024])
    d["backbone"] += [[-1, 1, "TripletAttention", []], [-1, 1, "MHSA", [4]]]
    d["head"] = [[[-1], 1, "Detect", ["nc"]]]
    translation = translate(d)
    if block_known("MHSA") or block_known("TripletAttention"):
        pytest.skip("they are here")
    assert [r.row for r in translation.refused] == [2, 3]
    assert [r.row for r in translation.rows] == [1]
    assert d["backbone"][1] == [-1, 1, "CBAM", [1024]], "the input is not changed"


@pytest.mark.parametrize(
    "bad", [{}, {"backbone": [], "head": [[]]}, {"backbone": [[1]], "head": [2]}]
)
def test_what_is_no_model_is_one_error(bad: dict[str, Any]) -> None:
    with pytest.raises(YoloAttnError, match="accepted"):
        translate(bad)
    with pytest.raises(YoloAttnError, match="scale 'q'"):
        translate(model("CBAM", [], scales=SCALES), scale="q")


def test_the_table_of_designs_is_sound() -> None:
    names = [name for family in FAMILIES for name in family.names]
    assert len(names) == len(set(names)) and not set(names) & set(LATER_NAMES)
    for family in FAMILIES:
        assert len({d.name for d in family.designs}) == len(family.designs)
        for design in family.designs:
            assert set(design.options) <= set(block_info(design.block).options)
    missing = {name for name in FIELD_NAMES if name not in names and name not in LATER_NAMES}
    assert not missing, "names of the field that migrate does not know"


@pytest.mark.parametrize("sources", [[-1], -1])
def test_a_list_of_one_source_is_that_source(sources: Any) -> None:
    d = model("CBAM", [1024])
    d["backbone"][1][0] = sources
    translation = translate(d)
    assert only(translation).parameters == 8_563 and translation.model["backbone"][1][0] == -1
