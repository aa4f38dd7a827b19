"""What the seam costs a training step of a stock model: interleaved steps with and without it.

One YOLOv8n trains on random images. A step is forward, loss, backward and the optimizer; in every
second one the model's ``loss`` is Ultralytics' own function, as without the plugin. Printed are the
medians and quartiles of the steps and of the differences of neighbouring steps (process time), and
what our handler takes by itself, with no loss behind it.

Example: python benchmarks/stock_step.py --steps 200
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, Callable

import torch
import ultralytics
from timing import processor_name
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from yolo_attn.seam.losses import loss as handler
from yolo_attn.seam.redirect import original_of


def batch(size: int) -> dict[str, torch.Tensor]:
    """Two objects on two random images."""
    return {
        "img": torch.rand(2, 3, size, size),
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[1.0], [0.0]]),
        "bboxes": torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.1]]),
    }


def milliseconds(function: Callable[[], Any]) -> float:
    begin = time.process_time()
    function()
    return (time.process_time() - begin) * 1000


def spread(values: list[float], form: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="steps of each kind")
    parser.add_argument("--imgsz", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = DetectionModel("yolov8n.yaml", verbose=False).train()
    net.args = DEFAULT_CFG
    data, stock = batch(args.imgsz), original_of("ultralytics.nn.tasks.BaseModel.loss")
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)

    def step(loss: Callable[..., Any]) -> None:
        loss(net, data)[0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    arms = {True: DetectionModel.loss, False: stock}
    for loss in [*arms.values()] * 3:
        step(loss)
    times: dict[bool, list[float]] = {True: [], False: []}
    for i in range(args.steps):
        for hook in (True, False) if i % 2 else (False, True):
            times[hook].append(milliseconds(lambda hook=hook: step(arms[hook])))
    differences = [on - off for on, off in zip(times[True], times[False])]
    own = [milliseconds(lambda: handler(lambda *_: None, net, data)) for _ in range(args.steps)]
    print(
        f"yolov8n, {args.imgsz} pixels, batch 2, {args.steps} steps each, one thread of "
        f"{processor_name()}; torch {torch.__version__}, Ultralytics {ultralytics.__version__}; "
        "median (quartiles)"
    )
    print(f"step, hook off:    {spread(times[False], '.2f')} ms")
    print(f"step, hook on:     {spread(times[True], '.2f')} ms")
    print(f"difference:        {spread(differences, '+.3f')} ms")
    print(f"our handler alone: {spread(own, '.4f')} ms")


if __name__ == "__main__":
    main()
