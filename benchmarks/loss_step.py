"""Cost of each loss beside stock CIoU and BCE: seconds of CPU time, and the ratio of a whole step.

A whole step is forward, loss and backward of a model in training mode. The loss alone (criterion
and its backward to the head's outputs) is timed with each choice on the same outputs, by turns with
the stock one; ratio = (step + loss - stock loss)/step. Printed are medians of CPU time with one
thread, which other processes disturb least.

Example: python benchmarks/loss_step.py --rounds 7
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any, Callable

import torch

CHOICES: dict[str, Any] = {
    **{name: name for name in ("iou", "giou", "diou", "eiou", "siou", "mpdiou", "shapeiou")},
    **{name: name for name in ("piou", "piou2", "wiou", "nwd", "inner-ciou", "focaler-ciou")},
    **{name: name for name in ("alpha-ciou", "focal-eiou", "wise-inner-siou")},
    "ciou + nwd 0.5": {"box": "ciou", "nwd": 0.5},
    **{
        f"cls {name}": {"cls": name}
        for name in ("focal", "varifocal", "quality_focal", "slide", "ema_slide")
    },
}


def seconds(call: Callable[[], None]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def leaves(value: Any) -> Any:
    """The same outputs, cut from the graph, so that a backward ends there."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_()
    if isinstance(value, dict):
        return {key: leaves(v) for key, v in value.items()}
    return type(value)(leaves(v) for v in value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="yolov8n.yaml")
    for name, value in (("imgsz", 320), ("batch", 4), ("objects", 20), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)

    from ultralytics.nn.tasks import DetectionModel, yaml_model_load
    from ultralytics.utils import DEFAULT_CFG

    d = yaml_model_load(args.model)
    torch.manual_seed(0)
    model = DetectionModel({**d}, verbose=False).train()
    model.args = DEFAULT_CFG
    n = args.batch * args.objects
    centres, sides = torch.rand(n, 2) * 0.6 + 0.2, torch.rand(n, 2) * 0.2 + 0.05
    batch = {
        "img": torch.rand(args.batch, 3, args.imgsz, args.imgsz),
        "batch_idx": torch.arange(args.batch).repeat_interleave(args.objects).float(),
        "cls": torch.randint(0, 80, (n, 1)).float(),
        "bboxes": torch.cat([centres, sides], 1),
    }
    outputs = model(batch["img"])

    def step() -> None:
        model.zero_grad()
        model.loss(batch)[0].sum().backward()

    def loss_alone(criterion: Any) -> Callable[[], None]:
        return lambda: criterion(leaves(outputs), batch)[0].sum().backward()

    stock = loss_alone(model.init_criterion())
    chosen = {}
    for name, value in CHOICES.items():
        model.yaml = {**d, "loss": value}
        chosen[name] = loss_alone(model.init_criterion())
    model.yaml = d
    for call in (step, stock, *chosen.values()):
        call()
    whole = statistics.median(seconds(step) for _ in range(args.rounds))
    print(
        f"{args.model} batch {args.batch} imgsz {args.imgsz}, {args.objects} objects an image, "
        f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print(f"whole step with the stock loss: {1e3 * whole:.0f} ms")
    print(f"{'loss':<20}{'loss ms':>9}{'stock ms':>9}{'step ratio':>12}")
    for name, call in chosen.items():
        pairs = [(seconds(call), seconds(stock)) for _ in range(args.rounds)]
        ours, theirs = (1e3 * statistics.median(p[i] for p in pairs) for i in (0, 1))
        more = statistics.median(a - b for a, b in pairs)
        print(f"{name:<20}{ours:>9.1f}{theirs:>9.1f}{1 + more / whole:>12.3f}")


if __name__ == "__main__":
    main()
