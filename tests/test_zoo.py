"""The zoo: every family has every block, every file builds, and its comment is true."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.test_cli import run
from tests.transfer_harness import detection, lively
from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml, scales_of
from yolo_attn.overlay.model_files import is_overlay, read_yaml, without_scale
from yolo_attn.overlay.taps import find_taps
from yolo_attn.paths import PACKAGE, zoo_dir
from yolo_attn.registry import block_info, find_block, list_blocks
from yolo_attn.transfer.load import transfer
from yolo_attn.zoo import (
    base_names,
    check,
    config_names,
    describe,
    is_known,
    latency,
    select,
    with_scale,
)

sys.path.insert(0, str(PACKAGE.parent / "scripts"))

FAMILIES = ("yolov5", "yolov7-tiny", "yolov8", "yolov8-p2", "yolov9t", "yolov9c")
MAIN_BLOCKS = (
    "NonLocal", "GlobalContext", "CoordAtt", "CrissCross", "BiFormer", "EMA", "SimAM", "LSK",
    "CBAM", "ContextAggregation",
)  # fmt: skip
# An older Ultralytics has not every family.
CONFIGS = [n for n in config_names() if is_known(n)]
OVERLAYS = [n for n in CONFIGS if is_overlay(read_yaml(zoo_dir() / n))]
STRIDE_64 = ("yolov7-w6", "yolov7-e6", "yolov7-d6", "yolov7-e6e")


@cache
def smallest(name: str) -> dict[str, Any]:
    """A config at its smallest scale, expanded."""
    (found,) = select(name)
    return load_model_yaml(found)


def rows_of(d: dict[str, Any]) -> list[Any]:
    return [*d["backbone"], *d["head"]]


def header(name: str) -> str:
    """The comment at a file's beginning as one line."""
    lines = (zoo_dir() / name).read_text(encoding="utf-8").splitlines()
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.lstrip("# ") for line in lines[:count])


# Files


def test_every_family_has_every_block_yolov7_the_main_ones_the_newest_the_cheapest() -> None:
    from zoo_places import CHEAPEST

    wanted = {f"{f}-{b.lower()}.yaml" for f in FAMILIES for b in list_blocks()}
    wanted |= {f"yolov7-{b.lower()}.yaml" for b in MAIN_BLOCKS}
    wanted |= {f"{f}-{b.lower()}.yaml" for f in ("yolo11", "yolo26") for b in CHEAPEST}
    assert sorted(wanted - set(config_names())) == []
    assert len(set(CHEAPEST)) == 10


def test_a_file_that_its_name_places_in_a_family_holds_that_block() -> None:
    known = {b.lower(): b for b in list_blocks()}
    for name in OVERLAYS:
        base, _, block = Path(name).stem.rpartition("-")
        if block in known:
            assert read_yaml(zoo_dir() / name)["base"] == f"{base}.yaml"
            found = {row[2] for row in rows_of(smallest(name)) if find_block(row[2])}
            layers = {b for b in found if block_info(b).layer}
            assert found - layers == {known[block]}, name


def test_the_files_are_what_the_script_writes() -> None:
    from write_zoo import write_all

    for name, text in write_all().items():
        assert (zoo_dir() / name).read_text(encoding="utf-8") == text, name


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_header_comment_is_true(name: str) -> None:
    said, d = header(name), smallest(name)
    blocks = {row[2] for row in rows_of(d) if find_block(row[2]) and not block_info(row[2]).layer}
    text = said
    for block in blocks - {"MDCR", "DASI"}:  # of one paper with PPA
        assert block_info(block).paper in said
        text = text.replace(block_info(block).paper, "")  # CBAM's names its gates' origin
    assert set(re.findall(r"\w+", text)) & set(list_blocks()) == blocks
    named = set(re.findall(r"\b[PN]\d\b", said))
    labels = dict(map(tuple, d["yolo_attn"]["labels"]))
    used = {t for text in labels.values() for t in re.findall(r"\b[PN]\d\b", text)}
    if "backbone" in read_yaml(zoo_dir() / name):
        assert named <= set(find_taps(d)) and not used
    else:
        assert named == used
    for line in (zoo_dir() / name).read_text(encoding="utf-8").splitlines():
        assert len(line) <= 112


@pytest.mark.slow
@pytest.mark.parametrize("family", ["yolo11", "yolo26"])
def test_the_newest_families_have_the_ten_cheapest_blocks(family: str, tmp_path: Path) -> None:
    from write_zoo import _overlay
    from zoo_places import CHEAPEST, PLACES

    if not is_known(f"{family}-se.yaml"):
        pytest.skip(f"this Ultralytics has no {family}")
    cost = {}
    for block in PLACES:
        name = f"{family}n-{block.lower()}.yaml"
        text = _overlay(family, family, block, *PLACES[block])
        (tmp_path / name.replace("n-", "-", 1)).write_text(text, encoding="utf-8")
        config = describe(str(tmp_path / name))
        cost[block] = (round(config.gflops, 6), config.parameters)
    assert sorted(cost, key=cost.__getitem__)[:10] == list(CHEAPEST)


def test_a_family_that_this_ultralytics_lacks_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = {"yolov8-se": "yolov8", "yolo99-se": "yolo99", "yolo99-x": "yolo99-se"}
    for name, base in bases.items():
        (tmp_path / f"{name}.yaml").write_text(f"base: {base}.yaml\n")
    monkeypatch.setattr("yolo_attn.zoo.zoo_dir", lambda: tmp_path)
    assert select("*") == ["yolov8n-se.yaml"]
    with pytest.raises(YoloAttnError, match=r"yolo99-se.yaml: the installed Ultralytics .* has no"):
        select("yolo99*")


def heads_that_see(d: dict[str, Any], module: str) -> set[str]:
    """Taps of the head whose maps depend on a row of this module."""
    rows, seen = rows_of(d), set()
    for i, (f, _, name, _) in enumerate(rows):
        reads = {s if s >= 0 else i + s for s in (f if isinstance(f, list) else [f])}
        if name == module or reads & seen:
            seen.add(i)
    return {tap for tap, i in find_taps(d).items() if tap[0] == "N" and i in seen}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_sees_dasi(family: str) -> None:
    d = smallest(f"{family}-dasi.yaml")
    assert heads_that_see(d, "DASI") == {tap for tap in find_taps(d) if tap[0] == "N"}


def test_a_short_name_is_the_model_that_it_is_short_for() -> None:
    assert rows_of(load_model_yaml("yolov8n-gc.yaml")) == rows_of(
        load_model_yaml("yolov8n-globalcontext.yaml")
    )


# Building


def is_slow(name: str) -> bool:
    """YOLOv9-C has the rows of YOLOv9-T, wider; YOLOv8 is built with real weights below."""
    return name.startswith("yolov9c") or is_built(name)


def is_built(name: str) -> bool:
    """The family that is built with real weights in every run of the tests."""
    return name.startswith("yolov8") and not name.startswith("yolov8-p2")


@pytest.mark.parametrize("name", [n for n in [*CONFIGS, *base_names()] if not is_slow(n)])
def test_each_config_passes_check_at_its_smallest_scale(name: str) -> None:
    (found,) = select(name)
    (line,) = check(found)
    assert ": ok, " in line


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_each_config_passes_check_at_every_scale(name: str) -> None:
    lines = check(name)
    assert len(lines) == len(scales_of(smallest(name)))
    assert all(": ok, " in line for line in lines)


def forward(name: str) -> torch.nn.Module:
    """Build a config with real weights at its smallest scale and run it."""
    model = detection(select(name)[0]).eval()
    side = 128 if name.startswith(STRIDE_64) else 64
    with torch.inference_mode():
        predictions = model(torch.rand(1, 3, side, side))[0]
    assert torch.isfinite(predictions).all()
    assert predictions.shape[:2] == (1, 84)
    return model


@cache
def base_of(name: str) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A base with weights that matter, an image, and what it predicts there."""
    model = lively(detection(name)).eval()
    torch.manual_seed(1)
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        return model, x, model(x)[0]


def runs_and_starts_as_its_base(name: str) -> None:
    model, d = forward(name), smallest(name)
    source, x, wanted = base_of(with_scale(d["yolo_attn"]["base"], d.get("scale") or ""))
    transfer(model, source)
    with torch.inference_mode():
        got = model(x)[0]
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


STARTS_AS_BASE = [n for n in OVERLAYS if "-revcolumns" not in n]
OTHERS = [n for n in [*CONFIGS, *base_names()] if n not in STARTS_AS_BASE]


@pytest.mark.parametrize("name", [n for n in STARTS_AS_BASE if is_built(n)])
def test_an_overlay_runs_and_starts_from_the_predictions_of_its_base(name: str) -> None:
    runs_and_starts_as_its_base(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in STARTS_AS_BASE if not is_built(n)])
def test_overlays_of_other_families_do_so_too(name: str) -> None:
    runs_and_starts_as_its_base(name)


@pytest.mark.parametrize("name", [n for n in OTHERS if is_built(n)])
def test_other_configs_run(name: str) -> None:
    forward(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in OTHERS if not is_built(n)])
def test_other_configs_of_other_families_run(name: str) -> None:
    forward(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CONFIGS if n.startswith("yolov8-p2")])
def test_a_small_model_with_a_stride_4_head_trains_a_step(name: str) -> None:
    model = detection(select(name)[0], nc=3).train()
    model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    batch = {
        "img": torch.rand(2, 3, 64, 64),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[1.0], [2.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.2, 0.1], [0.3, 0.6, 0.1, 0.3]]),
    }
    loss = model(batch)[0].sum()
    loss.backward()
    assert torch.isfinite(loss)
    own = [m for m in model.modules() if type(m).__module__.startswith("yolo_attn")]
    touched = [p for m in own for p in m.parameters() if p.grad is not None]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert not any(True for m in own for _ in m.parameters()) or any(
        p.grad.abs().sum() > 0 for p in touched
    )


@pytest.mark.parametrize("family", ("yolov8n", "yolov9t"))
def test_columns_under_a_neck_keep_the_weights_of_neck_and_head(family: str) -> None:
    source, _, _ = base_of(f"{family}.yaml")
    model = detection(f"{family}-revcolumns.yaml").eval()
    transfer(model, source)
    split, shift = len(source.yaml["backbone"]), len(model.model) - len(source.model)
    for i in range(split, len(source.model)):
        theirs, own = source.model[i].state_dict(), model.model[i + shift].state_dict()
        assert theirs.keys() == own.keys()
        assert all(torch.equal(theirs[k], own[k]) for k in theirs)


@pytest.mark.parametrize("base", ("yolov10n", "yolo11n", "yolo12n", "yolo26n"))
def test_the_same_overlays_fit_later_families(base: str, tmp_path: Path) -> None:
    from ultralytics.utils import ROOT

    if not [*(ROOT / "cfg" / "models").rglob(f"{without_scale(base + '.yaml')}")] and not [
        *(ROOT / "cfg" / "models").rglob(f"{base}.yaml")
    ]:
        pytest.skip(f"this Ultralytics has no {base}")
    places = {
        "GlobalContext": ("P5",),
        "SimAM": ("P3", "P4", "P5"),
        "ContextAggregation": ("N3", "N4", "N5"),
        "DASI": ("N4", "N3", "N5"),
        "AFNB": ("P5", "P4"),
    }
    for block, taps in places.items():
        at = [word for tap in taps for word in ("--at", tap)]
        run("new", f"{base}.yaml", block, *at, "--out", str(tmp_path))
        d = load_model_yaml(str(tmp_path / f"{base}-{block.lower()}.yaml"))
        assert block in {row[2] for row in rows_of(d)}


# What the table says


@pytest.mark.parametrize(
    "name",
    [
        "yolov8n-nonlocal.yaml",
        "yolov8n-dasi.yaml",
        "yolov8n-revcolumns.yaml",
        "yolov8n-hcfnet.yaml",
        "yolov8n-rows-example.yaml",
    ],
)
def test_the_table_says_what_yolo_says_of_the_built_model(name: str) -> None:
    from ultralytics.utils.torch_utils import get_flops

    config, model = describe(name), detection(name)
    assert config.parameters == sum(p.numel() for p in model.parameters())
    assert config.gflops == pytest.approx(get_flops(model, 640), rel=1e-6)


def test_the_table_of_the_docs_has_every_config() -> None:
    text = (PACKAGE.parent / "docs" / "zoo.md").read_text(encoding="utf-8")
    missing = [n for n in select("*") if f"| {n} |" not in text]
    assert not missing, "python scripts/zoo_table.py writes it"


def test_zoo_lists_bases_and_measures_latency() -> None:
    table = run("zoo", "yolov7-tiny.yaml", "--imgsz", "64", "--latency")
    assert "bases of the zoo's own" in table and "8,144,864" in table and " ms " in table
    assert latency("yolov7-tiny.yaml", imgsz=64, runs=1) > 0
    assert "multiple of 32" in run("zoo", "yolov8-se.yaml", "--imgsz", "100", code=1)


def test_zoo_at_a_scale_leaves_out_what_has_no_scales() -> None:
    assert select("yolov*-simam", "m") == [
        "yolov5m-simam.yaml",
        "yolov8m-p2-simam.yaml",
        "yolov8m-simam.yaml",
    ]
    with pytest.raises(YoloAttnError, match="has no scale 'm' .it has no scales"):
        select("yolov9t-simam.yaml", "m")


def test_the_wheel_takes_the_zoo_along() -> None:
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert '"cfg" = "yolo_attn/cfg"' in text
