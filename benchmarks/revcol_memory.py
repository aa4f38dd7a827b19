"""Peak memory of a training step of RevColumns against the number of columns.

Three formulations of the same columns, in one process: ours (only the last column's maps are kept,
the others are rebuilt), the plain graph of autograd, and one that keeps every column's maps and
computes the rest again, as the authors' code does. Gradients of parameters are included.

Example: python benchmarks/revcol_memory.py --markdown docs/revcol-memory.md
"""

from __future__ import annotations

import argparse
import platform
import time
from functools import partial
from pathlib import Path

import torch
from memory_meter import peak_bytes
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from yolo_attn import create
from yolo_attn.blocks.reversible_columns import RevColumns
from yolo_attn.ops.reversible import bounded

COLUMNS = (2, 4, 8, 16)


def save_outputs(net: RevColumns, image: Tensor) -> list[Tensor]:
    """Every level computed again in the backward pass, from maps that all stay."""
    x, maps = net.stem(image), []
    for column in net.columns:
        new: list[Tensor] = []
        for i, level in enumerate(column.levels):
            up = maps[i + 1] if maps and i < 3 else None
            f = checkpoint(level, new[-1] if new else x, up, use_reentrant=False)
            if maps:
                f = f + bounded(column.alphas[i], net.alpha_floor)[:, None, None] * maps[i]
            new.append(f)
        maps = new
    return maps


def plain(net: RevColumns, image: Tensor) -> list[Tensor]:
    """Ordinary autograd."""
    net.reversible = False
    return net(image)


def ours(net: RevColumns, image: Tensor) -> list[Tensor]:
    """Only the last column's maps stay."""
    net.reversible = True
    return net(image)


FORMS = {"ours": ours, "plain graph": plain, "maps of every column kept": save_outputs}


def step(form, net: nn.Module, image: Tensor) -> None:
    sum(y.square().mean() for y in form(net, image)).backward()


def gradient_error(columns: int) -> float:
    """Largest relative difference of our gradients from autograd's, in float64."""
    torch.manual_seed(0)
    net = create("RevColumns", 3, columns=columns).double()
    image = torch.rand(1, 3, 96, 128, dtype=torch.float64)
    found = []
    for form in (plain, ours):
        net.zero_grad()
        step(form, net, image)
        found.append([p.grad.clone() for p in net.parameters()])
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in zip(*found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="nano")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    args = parser.parse_args()

    lines = [
        f"| columns | {' | '.join(f'{name} (MiB)' for name in FORMS)} | "
        f"{' | '.join(f'{name} (s)' for name in FORMS)} | gradients off by |",
        "|" + "---|" * (2 + 2 * len(FORMS)),
    ]
    peaks: dict[int, float] = {}
    image = torch.rand(args.batch, 3, args.imgsz, args.imgsz, device=args.device)
    for columns in COLUMNS:
        torch.manual_seed(0)
        net = create("RevColumns", 3, variant=args.variant, columns=columns, drop_path=0.0)
        net = net.to(args.device).train()
        memory, seconds = [], []
        for form in FORMS.values():
            net.zero_grad(set_to_none=True)
            memory.append(peak_bytes(partial(step, form, net, image), args.device) / 2**20)
            times = []
            for _ in range(3):
                net.zero_grad(set_to_none=True)
                begin = time.perf_counter()
                step(form, net, image)
                if args.device != "cpu":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - begin)
            seconds.append(sorted(times)[1])
        peaks[columns] = memory[0]
        lines.append(
            f"| {columns} | {' | '.join(f'{m:.0f}' for m in memory)} | "
            f"{' | '.join(f'{s:.2f}' for s in seconds)} | {gradient_error(columns):.1e} |"
        )
        print(f"{columns} columns done", flush=True)
    lines += ["", f"ours, 8 columns over 2: {peaks[8] / peaks[2]:.3f}"]
    lines.append(f"ours, 16 columns over 2: {peaks[16] / peaks[2]:.3f}")
    print("\n".join(lines))
    if args.markdown:
        command = (
            f"python benchmarks/revcol_memory.py --variant {args.variant} --batch {args.batch} "
            f"--imgsz {args.imgsz} --device {args.device}"
        )
        head = (
            "# Memory of reversible columns\n\n"
            f"`{command}`, torch {torch.__version__}, {platform.machine()}, "
            f"{torch.get_num_threads()} threads. Peak of the tensor memory of one training step "
            "beyond the weights, gradients of the parameters included; time of a step, median of "
            "three; largest relative difference of our gradients from autograd's in float64.\n\n"
        )
        args.markdown.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
