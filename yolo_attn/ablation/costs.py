"""What each arm costs: latency measured on this machine, arms interleaved, the same input for all.

Interleaved, because a machine that warms up or gets other work would slow the last arm alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from yolo_attn.ablation.store import TrialFolder, read_json, write_json

WARM_UP, ROUNDS = 3, 50
SECONDS = 20.0  # for all arms together; fewer rounds where one takes long
LEAST = 10  # rounds


def measure(weights: Mapping[str, Path], imgsz: int, device: str) -> dict[str, Any]:
    """Latency of one image, float32, layers fused, without NMS.

    Args:
        weights: arm -> checkpoint.
        imgsz: side of the input in pixels.
        device: "cpu" or the number of a CUDA device.

    Returns:
        {"arms": {arm: {"latency_ms", "latency_p95_ms"}}, "device", "threads", "rounds", "imgsz"}.
    """
    import torch

    place = torch.device("cpu" if device == "cpu" else f"cuda:{device}")
    nets = {arm: _network(file, place) for arm, file in weights.items()}
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, imgsz, imgsz, generator=generator).to(place)
    times: dict[str, list[float]] = {arm: [] for arm in nets}
    with torch.inference_mode():
        for net in nets.values():
            for _ in range(WARM_UP):
                _timed(net, image)
        begin = time.perf_counter()
        for done in range(ROUNDS):
            if done >= LEAST and time.perf_counter() - begin > SECONDS:
                break
            for arm, net in nets.items():
                times[arm].append(1000 * _timed(net, image))
    arms = {
        arm: {
            "latency_ms": float(np.median(values)),
            "latency_p95_ms": float(np.percentile(values, 95)),
        }
        for arm, values in times.items()
    }
    rounds = len(next(iter(times.values()), []))
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "CPU"
    threads = torch.get_num_threads()
    return {"arms": arms, "device": name, "threads": threads, "rounds": rounds, "imgsz": imgsz}


def measure_study(folder: Path, first: Mapping[str, TrialFolder], imgsz: int, device: str) -> None:
    """Measure the arms of a study and write costs.json, unless it knows these very checkpoints.

    Args:
        folder: of the study.
        first: arm -> a finished trial.
        imgsz: as `measure`.
        device: as `measure`.
    """
    stamps = {arm: trial.best.stat().st_mtime_ns for arm, trial in first.items()}
    file = folder / "costs.json"
    known = read_json(file)
    if known and known["stamps"] == stamps:
        return
    found = measure({arm: trial.best for arm, trial in first.items()}, imgsz, device)
    write_json(file, {**found, "stamps": stamps})


def _network(file: Path, place: Any) -> Any:
    from ultralytics import YOLO

    net = YOLO(str(file)).model.float().fuse(verbose=False)  # type: ignore[union-attr]  # no str
    return net.to(place).eval()


def _timed(net: Any, image: Any) -> float:
    import torch

    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    begin = time.perf_counter()
    net(image)
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    return time.perf_counter() - begin
