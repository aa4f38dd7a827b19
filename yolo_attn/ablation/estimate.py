"""What a study will take, before it is started: time and disk, from finished trials or a guess."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_attn.ablation.plan import Job, Plan
from yolo_attn.ablation.progress import seconds_left
from yolo_attn.ablation.store import DONE, TrialFolder

START = 15.0  # seconds for Python, torch, Ultralytics, the latency's part and the report
EVALUATED = 0.4  # of a training step: one forward pass, for each image of the validation
PICTURES = 6e6  # bytes of Ultralytics' plots and ours of the evaluation
# While it trains, a trial holds last.pt, best.pt and our copies of both: half-precision weights and
# the optimizer's two numbers for each.
WHILE, FINISHED = 4 * 6, 2 * 2  # bytes a parameter


@dataclass(frozen=True)
class Estimate:
    """What is left of a study.

    Attributes:
        seconds: on the places at hand; None if it cannot be said.
        disk: bytes that it will add.
        most: bytes that it needs meanwhile.
        free: bytes that the disk has.
        basis: what the time was estimated from.
    """

    seconds: float | None
    disk: float
    most: float
    free: float
    basis: str


def estimate(plan: Plan, todo: Sequence[Job], places: Sequence[str]) -> Estimate:
    """Estimate what `todo` takes; without a finished trial one training step is measured."""
    known = seconds_left(plan, todo, [], len(places))
    finished = [j for j in plan.jobs if TrialFolder(Path(j.folder)).status == DONE]
    basis = f"{len(finished)} finished trial{'' if len(finished) == 1 else 's'}"
    if known is None and todo:
        known = _guess(plan, todo, places)
        basis = "one training step, measured here; loading of images is not counted"
    sizes: dict[str, float] = {}
    for job in finished:
        sizes[job.arm] = float(_size(Path(job.folder)))
    disk = most = 0.0
    for job in todo:
        parameters = plan.arms[job.arm]["parameters"]
        disk += sizes.get(job.arm, parameters * FINISHED + PICTURES)
        most = max(most, parameters * WHILE)
    folder = plan.study.folder
    while not folder.exists():
        folder = folder.parent
    return Estimate(
        known, disk, disk + most * len(places), float(shutil.disk_usage(folder).free), basis
    )


def size(count: float) -> str:
    """Bytes for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 1):.0f} MB"


def _size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def _guess(plan: Plan, todo: Sequence[Job], places: Sequence[str]) -> float | None:
    """From one step of the baseline; other arms cost in proportion to their GFLOPs."""
    base = next(arm for arm in plan.study.arms if arm.name == plan.study.baseline)
    side = plan.study.train.get("imgsz", 640)
    side = max(side) if isinstance(side, (list, tuple)) else int(side)
    try:
        step = _step(base.model, side, places[0])
    except Exception:  # noqa: BLE001 - no memory, no such device: then there is no guess
        return None
    total = 0.0
    for job in todo:
        cost = plan.arms[job.arm]["gflops"] / max(plan.arms[base.name]["gflops"], 1e-9)
        images = job.epochs * plan.images * (1 + EVALUATED / 5)
        total += START + images * step * max(cost, 0.1)
    return total / max(min(len(places), len(todo)), 1)


def _step(model: str, side: int, device: str) -> float:
    """Seconds of one image in a training step, forwards and backwards."""
    import torch
    from ultralytics.nn.tasks import DetectionModel

    from yolo_attn.devices import torch_device
    from yolo_attn.overlay.dry_run import load_model_yaml

    place = torch.device(torch_device(device))
    batch = 2 if place.type == "cpu" else 8
    d = load_model_yaml(model)
    net: Any = DetectionModel(d, verbose=False).to(place).train()
    image = torch.rand(batch, d.get("channels", 3), side, side, device=place)
    best = float("inf")
    for _ in range(2):
        begin = time.perf_counter()
        loss = sum(part.float().mean() for part in _maps(net(image)))
        loss.backward()  # type: ignore[union-attr]  # a tensor: there is at least one map
        if place.type != "cpu":
            getattr(torch, place.type).synchronize()
        best = min(best, time.perf_counter() - begin)
    return best / batch


def _maps(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [part for each in value for part in _maps(each)]
    return [value] if value.requires_grad else []
