"""Time and peak memory of every block beside a plain formulation of the same function.

The inputs are the pyramid levels of YOLOv8s at 640 pixels: P3 is 128 x 80 x 80, P4 256 x 40 x 40,
P5 512 x 20 x 20; a block with several inputs gets the neighbouring levels too, RevColumns the image
itself. Before a pair is timed, its outputs and the gradients of its inputs are compared (float32,
1e-4 of their norm; else float64, 1e-9). Forward is in evaluation mode without gradients, training
is forward and backward. Ours and plain take turns in one process; printed are medians (of CPU time
with one thread, else of wall time). Memory is the peak of what torch allocates during the call.

Examples:
    python benchmarks/blocks.py --blocks 'NonLocal*' --levels P4,P5
    python benchmarks/blocks.py --device cuda --dtype bfloat16 --markdown table.md
    python benchmarks/blocks.py --p2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

# The profiler (of memory_meter) reports each start and stop; it reads this when torch is imported.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from memory_meter import peak_bytes
from plain import PLAIN, VARIANTS
from plain.pair import IMAGE_BLOCKS, Pair, as_list, disagreement, input_shapes, make_pair
from timing import geometric_mean, interleaved, processor_name
from torch import nn

import yolo_attn
from yolo_attn.registry import list_layers

TOLERANCE, DOUBLE_TOLERANCE = 1e-4, 1e-9
MIB = 1 << 20
P2_LIMIT_MIB = 2048
HEADER = (
    "| block | level | forward ms, ours | plain | x faster | training ms, ours | plain | x faster "
    "| forward MiB, ours | plain | share | training MiB, ours | plain | share |\n"
    "|---|---|" + "---:|" * 12
)


def width(level: int) -> int:
    """Channels of a level of YOLOv8s."""
    return min(16 << level, 512)


def side(level: int) -> int:
    """Height and width of a level at 640 pixels."""
    return 640 >> level


@dataclass
class Row:
    """Milliseconds and bytes as (ours, plain), for ``forward`` and ``training``."""

    title: str
    level: str
    is_default: bool
    ms: dict[str, tuple[float, float]] = field(default_factory=dict)
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)

    def speedup(self, mode: str) -> float:
        """How many times faster ours is."""
        ours, plain = self.ms[mode]
        return plain / ours

    def share(self, mode: str) -> float:
        """Our peak as a share of the plain one."""
        ours, plain = self.memory[mode]
        return ours / plain

    def __str__(self) -> str:
        cells = [self.title, self.level]
        for mode, (ours, plain) in self.ms.items():
            cells += [f"{ours:.2f}", f"{plain:.2f}", f"{self.speedup(mode):.2f}"]
        for mode, (ours, plain) in self.memory.items():
            cells += [f"{ours / MIB:.1f}", f"{plain / MIB:.1f}", f"{self.share(mode):.2f}"]
        return f"| {' | '.join(cells)} |"


def cases(pattern: str, defaults_only: bool) -> list[tuple[str, dict[str, Any]]]:
    """Names and options of what is to be measured."""
    return [
        (name, options)
        for name in (*yolo_attn.list_blocks(pattern), *list_layers(pattern))
        if name in PLAIN
        for options in ({}, *([] if defaults_only else VARIANTS.get(name, [])))
    ]


def title_of(name: str, options: dict[str, Any]) -> str:
    return " ".join([name, *(f"{k}={v}" for k, v in options.items())])


def runner(module: nn.Module, pair: Pair, training: bool, args: Any) -> Callable[[], Any]:
    """The call that is measured."""
    half = args.dtype == "bfloat16"
    dtype = torch.bfloat16 if half else torch.float32
    maps = [t.detach().to(dtype).requires_grad_(training) for t in as_list(pair.x)]
    x = maps if isinstance(pair.x, list) else maps[0]
    weights: list[torch.Tensor] = []
    tensors = [*maps, *module.parameters()]

    def run() -> Any:
        # Ultralytics trains under autocast, with float32 weights.
        autocast = torch.autocast(args.device, torch.bfloat16) if half else nullcontext()
        with torch.set_grad_enabled(training), autocast:
            outputs = as_list(module(x))
        if not training:
            return outputs
        if not weights:
            weights.extend(torch.randn_like(y) for y in outputs)
        torch.autograd.backward(outputs, weights)
        for tensor in tensors:
            tensor.grad = None
        return None

    return run


def measure(name: str, options: dict[str, Any], level: int, args: Any) -> Row | float:
    """The row of a block, or by how much it disagrees with its counterpart."""
    shapes = input_shapes(name, level, width, side)
    pair = make_pair(name, PLAIN[name], shapes, options, args.batch).to(args.device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        difference = disagreement(pair)
        if not difference < TOLERANCE:
            # In float32, values next to a kink of a ReLU may fall on either side of it.
            double = disagreement(pair.to(torch.float64))
            if not double < DOUBLE_TOLERANCE:
                return difference
    pair = pair.to(torch.float32)
    sync = torch.cuda.synchronize if args.device == "cuda" else (lambda: None)
    # One thread's CPU time does not count what other programs take away.
    own = args.device == "cpu" and args.threads == 1
    clock = time.process_time if own else time.perf_counter
    where = "image" if name in IMAGE_BLOCKS else f"P{level}"
    row = Row(title_of(name, options), where, not options)
    for mode, training in (("forward", False), ("training", True)):
        runs = []
        for module in (pair.ours, pair.plain):
            runs.append(runner(module.train(training), pair, training, args))
            runs[-1]()
        ours, plain = interleaved(runs, args.repeats, args.seconds / 2, sync, clock)
        row.ms[mode] = (ours, plain)
        row.memory[mode] = tuple(peak_bytes(run, args.device) for run in runs)
    return row


def summary(rows: list[Row]) -> list[str]:
    """Geometric means and the rows in which ours is the worse one."""
    lines = [
        "| geometric means | x faster forward | training | both | share forward | training |\n"
        "|---|---:|---:|---:|---:|---:|"
    ]
    groups = {"all rows": rows, "default options": [r for r in rows if r.is_default]}
    for group, chosen in groups.items():
        forward, training = ([r.speedup(mode) for r in chosen] for mode in ("forward", "training"))
        shares = [geometric_mean(r.share(m) for r in chosen) for m in ("forward", "training")]
        means = [geometric_mean(values) for values in (forward, training, forward + training)]
        lines.append(f"| {group} | " + " | ".join(f"{v:.2f}" for v in (*means, *shares)) + " |")
    slower = [
        f"{r.title} {r.level} {mode} {r.speedup(mode):.2f}"
        for r in rows
        for mode in r.ms
        if r.speedup(mode) < 1
    ]
    # Bytes are counted, not timed: a difference is no noise; tables of indices are left aside.
    larger = [
        f"{r.title} {r.level} {mode} {r.share(mode):.3f}"
        for r in rows
        for mode in r.memory
        if r.share(mode) > 1.0005
    ]
    lines += ["", f"Slower than plain: {'; '.join(slower) or 'none'}."]
    lines += ["", f"More memory than plain: {'; '.join(larger) or 'none'}."]
    return lines


def machine(args: Any) -> list[str]:
    """Where, with what and how the table was made."""
    model = torch.cuda.get_device_name() if args.device == "cuda" else processor_name()
    return [
        f"Printed by `python benchmarks/blocks.py {' '.join(sys.argv[1:])}`".rstrip(" `") + "`",
        f"on {model}, {args.threads} thread(s), {args.dtype}, batch {args.batch}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"yolo_attn {yolo_attn.__version__}.",
    ]


def table(args: Any, emit: Callable[[str], None]) -> bool:
    """Measure and print all rows; False if a block disagrees with its counterpart."""
    rows: list[Row] = []
    failures: list[str] = []
    emit(HEADER)
    for name, options in cases(args.blocks, args.defaults_only):
        if name not in PLAIN:
            failures.append(f"{name} has no plain counterpart in benchmarks/plain")
            continue
        for level in args.levels[:1] if name in IMAGE_BLOCKS else args.levels:
            row = measure(name, options, level, args)
            if isinstance(row, Row):
                rows.append(row)
                emit(str(row))
            else:
                failures.append(
                    f"{title_of(name, options)} P{level} differs from its plain counterpart by "
                    f"{row:.1e} (accepted: {TOLERANCE:.0e}) and was not timed"
                )
    emit("")
    for line in summary(rows):
        emit(line)
    for failure in failures:
        emit(f"\n{failure}.")
    return not failures


def status_kib(key: str) -> int:
    """VmRSS or VmHWM of this process.

    Not ru_maxrss: a child inherits that of the process that started it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}")


def step(name: str, options: dict[str, Any], batch: int) -> None:
    """One training step on P2; prints its resident MiB and its seconds."""
    torch.manual_seed(0)
    shapes = input_shapes(name, 2, width, side)
    widths = [c for c, _, _ in shapes]
    takes_list = yolo_attn.block_info(name).takes_list
    block = yolo_attn.create(name, widths if takes_list else widths[0], **options).train()
    maps = [torch.randn(batch, *shape).requires_grad_() for shape in shapes]
    parameters = list(block.parameters())
    optimizer = torch.optim.SGD(parameters, lr=1e-3) if parameters else None
    before = status_kib("VmRSS")
    begin = time.perf_counter()
    loss = sum((y**2).mean() for y in as_list(block(maps if takes_list else maps[0])))
    loss.backward()
    if optimizer is not None:
        optimizer.step()
    seconds = time.perf_counter() - begin
    if not torch.isfinite(loss):
        raise RuntimeError(f"{name}: the loss is {loss.item()}")
    print(f"{(status_kib('VmHWM') - before) / 1024:.0f} {seconds:.2f}")


def p2(args: Any, emit: Callable[[str], None]) -> bool:
    """One training step of every block at 160 x 160, each in a process of its own."""
    emit(f"| block | inputs | MiB of one training step | s | below {P2_LIMIT_MIB} MiB |")
    emit("|---|---|---:|---:|---|")
    for name, options in cases(args.blocks, args.defaults_only):
        command = [sys.executable, __file__, "--step", name, json.dumps(options)]
        command += ["--batch", str(args.batch), "--threads", str(args.threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        shapes = input_shapes(name, 2, width, side)
        inputs = ", ".join(f"{c} x {h} x {w}" for c, h, w in shapes)
        if done.returncode:
            cells = ["-", "-", (done.stderr.strip().splitlines() or ["failed"])[-1]]
        else:
            mib, seconds = done.stdout.split()[-2:]
            cells = [mib, seconds, "ok" if int(mib) < P2_LIMIT_MIB else "NO"]
        emit(f"| {title_of(name, options)} | {inputs} | {' | '.join(cells)} |")
    return True


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", default="*", help="shell pattern of block names")
    parser.add_argument("--levels", default="P3,P4,P5", help="pyramid levels, P2 to P5")
    parser.add_argument("--defaults-only", action="store_true", help="leave out other options")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=200, help="most turns of a pair")
    parser.add_argument("--seconds", type=float, default=6.0, help="time for the turns of a pair")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--p2", action="store_true", help="one training step on 160 x 160 maps")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there too")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.levels = [int(level.strip().upper().lstrip("P")) for level in args.levels.split(",")]
    return args


def main() -> int:
    args = parse()
    torch.set_num_threads(args.threads)
    # A softmax's tails are denormal numbers, on which old processors spend many cycles: that would
    # measure the random inputs.
    torch.set_flush_denormal(True)
    if args.step:
        step(args.step[0], json.loads(args.step[1]), args.batch)
        return 0
    lines: list[str] = []

    def emit(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    for line in machine(args):
        emit(line)
    emit("")
    agreed = (p2 if args.p2 else table)(args, emit)
    if args.markdown:
        heading = (
            "# Blocks on the stride-4 map" if args.p2 else "# Blocks beside plain formulations"
        )
        Path(args.markdown).write_text("\n".join([heading, "", *lines, ""]))
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
