"""Checkpoints of forks become checkpoints of this project with the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import yolo
from yolo_attn.data.synthetic import make_smallshapes
from yolo_attn.errors import YoloAttnError
from yolo_attn.migrate.checkpoints import migrate_checkpoint

from . import fork_attention_blocks as attention
from . import fork_blocks as fork
from .fork_cases import CASES, SE_KEYS, cbam, coord
from .fork_checkpoints import fork_model, outputs, save_and_forget


@pytest.mark.parametrize("case", CASES)
def test_migrated_checkpoint_has_the_outputs_of_the_fork(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source, row, args, build), block = CASES[case]
    model = fork_model(tmp_path, monkeypatch, source, row, args, build)
    save_and_forget(model, tmp_path / "best.pt")
    wanted = outputs(model)
    result = migrate_checkpoint(tmp_path / "best.pt", tmp_path / "out.pt")
    assert not result.refused
    (change,) = result.rows
    assert (change.row, change.block) == (4, block)
    migrated = torch.load(tmp_path / "out.pt", weights_only=False)["model"]
    assert type(migrated.model[4]).__name__ == block
    assert migrated.names == {0: "person", 1: "car", 2: "drone"}
    found = outputs(migrated)
    for ours, theirs in zip(found, wanted):
        assert (ours - theirs).abs().max() < 1e-9
    # The module does something: without it the outputs are others.
    assert (wanted[4] - wanted[3]).abs().max() > 1e-3
    rebuilt = type(migrated)(migrated.yaml, verbose=False)
    rebuilt.load_state_dict(migrated.float().state_dict())


def small(
    folder: Path, monkeypatch: pytest.MonkeyPatch, case: str = "cbam", **content: Any
) -> tuple[Path, Any]:
    """A saved fork checkpoint and its model."""
    source, row, args, build = CASES[case][0]
    model = fork_model(folder, monkeypatch, source, row, args, build)
    save_and_forget(model, folder / "best.pt", **content)
    return folder / "best.pt", model


def test_ultralytics_own_class_is_found_by_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, build = "from ultralytics.nn.modules.conv import CBAM\n", "CBAM(c, 3)"
    model = fork_model(tmp_path, monkeypatch, source, "CBAM", [256, 3], build)
    save_and_forget(model, tmp_path / "best.pt")
    wanted = outputs(model)
    out = tmp_path / "out.pt"
    result = migrate_checkpoint(tmp_path / "best.pt", out, {"CBAM": "paper"})
    (change,) = result.rows
    assert change.block == "UltralyticsCBAM" and change.options == {"kernel_size": 3}
    assert "--design CBAM=paper is CBAM, which its tensors are not" in change.why
    found = outputs(torch.load(out, weights_only=False)["model"])
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(found, wanted))


def test_options_come_from_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for case, options in {
        "eca-attention": {"kernel_size": 7},
        "ema-32": {"factor": 32},
        "se": {"rd_channels": 4, "bias": False},
        "se-biases": {"rd_ratio": 0.25, "bias": True},
        "cbam-fc-biases": {"rd_channels": 6, "kernel_size": 3, "bias": True},
        "coord-silu": {"rd_ratio": 0.25, "bias": True, "act": "silu"},
        "simam-lambda": {"e_lambda": 0.1, "correction": 1},
        "gam-full": {"rd_ratio": 0.125, "shuffle": 4, "channel_gate": "none"},
    }.items():
        folder = tmp_path / case
        folder.mkdir()
        path, _ = small(folder, monkeypatch, case)
        assert migrate_checkpoint(path).rows[0].options == options


def test_a_row_that_repeats_its_module_is_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = "nn.Sequential(SEAttention(c), SEAttention(c))"
    source, *_ = CASES["se"][0]
    model = fork_model(tmp_path, monkeypatch, source, "SEAttention", [256], build)
    model.yaml["backbone"][4][1] = 6  # times the depth of 0.33
    save_and_forget(model, tmp_path / "best.pt")
    wanted = outputs(model)
    assert not migrate_checkpoint(tmp_path / "best.pt", tmp_path / "out.pt").refused
    found = outputs(torch.load(tmp_path / "out.pt", weights_only=False)["model"])
    assert (found[4] - wanted[4]).abs().max() < 1e-9


def test_half_precision_stays_and_adjusted_statistics_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, row, args, build = CASES["coord"][0]
    model = fork_model(tmp_path, monkeypatch, source, row, args, build).half()
    save_and_forget(model, tmp_path / "best.pt")
    migrate_checkpoint(tmp_path / "best.pt", tmp_path / "out.pt")
    migrated = torch.load(tmp_path / "out.pt", weights_only=False)["model"]
    assert migrated.model[0].conv.weight.dtype == torch.float16
    assert migrated.model[4].conv1.weight.dtype == torch.float16
    assert migrated.model[4].norm.running_var.dtype == torch.float64
    found = outputs(migrated)
    assert all((a - b).abs().max() < 1e-9 for a, b in zip(found, outputs(model)))


def test_stock_loads_the_migrated_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics import YOLO

    path, model = small(
        tmp_path, monkeypatch, "coord", train_args={"imgsz": 96, "task": "detect", "mine": 1}
    )
    migrate_checkpoint(path, tmp_path / "out.pt")
    from ultralytics.nn.tasks import torch_safe_load

    assert torch_safe_load(str(tmp_path / "out.pt"), safe_only=True)[0]["epoch"] == -1
    loaded = YOLO(tmp_path / "out.pt")
    assert loaded.names == {0: "person", 1: "car", 2: "drone"}
    assert loaded.overrides["imgsz"] == 96
    x = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        ours, theirs = loaded.model(x)[0], model.float()(x)[0]
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()


REFUSED: dict[str, tuple[str, str, str]] = {
    "eca-bias": (
        fork.ECA.format(name="ECA", conv="conv").replace("bias=False", "bias=True"),
        "ECA(c)",
        "has a bias",
    ),
    "cbam-leaky": (
        cbam()[0].replace("nn.ReLU()", "nn.LeakyReLU()"),
        "CBAM(c)",
        "leaky_relu",
    ),
    "cbam-mean-alone": (
        cbam()[0].replace("nn.AdaptiveMaxPool2d(1)", "nn.AdaptiveAvgPool2d(1)"),
        "CBAM(c)",
        "alone",
    ),
    "cbam-more": (
        cbam()[0] + "\n\nclass More(CBAM):\n    def __init__(self, c):\n"
        "        super().__init__(c)\n        self.extra = nn.Conv2d(c, c, 1)\n\n\nMore.__name__ = "
        "More.__qualname__ = 'CBAM'\nCBAM = More\n",
        "CBAM(c)",
        "more than the block here: extra",
    ),
    "coord-gelu": (coord("CoordAtt", act="nn.GELU")[0], "CoordAtt(c)", "gelu"),
    "gam-zero-padding": (
        fork.GAM_REPLICATE.replace('"replicate"', '"zeros"'),
        "GAM(c)",
        "--design GAM=paper",
    ),
    "gam-reflect": (fork.GAM_REPLICATE.replace('"replicate"', '"reflect"'), "GAM(c)", "reflect"),
    "bi-level-soft": (
        attention.BI_LEVEL.replace("= self.diff_routing = False", "= self.diff_routing = True"),
        "BiLevelRoutingAttention(c)",
        "soft_routing",
    ),
    "unknown": (
        fork.SE.format(name="SEWithGate", **SE_KEYS),
        "SEWithGate(c)",
        "SEWithGate",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_exactly_a_block_is_refused_by_row_and_module(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, build, why = REFUSED[case]
    name = build.partition("(")[0]
    model = fork_model(tmp_path, monkeypatch, source, name, [256], build)
    save_and_forget(model, tmp_path / "best.pt")
    result = migrate_checkpoint(tmp_path / "best.pt", tmp_path / "out.pt")
    (refusal,) = result.refused
    assert refusal.row == 4 and name in refusal.why and why in refusal.why
    assert result.rows == []
    assert sorted(p.name for p in tmp_path.glob("*.pt*")) == ["best.pt"]


def test_a_stock_layer_that_differs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, row, args, build = CASES["se"][0]
    model = fork_model(tmp_path, monkeypatch, source, row, args, build)
    model.model[0].act = torch.nn.ReLU()
    model.model[2].m[0].add = False
    model.model[5].bn = torch.nn.Identity()  # as of a fused model
    save_and_forget(model, tmp_path / "best.pt")
    refused = {r.row: r.why for r in migrate_checkpoint(tmp_path / "best.pt").refused}
    assert "act is ReLU there, SiLU here" in refused[0]
    assert "m.0 has add False there, True here" in refused[2]
    assert 5 in refused and len(refused) == 3


def test_the_order_of_a_position_gate_can_be_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = small(tmp_path, monkeypatch, "cbam")
    said = migrate_checkpoint(path, tmp_path / "a.pt").rows[0].why
    assert "--design CBAM=max-first" in said
    migrate_checkpoint(path, tmp_path / "b.pt", {"CBAM": "max-first"})
    a, b = (
        torch.load(tmp_path / f"{n}.pt", weights_only=False)["model"].model[4].conv.weight
        for n in "ab"
    )
    assert torch.equal(a, b.flip(1)) and torch.equal(
        b, model.model[4].spatial_attention.conv.weight
    )


def test_nothing_is_written_without_out_and_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = small(tmp_path, monkeypatch, "se")
    before = sorted(tmp_path.iterdir())
    assert migrate_checkpoint(path).parameters
    assert sorted(tmp_path.iterdir()) == before
    out = tmp_path / "out.pt"
    out.write_text("mine")
    with pytest.raises(YoloAttnError, match="--overwrite"):
        migrate_checkpoint(path, out)
    assert out.read_text() == "mine"
    migrate_checkpoint(path, out, overwrite=True)
    assert torch.load(out, weights_only=False)["epoch"] == -1
    for bad in (tmp_path / "out.pth", tmp_path / "none" / "out.pt"):
        with pytest.raises(YoloAttnError, match=bad.name):
            migrate_checkpoint(path, bad)


def test_a_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = small(tmp_path, monkeypatch, "se")

    def fails(content: Any, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(YoloAttnError, match="No space left"):
        migrate_checkpoint(path, tmp_path / "out.pt")
    assert sorted(p.name for p in tmp_path.iterdir() if "out" in p.name) == []


def test_models_that_are_no_ultralytics_ones_are_refused_in_one_line(tmp_path: Path) -> None:
    import sys
    import types

    v5 = types.ModuleType("models.yolo")
    kind = type("DetectionModel", (torch.nn.Module,), {"__module__": "models.yolo"})
    v5.DetectionModel = kind  # type: ignore[attr-defined]
    sys.modules["models"], sys.modules["models.yolo"] = types.ModuleType("models"), v5
    try:
        torch.save({"model": kind()}, tmp_path / "v5.pt")
    finally:
        del sys.modules["models"], sys.modules["models.yolo"]
    with pytest.raises(YoloAttnError, match="anchors"):
        migrate_checkpoint(tmp_path / "v5.pt")
    from ultralytics.nn.tasks import RTDETRDetectionModel

    query = RTDETRDetectionModel.__new__(RTDETRDetectionModel)
    torch.nn.Module.__init__(query)
    torch.save({"model": query}, tmp_path / "query.pt")
    with pytest.raises(YoloAttnError, match="RTDETRDetectionModel"):
        migrate_checkpoint(tmp_path / "query.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pt")
    with pytest.raises(YoloAttnError, match="no model in it"):
        migrate_checkpoint(tmp_path / "weights.pt")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "linear.pt")
    with pytest.raises(YoloAttnError, match="no YAML"):
        migrate_checkpoint(tmp_path / "linear.pt")


def test_a_malicious_checkpoint_is_migrated_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from .test_migrate_unpickler import attacks

    path, _ = small(tmp_path, monkeypatch, "se", optimizer=attacks(tmp_path / "ran"))
    assert not migrate_checkpoint(path, tmp_path / "out.pt").refused
    assert not (tmp_path / "ran").exists()


def test_the_command_prints_rows_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from typer.testing import CliRunner

    from yolo_attn.cli import app

    path, _ = small(tmp_path, monkeypatch, "eca")
    out = tmp_path / "out.pt"
    result = CliRunner().invoke(app, ["migrate", str(path), "-o", str(out), "--json"])
    assert result.exit_code == 0 and out.is_file()
    found = json.loads(result.stdout)
    assert found["refused"] == []
    assert found["rows"][0]["block"] == "ECA" and found["rows"][0]["parameters"] == 3
    assert found["rows"][0]["before"] == "[-1, 1, ECA, [256]]"


@pytest.mark.slow
def test_yolo_val_and_train_read_the_migrated_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_smallshapes(tmp_path / "shapes", image_size=96, train_images=6, val_images=2)
    (tmp_path / "shapes.yaml").write_text(
        f"path: {tmp_path / 'shapes'}\ntrain: images/train\nval: images/val\n"
        "names: [disk, square, triangle, cross, ring]\n"
    )
    source, row, args, build = CASES["cbam"][0]
    model = fork_model(tmp_path, monkeypatch, source, row, args, build, classes=5)
    save_and_forget(model, tmp_path / "best.pt")
    migrate_checkpoint(tmp_path / "best.pt", tmp_path / "out.pt")
    common = ("data=shapes.yaml", "imgsz=96", "device=cpu", "workers=0", "plots=False")
    yolo("detect", "val", "model=out.pt", *common, cwd=tmp_path)
    done = yolo(*("detect", "train", "model=out.pt", *common, "epochs=1", "batch=3"), cwd=tmp_path)
    said = done.stdout + done.stderr
    assert "yolo_attn.blocks.cbam.CBAM" in said
    number = len(model.state_dict())
    assert f"Transferred {number}/{number}" in said
