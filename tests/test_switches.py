"""Precision and speed switches of Ultralytics with our blocks in the model."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from ultralytics.nn import tasks
from ultralytics.utils import DEFAULT_CFG

from yolo_attn import block_info, create, list_blocks

SIDE = 64
BLOCKS = [name for name in list_blocks() if block_info(name).cls.__module__.startswith("yolo_attn")]
TASKS = {
    "detect": (tasks.DetectionModel, "Detect, [nc]"),
    "segment": (tasks.SegmentationModel, "Segment, [nc, 8, 32]"),
    "pose": (tasks.PoseModel, "Pose, [nc, [5, 3]]"),
    "obb": (tasks.OBBModel, "OBB, [nc, 1]"),
    "classify": (tasks.ClassificationModel, "Classify, [nc]"),
}
FAMILIES = ["NonLocal", "SE", "CrissCross", "BiFormer", "Container", "FPTSelf", "PPA", "LSK"]


def small_model(block: str = "NonLocal", task: str = "detect", ch: int = 3) -> nn.Module:
    """A few layers around one block, with the head of a task."""
    import yaml

    cls, head = TASKS[task]
    source = "-1" if task == "classify" else "[3, 4, 5]"
    text = f"""
nc: 3
kpt_shape: [5, 3]
channels: {ch}
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, {block}, []]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
head:
  - [{source}, 1, {head}]
"""
    torch.manual_seed(0)
    model = cls(yaml.safe_load(text), ch=ch, verbose=False)
    model.args = SimpleNamespace(**{**vars(DEFAULT_CFG), "overlap_mask": True})
    return model.train()


def batch(task: str = "detect", n: int = 2, ch: int = 3, size: tuple[int, int] = (SIDE, SIDE)):
    """Synthetic images, with one object in each."""
    g = torch.Generator().manual_seed(1)
    image = torch.rand(n, ch, *size, generator=g)
    if task == "classify":
        return {"img": image, "cls": torch.arange(n) % 3}
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.3]]).repeat(n, 1)
    labels = {
        "img": image,
        "batch_idx": torch.arange(n).float(),
        "cls": (torch.arange(n) % 3).float()[:, None],
        "bboxes": boxes,
    }
    if task == "segment":
        masks = torch.zeros(n, size[0] // 4, size[1] // 4)
        masks[:, 5:11, 5:11] = 1
        labels |= {"masks": masks, "sem_masks": masks.long()}
    if task == "pose":
        labels["keypoints"] = torch.rand(n, 5, 3, generator=g).clamp(0.3, 0.7)
        labels["keypoints"][..., 2] = 2
    if task == "obb":
        labels["bboxes"] = torch.cat([boxes, torch.full((n, 1), 0.3)], 1)
    return labels


def step(model: nn.Module, labels: dict[str, Tensor], autocast: bool = False) -> float:
    """One training step: the loss and all gradients are finite, and the block learns."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, _ = model(labels)
    total = loss.sum()
    total.backward()
    core = getattr(model, "_orig_mod", model)
    gradients = [p.grad for p in core.parameters() if p.grad is not None]
    assert torch.isfinite(total) and all(torch.isfinite(g).all() for g in gradients)
    block = core.model[3]
    assert not list(block.parameters()) or any(
        p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters()
    )
    optimizer.step()
    return float(total.detach())


def inputs(name: str, channels: int = 64, side: int = 16) -> tuple[int | list[int], Tensor | list]:
    """Channels and input of a block, several maps where it takes them."""
    info = block_info(name)
    side = max(side, info.min_size)
    g = torch.Generator().manual_seed(2)
    if not info.takes_list:
        c = 3 if name == "RevColumns" else channels
        return c, torch.rand(
            2, c, side * (4 if c == 3 else 1), side * (4 if c == 3 else 1), generator=g
        )
    count = max(info.min_inputs, min(3, info.max_inputs))
    scales = [*info.levels, *[info.levels[-1] if info.levels else 1.0] * count][:count]
    sizes = [max(1, int(side * s)) for s in scales]
    maps = [torch.rand(2, channels, s, s, generator=g) for s in sizes]
    return [channels] * count, maps


def flat(output: Tensor | list[Tensor]) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def cast(x: Tensor | list[Tensor], dtype: torch.dtype) -> Tensor | list[Tensor]:
    return x.to(dtype) if isinstance(x, Tensor) else [t.to(dtype) for t in x]


@pytest.mark.parametrize("name", BLOCKS)
def test_half_precision_inference(name: str) -> None:
    channels, x = inputs(name)
    torch.manual_seed(0)
    block = create(name, channels).eval()
    with torch.no_grad():
        full = flat(block(x))
        half = flat(copy.deepcopy(block).half()(cast(x, torch.float16)))
    for a, b in zip(full, half):
        assert b.dtype is torch.float16 and torch.isfinite(b).all()
        assert (a - b).abs().max() <= 0.03 * a.abs().max() + 0.01


@pytest.mark.parametrize("name", BLOCKS)
def test_channels_last_gives_the_same(name: str) -> None:
    channels, x = inputs(name)
    torch.manual_seed(0)
    block = create(name, channels).eval()
    memory = torch.channels_last
    other = (
        x.contiguous(memory_format=memory)
        if isinstance(x, Tensor)
        else [t.contiguous(memory_format=memory) for t in x]
    )
    with torch.no_grad():
        expected = flat(block(x))
        got = flat(copy.deepcopy(block).to(memory_format=memory)(other))
    for a, b in zip(expected, got):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_deterministic_mode_has_nothing_to_warn_of(name: str) -> None:
    channels, x = inputs(name)
    torch.manual_seed(0)
    block = create(name, channels).train()
    for one in flat(x):
        one.requires_grad_()  # SimAM has no parameters
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sum(y.square().mean() for y in flat(block(x))).backward()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("block", FAMILIES)
def test_training_step_under_bfloat16(block: str) -> None:
    model = small_model(block)
    expected = step(copy.deepcopy(model), batch())
    assert step(model, batch(), autocast=True) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("block", FAMILIES)
def test_batch_of_one_trains(block: str) -> None:
    step(small_model(block), batch(n=1))


@pytest.mark.parametrize("block", FAMILIES)
def test_rectangular_and_changing_sizes_train(block: str) -> None:
    model = small_model(block)
    for size in ((64, 96), (96, 64), (128, 128), (64, 64)):
        step(model, batch(size=size))


@pytest.mark.parametrize("ch", [1, 4])
@pytest.mark.parametrize("block", FAMILIES)
def test_images_of_one_and_four_channels(block: str, ch: int) -> None:
    model = small_model(block, ch=ch)
    step(model, batch(ch=ch))
    with torch.no_grad():
        model.eval()(torch.rand(1, ch, SIDE, SIDE))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("block", ["NonLocal", "SE", "CrissCross"])
def test_every_task_trains_with_a_block(block: str, task: str) -> None:
    model = small_model(block, task)
    step(model, batch(task))
    with torch.no_grad():
        model.eval()(torch.rand(1, 3, SIDE, SIDE))


@pytest.fixture
def fresh_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The common cache may hold what an interrupted run has left.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("block", FAMILIES)
def test_compiled_training_step(block: str, fresh_compiler: None) -> None:
    """As the trainer does with compile=True: the forward pass is compiled, the loss is not."""
    model = small_model(block)
    for module in model.modules():
        # Their random numbers differ.
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    labels, results = batch(), []
    for compiled in (False, True):
        core = copy.deepcopy(model)
        forward = torch.compile(core, dynamic=False) if compiled else core
        loss = core.loss(labels, forward(labels["img"]))[0].sum()
        loss.backward()
        results.append([loss, *(p.grad for p in core.model[3].parameters() if p.grad is not None)])
    for eager, got in zip(*results):
        torch.testing.assert_close(
            got, eager, rtol=1e-3, atol=1e-3 * eager.detach().abs().max().item()
        )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(DEFAULT_CFG, "compile"), reason="this Ultralytics has no compile")
@pytest.mark.parametrize("base", ["yolov5n", "yolov7-tiny", "yolov8n", "yolov9t"])
def test_training_with_compile(
    base: str, fresh_compiler: None, small_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics import YOLO

    seen = []
    monkeypatch.chdir(small_set)
    model = YOLO(f"{base}-nonlocal.yaml")
    model.add_callback("on_train_batch_end", lambda trainer: seen.append(trainer))
    model.train(
        data="data.yaml", epochs=1, imgsz=64, batch=2, workers=0, device="cpu", val=False,
        plots=False, compile=True,
    )  # fmt: skip
    assert hasattr(seen[0].model, "_orig_mod"), "the trainer did not compile"
    assert torch.isfinite(seen[-1].loss)


@pytest.fixture
def small_set(tmp_path: Path) -> Path:
    """Four images of different shapes with one object each."""
    import cv2
    import numpy as np

    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/labels").mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate([(64, 96), (96, 64), (64, 64), (48, 96)]):
        pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"data/images/{i}.jpg"), pixels)
        (tmp_path / f"data/labels/{i}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (tmp_path / "data.yaml").write_text(
        f"path: {tmp_path / 'data'}\ntrain: images\nval: images\nnames: {{0: a}}\n"
    )
    return tmp_path


@pytest.mark.slow
def test_trainer_switches_together(small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """rect, multi_scale, batch 1, deterministic: the trainer itself, no warning that names us."""
    from ultralytics import YOLO

    monkeypatch.chdir(small_set)
    Path("yolov8n-mine.yaml").write_text("base: yolov8.yaml\ninsert: [[P5, 1, BiFormer, []]]\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for switches in ({"rect": True}, {"multi_scale": 0.5}):
            YOLO("yolov8n-mine.yaml").train(
                data="data.yaml", epochs=1, imgsz=192, batch=1, workers=0, device="cpu", val=False,
                plots=False, deterministic=True, **switches,
            )  # fmt: skip
    assert not [w for w in caught if "yolo_attn" in w.filename or "deterministic" in str(w.message)]
