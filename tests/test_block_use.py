"""Is a block used? Numbers that a hand can check, and the table that shows them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.explain_model import image_folder
from yolo_attn import registry
from yolo_attn.explain import hooks, use
from yolo_attn.explain.use_table import NAME, BlockUse, percent, table
from yolo_attn.seam import block_use


class Quarter(nn.Module):
    """Adds a quarter of what it reads."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), -0.75))

    def zero_started(self):
        return self.weight

    def forward(self, x):
        return x * 1.25


class Both(nn.Module):
    """The first input minus a tenth of it; the second counts for nothing."""

    def __init__(self, channels: list[int]):
        super().__init__()

    def forward(self, xs):
        return xs[0] * 0.9


class Wider(nn.Module):
    """Twice the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.out_channels = 2 * channels

    def forward(self, x):
        return torch.cat([x, x], 1)


BACKBONE = [
    [-1, 1, "Conv", [16, 3, 2]],
    [-1, 1, "Conv", [16, 3, 2]],
    [-1, 2, "Quarter", []],
    [-1, 1, "Quarter", [{"identity_start": True}]],
    [-1, 1, "Conv", [16, 3, 2]],
    [-1, 1, "Wider", []],
    [-1, 1, "Conv", [16, 1, 1]],
]
HEAD = [
    [[-1, 3], 1, "Both", []],
    [-1, 1, "Conv", [16, 1, 1]],
    [-1, 1, "Quarter", []],
    [[9], 1, "Detect", ["nc"]],
]


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> hooks.Subject:
    """A model whose blocks change what they read by known shares."""
    from ultralytics.nn.tasks import DetectionModel

    registry.list_blocks()  # all of ours first: what is restored afterwards must hold them
    for name in ("_BLOCKS", "_ALIASES"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    registry.register(Quarter)
    registry.register(Wider)
    registry.register(Both, inputs=2)
    torch.manual_seed(0)
    d = {"nc": 1, "backbone": BACKBONE, "head": HEAD}
    return hooks.subject(DetectionModel(d, ch=3, verbose=False), "small.yaml")


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    return sorted(map(str, image_folder(tmp_path / "images").iterdir()))


def test_the_change_of_known_blocks_is_that_of_the_hand(subject, images) -> None:
    with torch.no_grad():
        subject.model.model[3].g.fill_(0.05)  # a tenth of the gate
    blocks, count = use.measure(subject, images, imgsz=64)
    assert count == 2
    found = {b.layer: (b.block, b.where, b.gate, b.gamma, b.change) for b in blocks}
    about = pytest.approx
    assert found == {
        2: ("Quarter", "P2", None, 0.75, about(1.25**2 - 1, rel=1e-5)),  # two in a row
        3: ("Quarter", "P2", 0.5, 0.75, about(0.5 * 0.25, rel=1e-5)),
        5: ("Wider", "P3", None, None, None),  # other channels: nothing to compare
        7: ("Both", "stride 8", None, None, about(0.1, rel=1e-5)),
        9: ("Quarter", "N3", None, 0.75, about(0.25, rel=1e-5)),
    }


def test_a_block_behind_identity_start_begins_with_nothing(subject, images) -> None:
    (found,) = [b for b in use.measure(subject, images, imgsz=64)[0] if b.layer == 3]
    assert (found.gate, found.change) == (0, 0) and found.hardly


def test_relative_change_is_a_ratio_of_lengths() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])[..., None, None]
    y = torch.tensor([[3.0, 5.0], [6.0, 2.0]])[..., None, None]
    assert use.relative_change(x, y).tolist() == pytest.approx([1 / 5, 3])


def test_the_mean_is_over_images_of_different_shapes(subject, images, monkeypatch) -> None:
    factors = iter([1.5, 1.0])
    monkeypatch.setattr(Quarter, "forward", lambda self, x: x * self.factor)
    subject.model.register_forward_pre_hook(
        lambda *_: setattr(Quarter, "factor", next(factors)), with_kwargs=False
    )
    found = {b.layer: b.change for b in use.measure(subject, images, imgsz=64)[0]}
    assert found[9] == pytest.approx((0.5 + 0) / 2)


def test_measuring_leaves_the_model_and_the_random_state(subject, images) -> None:
    before = {k: v.clone() for k, v in subject.model.state_dict().items()}
    state = torch.get_rng_state()
    use.measure(subject, images, imgsz=64)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in subject.model.state_dict().items())
    assert not any(row._forward_hooks for row in subject.model.model)


def test_no_image_is_begun_after_the_time(subject, images) -> None:
    assert use.measure(subject, images, imgsz=64, seconds=0)[1] == 1


def test_validation_images_are_the_same_ones_every_time() -> None:
    files = [f"{i:03}.png" for i in range(100)]
    chosen = use.spread(files[::-1])
    assert chosen == files[0:1] + [files[i * 100 // 8] for i in range(1, 8)]
    assert use.spread(["b", "a"]) == ["a", "b"] and use.spread([]) == []


def test_the_table_has_80_columns_at_most_and_json_knows_no_infinity() -> None:
    wide = BlockUse(1234, "B" * 60, "stride 128", 1.23456e-5, 123456.0, 1.23456e9)
    lines = table([wide, BlockUse(2, "SE", "P3", None, None, float("nan"))], "8 validation images")
    assert max(map(len, lines)) <= 80 and "B" * (NAME - 3) + "..." in lines[1]
    assert lines[1].index(wide.where) == lines[2].index("P3") == lines[0].index("where")
    assert [percent(v) for v in (None, 0, 0.0012345, 12.3)] == ["-", "0 %", "0.123 %", "1230 %"]
    assert BlockUse(2, "SE", "P3", None, 0.5, float("inf")).as_dict() == {
        "layer": 2, "block": "SE", "where": "P3", "gate": None, "gamma": 0.5, "change": None,
    }  # fmt: skip


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Ultralytics' logger is asked to print."""
    from ultralytics.utils import LOGGER

    lines: list[str] = []
    monkeypatch.setattr(LOGGER, "info", lines.append)
    monkeypatch.setattr(LOGGER, "warning", lambda text: lines.append(f"WARNING {text}"))
    return lines


def trainer_of(model: nn.Module, images: list[str]) -> SimpleNamespace:
    """What is left of a trainer when a training without checkpoints has ended."""
    return SimpleNamespace(
        model=model, ema=SimpleNamespace(ema=model), device=torch.device("cpu"),
        best=Path("no best.pt"), last=Path("no last.pt"),
        test_loader=SimpleNamespace(dataset=SimpleNamespace(im_files=images)),
    )  # fmt: skip


def test_a_training_without_checkpoints_is_measured_too(subject, images, told) -> None:
    subject.model.train()
    ended: list[object] = []
    block_use.on_train_end(ended.append, trainer_of(subject.model, images))
    assert told[0] == "Blocks of the averaged weights:" and len(told) == 1 + 1 + 5 + 1
    assert len(ended) == 1 and subject.model.training, "the trainer's own model is left alone"


def test_a_stock_training_prints_nothing(images, told) -> None:
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel("yolov8n.yaml", verbose=False)
    told.clear()
    block_use.on_train_end(lambda trainer: None, trainer_of(model, images))
    assert told == []


def test_what_cannot_be_measured_is_one_warning_line(subject, images, told) -> None:
    Path(images[0]).write_text("no image")
    block_use.on_train_end(lambda trainer: None, trainer_of(subject.model, images))
    (line,) = told
    assert line.startswith("WARNING yolo_attn: ") and images[0] in line and "\n" not in line


def test_trial_json_gets_the_numbers_of_the_evaluation(tmp_path: Path, monkeypatch) -> None:
    from tests import ablation_worker
    from yolo_attn.ablation import trial
    from yolo_attn.ablation.block_use import mean_use

    monkeypatch.setattr(trial, "CHILD", "tests.ablation_worker")
    monkeypatch.setattr(trial, "POLL", 0.02)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    job = ablation_worker.jobs_in(tmp_path, "resume")[1]
    record = trial.run_job(job, "cpu")
    assert record["status"] == "done" and set(record["metrics"]) == {"coco"}
    stored = json.loads((Path(job.folder) / "trial.json").read_text())
    assert stored["blocks"] == [b.as_dict() for b in ablation_worker.BLOCKS]
    assert mean_use([stored, {"status": "done"}]) == ablation_worker.BLOCKS
