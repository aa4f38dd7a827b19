"""How should a block start that must not change a trained model's predictions, and still be used?

One small detector, one block at stride 8, trained for 20 epochs in two ways: from a trained base
with SGD (Ultralytics' defaults) and from scratch with the AdamW that Ultralytics' `auto` takes.
For each form of the start and each block it prints how far the gate came, how much the block
changes its input on the validation images, and the AP50. What is done is kept in a file: the same
command goes on where it was stopped.

Example: python scripts/identity_start.py --blocks SE CBAM --forms step1 step10 --jobs 2
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from controls import DETECTOR
from torch import Tensor, nn

from yolo_attn import create, register
from yolo_attn.ablation.store import write_text
from yolo_attn.blocks.identity_start import IdentityStart
from yolo_attn.data.synthetic import make_smallshapes
from yolo_attn.registry import block_info

BLOCKS = ("SE", "CBAM", "EMA", "CoordAtt", "LSK", "PPA", "BiFormer")
SETTINGS = ("base", "scratch")
TITLES = {"base": "from a trained base, SGD", "scratch": "from scratch, AdamW"}
FORMS = ("none", "plain", "step1", "step3", "step10", "channel3", "channel10", "zero")
SET: dict[str, Any] = {
    "image_size": 64,
    "val_images": 96,
    "object_size": (8, 16),
    "objects": (1, 4),
    "clutter": 0.25,
    "classes": 3,
}
IMAGES = 128
BASE_SEED, BASE_EPOCHS = 1, 100  # the base has seen other pictures than the trainings
TRAIN: dict[str, Any] = {
    "imgsz": SET["image_size"],
    "batch": 16,
    "nbs": 16,  # a step of the optimizer for each batch: 160 steps
    "workers": 0,
    "cache": "ram",
    "plots": False,
    "verbose": False,
    "val": False,  # but for the last epoch
    "device": "cpu",
    "exist_ok": True,
}
OPTIMIZER: dict[str, dict[str, Any]] = {
    "base": {"optimizer": "SGD", "lr0": 0.01, "momentum": 0.937},
    "scratch": {"optimizer": "auto"},
}


class OneGate(IdentityStart):
    """One gate for all channels with its own step size; with 1 the form of before 0.2.0."""

    def __init__(self, cls: type[nn.Module], channels: int, step: float):
        super().__init__(cls, channels, [], scalar=True)
        self.step = step


class ChannelGates(IdentityStart):
    """A gate for each channel, with another step size than the package's."""

    def __init__(self, cls: type[nn.Module], channels: int, step: float):
        super().__init__(cls, channels, [])
        self.step = step


class ZeroStart(nn.Module):
    """A block whose own last layer starts at zero, scaled so that it is the identity then.

    SE, CBAM, CoordAtt: ``2 sigma(.)`` for each sigmoid; LSK: the factor is 1, its bias; BiFormer:
    each branch's projection. EMA and PPA have no such layer: EMA's gate is made of softmax weights,
    behind PPA's last norm a relu would never get a gradient.
    """

    LAST = {
        "SE": (["fc2"], 2.0),
        "CBAM": (["fc2", "conv"], 4.0),
        "CoordAtt": (["conv_h", "conv_w"], 4.0),
        "LSK": (["unit.out"], 1.0),
        "BiFormer": (["pos_embed", "attn.wo", "mlp.fc2"], 1.0),
    }

    def __init__(self, block: str, channels: int):
        super().__init__()
        self.block = create(block, channels)
        layers, self.scale = self.LAST[block]
        for name in layers:
            layer = self.block.get_submodule(name)
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
            if block == "LSK":
                nn.init.ones_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return self.block(x) * self.scale


@register
class Start(nn.Module):
    """A block in one of the forms of this study.

    Args:
        channels: C of the input ``(B, C, H, W)``.
        block: The block's name.
        form: One of `FORMS` but ``none``.
    """

    def __init__(self, channels: int, block: str, form: str):
        super().__init__()
        self.out_channels = channels
        cls = block_info(block).cls
        if form == "plain":
            self.inner = cls(channels)
        elif form == "zero":
            self.inner = ZeroStart(block, channels)
        elif form.startswith("channel"):
            self.inner = ChannelGates(cls, channels, float(form[7:]))
        else:
            self.inner = OneGate(cls, channels, float(form[4:]))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H, W)``."""
        return self.inner(x)

    def gates(self) -> Tensor | None:
        """The effective gates; None where the form has none."""
        if not isinstance(self.inner, IdentityStart):
            return None
        return self.inner.step * self.inner.g.detach().float()


def train(
    name: str, form: str, block: str, setting: str, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Train once and measure; `setting` "make" trains the base."""
    from ultralytics import YOLO

    begin = time.process_time()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    root = args.project
    row = "" if form == "none" else f"  - [-1, 1, Start, [{block}, {form}]]\n"
    text = DETECTOR.format(block=row, last=5 if row else 4).replace(
        "nc: 1", f"nc: {SET['classes']}"
    )
    yaml = root / "models" / f"{block}-{form}.yaml"
    write_text(yaml, text)
    model = YOLO(str(yaml))
    made = setting == "make"
    model.train(
        data=str(data_of(root, BASE_SEED if made else 0, args.images)),
        epochs=BASE_EPOCHS if made else args.epochs,
        pretrained=str(base_of(root)) if setting == "base" else False,
        project=str(root / "trainings"),
        name=name,
        seed=seed,
        **TRAIN,
        **OPTIMIZER["scratch" if made else setting],
    )
    last = YOLO(str(Path(model.trainer.save_dir) / "weights" / "last.pt")).model.float().eval()
    images = sorted((data_of(root, 0, args.images).parent / "images" / "val").iterdir())
    return {
        "seconds": round(time.process_time() - begin, 1),
        "ap50": float(model.trainer.metrics["metrics/mAP50(B)"]),
        **measure(last, images),
    }


def measure(model: nn.Module, images: list[Path]) -> dict[str, float | None]:
    """Mean and largest magnitude of the block's gates, and what the block changes."""
    gates = next((m.gates() for m in model.modules() if isinstance(m, Start)), None)
    return {
        "gate": None if gates is None else float(gates.abs().mean()),
        "largest": None if gates is None else float(gates.abs().max()),
        "change": change(model, images),
    }


@torch.no_grad()
def change(model: nn.Module, images: list[Path]) -> float | None:
    """``|block(x) - x| / |x|`` of the whole row, mean over the images."""
    import cv2

    found: list[float] = []

    def look(module: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
        x = inputs[0]
        found.extend(((y - x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)).tolist())

    hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, Start)]
    for path in images:
        picture = torch.from_numpy(cv2.imread(str(path))[..., ::-1].copy())
        model(picture.permute(2, 0, 1)[None].float() / 255)
    for hook in hooks:
        hook.remove()
    return sum(found) / len(found) if found else None


def data_of(root: Path, seed: int, images: int) -> Path:
    """Draw the set of this seed, once."""
    folder = root / "sets" / str(seed)
    return make_smallshapes(folder, seed=seed, train_images=images, **SET) / "data.yaml"


def base_of(root: Path) -> Path:
    """The trained base."""
    return root / "trainings" / "base" / "weights" / "last.pt"


def wanted(args: argparse.Namespace) -> list[tuple[str, str, str, str, int]]:
    """Name, form, block, setting and seed of the trainings that are asked for."""
    return [
        (f"{setting}-{form}-{block}-{seed}", form, block, setting, seed)
        for seed in args.seeds
        for form in args.forms
        for setting in args.settings
        for block in (["-"] if form == "none" else args.blocks)
        if form != "zero" or block in ZeroStart.LAST
    ]


def table(setting: str, results: dict[str, dict[str, Any]], args: argparse.Namespace) -> str:
    """One setting as Markdown: a row a block, a column a form."""

    def cell(form: str, block: str) -> str:
        names = [f"{setting}-{form}-{block}-{seed}" for seed in args.seeds]
        found = [results[name] for name in names if name in results]
        shown = [
            mean_text([r[key] for r in found], places, factor)
            for key, places, factor in (("gate", 3, 1), ("change", 3, 1), ("ap50", 1, 100))
        ]
        return " / ".join(shown) if found else "-"

    done = [job for job in wanted(args) if job[0] in results and job[3] == setting]
    forms = [form for form in args.forms if form != "none"]
    lines = [f"| block | {' | '.join(forms)} |", "|---" * (len(forms) + 1) + "|"]
    lines += [
        f"| {block} | {' | '.join(cell(form, block) for form in forms)} |" for block in args.blocks
    ]
    largest = {
        form: max((results[job[0]]["largest"] or 0 for job in done if job[1] == form), default=0)
        for form in forms
    }
    shown = ", ".join(f"{form} {value:.2f}" for form, value in largest.items() if value)
    lines += ["", f"Largest gate of a channel: {shown}."] if shown else []
    if "none" in args.forms:
        lines += ["", f"Without a block: {cell('none', '-')}."]
    return "\n".join(lines)


def mean_text(values: list[float | None], places: int, factor: float) -> str:
    """Mean of the seeds; a dash where there is nothing to measure."""
    given = [v for v in values if v is not None]
    return f"{factor * sum(given) / len(given):.{places}f}" if given else "-"


def train_all(args: argparse.Namespace, file: Path, results: dict[str, dict[str, Any]]) -> None:
    """Train what is asked for and not in `results` yet; each result goes to the file at once."""
    for seed in (0, BASE_SEED):
        data_of(args.project, seed, args.images)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        if "base" in args.settings and not base_of(args.project).is_file():
            made = pool.submit(train, "base", "none", "-", "make", 0, args).result()
            print(f"base: AP50 {100 * made['ap50']:.1f}", file=sys.stderr)
        waiting = {
            pool.submit(train, *job, args): job[0] for job in wanted(args) if job[0] not in results
        }
        for done in as_completed(waiting):
            name = waiting[done]
            results[name] = done.result()
            write_text(file, json.dumps(results, indent=1, sort_keys=True) + "\n")
            print(name, results[name], file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, choices in (("blocks", BLOCKS), ("forms", FORMS), ("settings", SETTINGS)):
        parser.add_argument(f"--{name}", nargs="+", choices=choices, default=list(choices))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=IMAGES, help="training images")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="means are printed")
    parser.add_argument(
        "--jobs", type=int, default=1, help="trainings at a time; 0 prints what is done"
    )
    parser.add_argument("--project", type=Path, default=Path("runs/identity_start"))
    args = parser.parse_args()
    args.project = args.project.resolve()
    file = args.project / "results.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if args.jobs:
        train_all(args, file, results)
    for setting in args.settings:
        print(f"\n{TITLES[setting]}: |gate| / relative change / AP50 after {args.epochs} epochs\n")
        print(table(setting, results, args))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("YOLO_VERBOSE", "False")
    main()
