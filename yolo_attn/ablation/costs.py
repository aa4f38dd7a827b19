"""What each arm costs: latency measured on this machine, the same input for all arms.

Interleaved, because a machine that warms up or gets other work would slow the last arm alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from yolo_attn.ablation.store import TrialFolder, read_json, write_json
from yolo_attn.devices import torch_device
from yolo_attn.evaluation.slicing import slicer

WARM_UP, ROUNDS = 3, 50
SECONDS = 20.0  # for all arms together; fewer rounds where one takes long
LEAST = 10  # rounds


def measure(weights: Mapping[str, Path], imgsz: int, device: str) -> dict[str, Any]:
    """Latency of one image, float32, layers fused, without NMS.

    Args:
        weights: arm -> checkpoint.
        imgsz: side of the input in pixels.
        device: as in Ultralytics; of several the first.

    Returns:
        {"arms": {arm: {"latency_ms", "latency_p95_ms"}}, "device", "threads", "rounds", "imgsz"}.
    """
    import torch

    place = torch.device(torch_device(device))
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
    rounds = len(next(iter(times.values()), []))
    return {**_summary(times, place), "rounds": rounds, "imgsz": imgsz}


def measure_predictions(
    predictors: Mapping[str, Callable[[str], Any]],
    images: Sequence[str],
    device: str,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """Time from an image file to its boxes, at the confidence of an evaluation.

    For studies with slices: only a whole prediction counts the slices and their merging.

    Args:
        predictors: arm -> what `predictor` gives.
        images: files; at most `ROUNDS` of them are used, spread over the list.
        device: as `measure`.
        seconds: for all arms together; then `LEAST` images are enough.

    Returns:
        As `measure` without "imgsz"; "rounds" are images, and "conf" is the confidence.
    """
    import torch

    from yolo_attn.evaluation.predict import CONFIDENCE

    chosen = list(images)[:: max(-(-len(images) // ROUNDS), 1)]
    times: dict[str, list[float]] = {arm: [] for arm in predictors}
    for predict in predictors.values():
        predict(chosen[0])
    begin = time.perf_counter()
    for done, image in enumerate(chosen):
        if done >= LEAST and time.perf_counter() - begin > seconds:
            break
        for arm, predict in predictors.items():
            start = time.perf_counter()
            predict(image)
            times[arm].append(1000 * (time.perf_counter() - start))
    rounds = len(next(iter(times.values())))
    place = torch.device(torch_device(device))
    return {**_summary(times, place), "rounds": rounds, "conf": CONFIDENCE}


def predictor(
    file: Path, imgsz: int, device: str, cut: tuple[int, float] | None = None
) -> Callable[[str], Any]:
    """From an image file to its boxes.

    Args:
        file: a checkpoint.
        imgsz: side of its input in pixels.
        device: as `measure`.
        cut: size and overlap of slices; None: the whole image.
    """
    import cv2
    from ultralytics import YOLO

    from yolo_attn.evaluation.predict import CONFIDENCE, MAX_DET, NMS_IOU

    place = torch_device(device)
    if cut:
        return slicer(file, cut[0], overlap=cut[1], conf=CONFIDENCE, imgsz=imgsz, device=place)
    net = YOLO(str(file))

    def whole(path: str) -> Any:
        # SAHI reads the file once, too, and hands arrays to the model.
        return net.predict(
            cv2.imread(path), imgsz=imgsz, conf=CONFIDENCE, iou=NMS_IOU, max_det=MAX_DET,
            device=place, verbose=False, save=False,
        )  # fmt: skip

    return whole


def measure_study(
    folder: Path,
    first: Mapping[str, TrialFolder],
    imgsz: int,
    device: str,
    slices: Mapping[str, tuple[int, float]],
    images: Callable[[], Sequence[str]],
) -> None:
    """Measure the arms of a study and write costs.json, unless it knows these very checkpoints.

    Args:
        folder: of the study.
        first: arm -> a finished trial.
        imgsz: as `measure`.
        device: as `measure`.
        slices: arm -> size and overlap of its slices; without any, `measure` serves.
        images: gives the files of the split, where slices ask for them.
    """
    stamps: dict[str, Any] = {arm: trial.best.stat().st_mtime_ns for arm, trial in first.items()}
    stamps.update({arm: [stamps[arm], *cut] for arm, cut in slices.items() if arm in stamps})
    file = folder / "costs.json"
    known = read_json(file)
    if known and known["stamps"] == stamps:
        return
    weights = {arm: trial.best for arm, trial in first.items()}
    if any(arm in slices for arm in weights):
        every = {arm: predictor(w, imgsz, device, slices.get(arm)) for arm, w in weights.items()}
        found = {**measure_predictions(every, images(), device), "imgsz": imgsz}
    else:
        found = measure(weights, imgsz, device)
    write_json(file, {**found, "stamps": stamps})


def _summary(times: Mapping[str, Sequence[float]], place: Any) -> dict[str, Any]:
    import torch

    arms = {
        arm: {
            "latency_ms": float(np.median(values)),
            "latency_p95_ms": float(np.percentile(values, 95)),
        }
        for arm, values in times.items()
    }
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type.upper()
    return {"arms": arms, "device": name, "threads": torch.get_num_threads()}


def _network(file: Path, place: Any) -> Any:
    from ultralytics import YOLO

    net = YOLO(str(file)).model.float().fuse(verbose=False)  # type: ignore[union-attr]  # no str
    return net.to(place).eval()


def _timed(net: Any, image: Any) -> float:
    _wait(image)
    begin = time.perf_counter()
    net(image)
    _wait(image)
    return time.perf_counter() - begin


def _wait(image: Any) -> None:
    """Until the image's device has done what it was told."""
    import torch

    if image.device.type != "cpu":
        getattr(torch, image.device.type).synchronize()
