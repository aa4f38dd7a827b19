"""Rows of forks are refused with the way out, or mean what they say; names are explained."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.tasks import DetectionModel

import yolo_attn
from yolo_attn import block_info, create, registry
from yolo_attn.data.synthetic import make_smallshapes
from yolo_attn.errors import YoloAttnError
from yolo_attn.migrate.names import FIELD_NAMES
from yolo_attn.overlay.older_rows import spell_out
from yolo_attn.registry import find_block, known_names, list_blocks, list_layers

from .processes import python
from .test_blocks import channels_of

NAMES = [*list_blocks(), *list_layers()]
# What forks write (module, arguments, width): `forks/README.md` counts them.
FORKS_ROWS = [
    *[("CBAM", [c], c) for c in (32, 64, 256)],
    ("CBAM", [256, 7], 256),
    ("CBAM", [7], 64),
    ("SE", [16], 64),
    ("SE", [512], 128),
    ("CoordAtt", [1024], 256),
    ("ECA", [512, 3], 128),
    ("EMA", [512], 128),
    ("EMA", [256, 8], 64),
    ("GAM", [4], 64),
    ("GlobalContext", [256], 64),
    ("MLCA", [512], 128),
    ("SimAM", [1024], 256),
    ("SimAM", [4], 64),
    ("NonLocal", [256], 64),
    ("DANet", [256, 256, False], 256),
    ("DoubleAttention", [128, 128, 128, 8], 128),
    ("CA", [32], 256),
    ("CAM", [64], 64),
    *[(name, [64], 64) for name in FIELD_NAMES],
    *[(name, [], 64) for name in FIELD_NAMES],
]
# A width is their first option, and may be no other than the input's.
KEEP_WIDTH = {"DySample", "CARAFE", "PConv", "WTConv", "ScConv", "DWR"}
LEGAL_ROWS = [
    ("CBAM", []),
    ("CBAM", [0.25]),
    ("ECA", [3]),
    ("ECA", [5]),
    ("SimAM", ["1e-4"]),
    ("SimAM", [1e-4]),
    ("CoordAtt", []),
    ("MLCA", []),
    ("ContextAggregation", []),
    ("EMA", [8]),
    ("SE", [0.25, 16]),
    ("BiFormer", [8, 7]),
    ("CrissCross", [1]),
    ("EMAU", [32]),
]


def cli(*args: str, ok: bool = True) -> Any:
    """Run ``yolo-attn``."""
    return python("-m", "yolo_attn.cli", *args, ok=ok)


def model_with(row: list[Any], widths: list[int], width: float = 1.0, **keys: Any) -> dict:
    """A model whose layers 1, 2 ... have these widths, once scaled; `row` is the last but one."""
    convs = [[0, 1, "Conv", [int(c / width), 3, 1]] for c in widths]
    return {
        "nc": 3,
        "yaml_file": "fork.yaml",
        "scales": {"n": [1.0, width, 100_000]},
        "scale": "n",
        "backbone": [[-1, 1, "Conv", [16, 3, 2]], *convs, row],
        "head": [[[-1], 1, "Detect", ["nc"]]],
        **keys,
    }


def row_of(name: str, args: list[Any], channels: int, width: float = 1.0) -> nn.Module:
    """The layer that a row of this block becomes."""
    info = find_block(name)
    widths = channels_of(name, channels) if info else channels
    widths = [widths] if isinstance(widths, int) else widths
    sources = list(range(1, len(widths) + 1)) if info and info.takes_list else 1
    d = model_with([sources, 1, name, args], widths, width)
    with torch.device("meta"):
        model, _ = tasks.parse_model(d, 3, False)
    return model[len(widths) + 1]


@pytest.mark.parametrize("channels", [24, 64, 256, 512])
@pytest.mark.parametrize("width", [1.0, 0.25])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_with_channel_counts_is_refused_or_exactly_what_was_asked(
    name: str, width: float, channels: int
) -> None:
    info = block_info(name)
    first = next(iter(info.options), None)
    c = int(channels / width)  # as a YAML declares it
    for args in ([c], [c, c], [c, 16], [4 * c], [4 * c, 16], [channels]):
        asked = max(args[0] * width, 8)
        if name in KEEP_WIDTH and asked != channels:
            with pytest.raises(YoloAttnError, match="keeps the width .*yolo-attn migrate"):
                row_of(name, args, channels, width)
            continue
        if name == "LDConv" and len(args) == 2 and args[1] <= 49:
            assert row_of(name, args, channels, width).points == args[1]
            continue
        if first == "out_channels" and len(args) == 1:
            # DASI and MDCR split by four, and Ultralytics rounds to multiples of 8.
            out = row_of(name, args, channels, width).out_channels
            assert out == -(-asked // 8) * 8, (args, out)
            continue
        if name == "EMAU" and args[0] not in (c, channels) and args[0] <= 64:
            assert row_of(name, args, channels, width).bases.shape[1] == args[0]
            continue
        with pytest.raises(YoloAttnError, match=r"fork.yaml row \d: .*yolo-attn migrate fork.yaml"):
            row_of(name, args, channels, width)


def test_the_error_says_value_width_meaning_and_way_out() -> None:
    with pytest.raises(YoloAttnError) as caught:
        row_of("CBAM", [1024], 256, 0.25)
    said = str(caught.value)
    for part in (
        "fork.yaml row 2",
        "CBAM [1024]",
        "256 at this scale",
        "rd_ratio=1024",
        "`yolo-attn migrate fork.yaml`",
    ):
        assert part in said
    assert "write {" not in said  # a ratio of 1024 is none
    with pytest.raises(YoloAttnError, match=r"bases=64: .* write \{bases: 64\}"):
        row_of("EMAU", [64], 64)
    assert row_of("EMAU", [{"bases": 64}], 64).bases.shape == (64, 64)


def test_the_width_is_found_under_max_channels() -> None:
    d = model_with([1, 1, "EMAU", [1024]], [512], scales={"n": [1.0, 0.5, 512]}, scale="n")
    with pytest.raises(YoloAttnError, match="1024 is the width .* 256 at this scale"):
        tasks.parse_model(d, 3, False)


def test_a_width_of_any_input_counts() -> None:
    for value in (64, 128):
        with pytest.raises(YoloAttnError, match=f"{value} is the width .* rd_ratio={value}"):
            row_of("AFNB", [value], 64)


@pytest.mark.parametrize(("name", "args", "channels"), FORKS_ROWS)
def test_a_row_of_a_fork_is_refused_with_the_way_out(
    name: str, args: list[Any], channels: int
) -> None:
    with pytest.raises(YoloAttnError, match=r"fork.yaml row 2: .*`yolo-attn migrate fork.yaml`"):
        row_of(name, args, channels)


@pytest.mark.parametrize(("name", "args"), LEGAL_ROWS)
def test_a_genuine_option_builds(name: str, args: list[Any]) -> None:
    for channels in (64, 256):
        row_of(name, args, channels)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400, -64, 1e300])
def test_a_number_of_any_size_gets_one_line(value: float) -> None:
    for name in ("SE", "SimAM", "EMAU"):
        with pytest.raises(YoloAttnError, match="is not accepted .*yolo-attn migrate"):
            row_of(name, [value], 64)


def test_a_small_number_is_no_scaled_width() -> None:
    # make_divisible(3, 8) is 8.
    assert len(row_of("ECA", [3], 8).weight) == 3


def test_a_fork_yaml_is_refused_in_training_and_by_check(tmp_path: Path) -> None:
    d = model_with([-1, 1, "CBAM", [256]], [64], 0.25)
    del d["yaml_file"], d["scale"]
    file = tmp_path / "cbam.yaml"
    file.write_text(yaml.safe_dump(d))
    with pytest.raises(YoloAttnError, match=rf"{file} row 2: .*migrate {file}"):
        YOLO(str(file))
    # At a scale it is the same file that has to be translated.
    scaled = tmp_path / "yolov8-mine.yaml"
    file.rename(scaled)
    with pytest.raises(YoloAttnError, match=rf"yolov8n-mine.yaml row 2: .*migrate {scaled}`"):
        YOLO(str(tmp_path / "yolov8n-mine.yaml"))
    scaled.rename(file)
    done = cli("check", str(file), ok=False)
    assert done.returncode == 1 and f"yolo-attn migrate {file}" in done.stderr


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("[P5, 1, CBAM, [1024]]", r"insert 1: .*width of the layer.*rd_ratio=1024"),
        ("[P5, 1, EMA, [1024, 8]]", r"insert 1: EMA takes at most 1 options"),
        ("[P5, 1, SE, [16]]", r"insert 1: .*rd_ratio=16 is not accepted"),
        ("[P5, 1, SEAttention, [16]]", r"insert 1: unknown block 'SEAttention', .*: SE "),
        (
            "[P5, 1, CA, []]",
            r"insert 1: .*CoordAtt or .*stood for ContextAggregation",
        ),
    ],
)
def test_a_fork_row_in_an_overlay_is_refused(row: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"base: yolov8.yaml\ninsert:\n  - {row}\n")
    with pytest.raises(YoloAttnError, match=rf"{file} {said}.*`yolo-attn migrate {file}`"):
        DetectionModel(str(file), verbose=False)


def test_1e_4_is_a_number_in_a_yaml_and_in_keywords(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for args in ("[1e-4]", "[{e_lambda: 1e-4}]"):
        file.write_text(f"base: yolov8.yaml\ninsert:\n  - [P5, 1, SimAM, {args}]\n")
        model = DetectionModel(str(file), verbose=False)
        (block,) = (m for m in model.modules() if type(m).__name__ == "SimAM")
        assert block.e_lambda == 1e-4


# --- checkpoints ---------------------------------------------------------------------------------


def checkpoint(d: dict, path: Path) -> None:
    torch.save({"model": DetectionModel(copy.deepcopy(d), verbose=False), "train_args": {}}, path)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guards")
    make_smallshapes(folder / "shapes", image_size=96, train_images=4, val_images=2)
    names = ["disk", "square", "triangle", "cross", "ring"]
    file = folder / "shapes.yaml"
    file.write_text(
        f"path: {folder / 'shapes'}\ntrain: images/train\nval: images/val\nnames: {names}\n"
    )
    return file


HOW = {"imgsz": 64, "batch": 2, "workers": 0, "device": "cpu", "plots": False, "epochs": 1}


def test_training_from_a_forks_checkpoint_is_refused_and_names_the_checkpoint(
    tmp_path: Path, shapes: Path
) -> None:
    model = DetectionModel(model_with([-1, 1, "Conv", [64, 1]], [64]), verbose=False)
    # As a fork saves it: its own class behind the name CBAM, a channel count in the row.
    model.yaml["backbone"][-1] = [-1, 1, "CBAM", [64]]
    file = tmp_path / "best.pt"
    torch.save({"model": model, "train_args": {}}, file)
    loaded = YOLO(str(file))
    with pytest.raises(YoloAttnError, match=rf"row 2: CBAM \[64\].*`yolo-attn migrate {file}`"):
        loaded.train(data=str(shapes), project=str(tmp_path), **HOW)


def test_a_checkpoint_of_ours_with_a_number_that_is_a_width_is_built_again(
    tmp_path: Path, shapes: Path
) -> None:
    d = model_with([-1, 1, "EMAU", [{"bases": 64}]], [64])
    model = DetectionModel(d, verbose=False)
    model.yaml["backbone"][-1][3] = [64, 2]  # as older versions let it be written
    file = tmp_path / "best.pt"
    torch.save({"model": model, "train_args": {}}, file)
    again = YOLO(str(file))
    assert again.model.yaml["backbone"][-1][3] == [{"bases": 64, "steps": 2}]
    again.train(data=str(shapes), project=str(tmp_path), **HOW)
    assert again.trainer.model.model[2].bases.shape == (64, 64)


def test_a_former_alias_in_a_checkpoint_of_ours_is_renamed_and_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics.utils import LOGGER

    monkeypatch.setattr(LOGGER, "propagate", True)
    for alias, name in (("CA", "ContextAggregation"), ("CAM", "ChannelGram")):
        model = DetectionModel(model_with([-1, 1, name, []], [16]), verbose=False)
        model.yaml["backbone"][-1][2] = alias
        with caplog.at_level(logging.INFO):
            spell_out(model.yaml, model)
        assert model.yaml["backbone"][-1][2] == name
        assert f"{alias} is {name}" in caplog.text
        DetectionModel(model.yaml, verbose=False)


def test_a_forks_row_of_the_same_name_is_not_renamed() -> None:
    model = DetectionModel(model_with([-1, 1, "Conv", [16, 1]], [16]), verbose=False)
    for row in ([-1, 1, "CA", [16]], [-1, 1, "SE", [16]]):
        model.yaml["backbone"][-1] = row
        spell_out(model.yaml, model)
        assert model.yaml["backbone"][-1] == row


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIELD_NAMES)
def test_a_name_of_the_field_is_never_accepted_and_always_explained(name: str) -> None:
    assert find_block(name) is None and name not in known_names()
    for spelt in (name, name.lower()):
        if find_block(spelt) is not None:
            continue
        with pytest.raises(YoloAttnError) as caught:
            create(spelt, 64)
        for block in FIELD_NAMES[name].blocks:
            assert block in str(caught.value)


@pytest.mark.parametrize("name", FIELD_NAMES)
def test_a_stock_model_with_a_name_of_the_field_is_explained(name: str) -> None:
    d = model_with([-1, 1, name, []], [16])
    with pytest.raises(YoloAttnError, match=rf"row 2: unknown block '{name}', .*in this project"):
        tasks.parse_model(d, 3, False)


def test_a_stock_model_with_a_name_that_nobody_knows_is_ultralytics_to_explain() -> None:
    with pytest.raises(KeyError):
        tasks.parse_model(model_with([-1, 1, "Zzyzx", [64]], [16]), 3, False)


@pytest.mark.parametrize("name", ["CA", "CAM"])
def test_ca_and_cam_name_their_candidates(name: str) -> None:
    with pytest.raises(YoloAttnError) as caught:
        row_of(name, [], 64)
    for block in FIELD_NAMES[name].blocks:
        assert block in str(caught.value)
    assert "stood for" not in str(caught.value)  # no file of ours


def test_blocks_of_a_name_of_the_field_says_which_it_is_here() -> None:
    text = cli("blocks", "SEAttention").stdout
    assert text.startswith("SEAttention is no name of ours; in this project: SE")
    assert "yolo-attn migrate" in text and block_info("SE").summary in text
    both = cli("blocks", "CA").stdout
    assert block_info("CoordAtt").summary in both
    assert block_info("ContextAggregation").summary in both
    done = cli("blocks", "NLBlockND", "--json")
    assert [card["name"] for card in json.loads(done.stdout)] == ["NonLocal"]


def test_aliases_that_everybody_means_alike_stay() -> None:
    wanted = {
        "GC": "GlobalContext",
        "GCBlock": "GlobalContext",
        "CoordinateAttention": "CoordAtt",
        "CCNet": "CrissCross",
        "A2": "DoubleAttention",
        "BRA": "BiFormer",
    }
    assert {alias: block_info(alias).name for alias in wanted} == wanted


def test_a_users_block_may_take_its_width_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    # Registered for this test alone.
    monkeypatch.setattr(registry, "_BLOCKS", dict(registry._BLOCKS))

    @yolo_attn.register(name="TestOwnWidth", width_options=("wide",))
    class OwnWidth(nn.Module):
        """Own width."""

        def __init__(self, channels: int, wide: int):
            super().__init__()
            self.out_channels = wide
            self.conv = nn.Conv2d(channels, wide, 1)

    assert row_of("TestOwnWidth", [64], 64).out_channels == 64
