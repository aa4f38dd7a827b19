"""Is every block alive in a YOLO? What enters its norms, train against evaluation, its gradient.

Each block stands at its place of the zoo in YOLOv8n (``yolov8n-<block>.yaml``), untrained. A row
of the table:

- *variance / eps*: for the block's norm that fares worst, the median over its channels (groups,
  positions) of the variance that enters it, in multiples of its eps. Under 10 the norm does not
  normalise.
- *train / eval*: after 200 training batches of random maps with momentum 0.1, the L2 difference of
  the outputs in training and in evaluation mode on 512 fresh maps, in percent of the latter.
  Zero-started norms and last layers are set to one and to small random numbers first (else the
  block is the identity in both modes), dropout is off.
- *gradient*: the norm of the gradient of all the block's parameters, and of the layer that it
  reads, for one batch with random boxes.

``--package FOLDER`` measures another checkout (the state before a change) with this same script;
``--before FILE`` puts its ``--json`` beside this one's figures.

Example: python scripts/block_truth.py IMAGES --out docs/block-truth.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if "--package" in sys.argv:  # before anything of ours is imported
    sys.path.insert(0, sys.argv[sys.argv.index("--package") + 1])

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}
BATCHES, BATCH, SIDE = 200, 32, 8
# What a norm sees once an image (a gate, a map that attention has averaged) has no more values than
# there are images: with few, only their scatter would show.
FRESH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", help="folder of photographs; four are taken")
    parser.add_argument("--blocks", nargs="*", help="names; all by default")
    parser.add_argument("--package", help="folder of another checkout of yolo_attn")
    parser.add_argument("--imgsz", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    parser.add_argument("--before", type=Path, help="the --json of another checkout")
    parser.add_argument("--out", type=Path, help="also write a page, such as docs/block-truth.md")
    args = parser.parse_args()

    from yolo_attn import block_info, list_blocks
    from yolo_attn.errors import YoloAttnError

    try:
        names = [block_info(name).name for name in args.blocks or list_blocks()]
    except YoloAttnError as error:
        parser.error(str(error))
    images = load_images(Path(args.images), args.imgsz)
    before = json.loads(args.before.read_text()) if args.before else None
    lines = header(before is not None)
    print("\n".join(lines))
    rows = {}
    for name in names:
        rows[name] = measure(name, images)
        lines.append(line_of(name, rows[name], before))
        print(lines[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    if args.out:
        args.out.write_text(page(lines, args))


COLUMNS = {
    "variance / eps": lambda r: "no norm" if r["variance"] is None else f"{r['variance']:.3g}",
    "train / eval": lambda r: f"{r['train_eval']:.1%}",
    "gradient": lambda r: f"{r['gradient']:.3g}",
    "of its neighbour": lambda r: f"{r['neighbour']:.3g}",
}


def header(with_before: bool) -> list[str]:
    """The table's first two lines."""
    names = [f"{c}: {when}" for c in COLUMNS for when in ("before", "now")]
    names = ["block", "layers", *(names if with_before else COLUMNS)]
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def line_of(name: str, row: dict[str, Any], before: dict[str, Any] | None) -> str:
    """One line of the table; `before` holds the rows of another checkout by block."""
    cells = []
    for show in COLUMNS.values():
        if before is not None:
            cells.append(show(before[name]) if name in before else "-")
        cells.append(show(row))
    return f"| {' | '.join([name, row['layers'], *cells])} |"


def page(lines: list[str], args: argparse.Namespace) -> str:
    """The table with what its columns mean, as Markdown."""
    assert __doc__ is not None
    meaning = __doc__[__doc__.index("Each block") : __doc__.index("``--package")].strip()
    command = "python scripts/block_truth.py IMAGES" + (" --before BEFORE" if args.before else "")
    said = f"Printed by `{command} --out docs/block-truth.md`; {args.imgsz} px, four photographs."
    return "\n".join(
        ["# Is every block alive?", "", said, "", meaning.replace("``", "`"), "", *lines, ""]
    )


def load_images(folder: Path, side: int, count: int = 4) -> Tensor:
    """The first photographs of a folder as a batch ``(count, 3, side, side)``, values 0 to 1."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)[:count]
    if len(files) < count:
        raise SystemExit(f"{folder}: {len(files)} images, {count} are needed")
    images = [cv2.resize(cv2.imread(str(f)), (side, side)) for f in files]
    return torch.from_numpy(np.stack(images)).flip(3).permute(0, 3, 1, 2).float() / 255


def measure(name: str, images: Tensor) -> dict[str, Any]:
    """One row of the table."""
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import DEFAULT_CFG

    from yolo_attn.registry import block_info

    torch.manual_seed(0)
    model = DetectionModel(f"yolov8n-{name.lower()}.yaml", verbose=False)
    model.args = DEFAULT_CFG
    cls = block_info(name).cls
    layers = list(model.model)
    rows = [i for i, layer in enumerate(layers) if isinstance(_unrepeated(layer), cls)]
    inputs: list[Any] = []
    first = layers[rows[0]]
    hook = first.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with norm_inputs([m for i in rows for m in layers[i].modules()]) as seen:
        loss, _ = model.train().loss(targets(images))
    hook.remove()
    loss.sum().backward()
    return {
        "layers": " ".join(map(str, rows)),
        "variance": worst_norm(seen),
        "train_eval": train_eval(_unrepeated(first), inputs[0]),
        "gradient": _gradient([p for i in rows for p in layers[i].parameters()]),
        "neighbour": _gradient(list(_neighbour(layers, rows[0]).parameters())),
    }


def _unrepeated(layer: nn.Module) -> nn.Module:
    """The block of a row; wrapped as in a row with ``identity_start``, what is inside."""
    layer = layer[0] if isinstance(layer, nn.Sequential) else layer
    return getattr(layer, "block", layer) if type(layer).__name__ == "IdentityStart" else layer


def _neighbour(layers: list[Any], i: int) -> nn.Module:
    """The nearest layer with weights before the row, or after it if there is none."""
    around = [*reversed(layers[:i]), *layers[i + 1 :]]
    return next(layer for layer in around if any(p.requires_grad for p in layer.parameters()))


def targets(images: Tensor) -> dict[str, Tensor]:
    """A batch with eight random boxes an image."""
    generator = torch.Generator().manual_seed(1)
    count = 8 * len(images)
    boxes = torch.rand(count, 4, generator=generator) * torch.tensor([0.8, 0.8, 0.15, 0.15])
    return {
        "img": images,
        "cls": torch.randint(0, 80, (count, 1), generator=generator).float(),
        "bboxes": boxes + torch.tensor([0.1, 0.1, 0.05, 0.05]),
        "batch_idx": torch.arange(len(images)).repeat_interleave(8).float(),
    }


@contextmanager
def norm_inputs(modules: list[nn.Module]) -> Iterator[list[tuple[float, float]]]:
    """While open, ``(median variance, eps)`` of what enters the norms of these modules.

    Norms are known by the parameters that the functions of ``torch.nn.functional`` get.
    """
    own = {id(p) for m in modules for p in m.parameters(recurse=False)}
    stock = {name: getattr(F, name) for name in ("batch_norm", "group_norm", "layer_norm")}
    seen: list[tuple[float, float]] = []

    def watch(name: str) -> Any:
        def watched(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
            eps = kwargs.get("eps", args[-1] if args and isinstance(args[-1], float) else 1e-5)
            if any(id(t) in own or id(t._base) in own for t in tensors) or not tensors:
                seen.append((median_variance(name, x.detach(), args, kwargs), eps))
            return stock[name](x, *args, **kwargs)

        return watched

    for name in stock:
        setattr(F, name, watch(name))
    try:
        yield seen
    finally:
        for name, function in stock.items():
            setattr(F, name, function)


def median_variance(name: str, x: Tensor, args: Any, kwargs: Any) -> float:
    """Median over what is normalised together of the variance of `x`."""
    if name == "batch_norm":
        rows = x.transpose(0, 1).flatten(1)
    elif name == "group_norm":
        groups = kwargs.get("num_groups", args[0] if args else 1)
        rows = x.reshape(x.shape[0] * groups, -1)
    else:
        shape = kwargs.get("normalized_shape", args[0] if args else x.shape[-1:])
        rows = x.flatten(-len(shape)).flatten(0, -2)
    return float(rows.double().var(1, unbiased=False).median())


def worst_norm(seen: list[tuple[float, float]]) -> float | None:
    """Smallest ratio of variance to eps."""
    return min((variance / eps for variance, eps in seen), default=None)


@torch.no_grad()
def train_eval(block: nn.Module, like: Any, batches: int = BATCHES) -> float:
    """Relative difference of the outputs in training and in evaluation mode.

    Args:
        block: The block; it is changed.
        like: Its input, for the shapes.
        batches: Training batches of random maps before.
    """
    torch.manual_seed(0)
    wake(block)
    shapes = [x.shape for x in (like if isinstance(like, (list, tuple)) else [like])]
    if shapes[0][1] == 3:  # reads the image
        sizes = [(3, 64, 64)]
    else:
        sizes = [(s[1], s[2] * SIDE // shapes[0][2], s[3] * SIDE // shapes[0][3]) for s in shapes]

    def maps(count: int = BATCH) -> Any:
        fresh = [torch.randn(count, *s) for s in sizes]
        return fresh if isinstance(like, (list, tuple)) else fresh[0]

    block.train()
    for _ in range(batches if _has_statistics(block) else 1):
        block(maps())
    x = maps(FRESH)
    trained = _flat(block(x))
    evaluated = _flat(block.eval()(x))
    return float((trained - evaluated).norm() / evaluated.norm())


def _has_statistics(block: nn.Module) -> bool:
    """Whether training leaves something behind that evaluation uses."""
    kept = block.state_dict()
    return any(name in kept for name, _ in block.named_buffers())


@torch.no_grad()
def wake(block: nn.Module) -> None:
    """Take a block off the identity; momentum 0.1, no dropout."""
    for name, parameter in block.named_parameters():
        if parameter.numel() and not parameter.any() and not name.endswith("bias"):
            parameter.fill_(1.0) if parameter.dim() < 2 else parameter.normal_(std=0.1)
    for module in block.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.1
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0


def _flat(y: Any) -> Tensor:
    maps = y if isinstance(y, (list, tuple)) else [y]
    return torch.cat([m.flatten().double() for m in maps])


def _gradient(parameters: list[nn.Parameter]) -> float:
    """L2 norm of all gradients together."""
    grads = [p.grad.flatten() for p in parameters if p.grad is not None]
    return float(torch.cat(grads).norm()) if grads else 0.0


if __name__ == "__main__":
    main()
