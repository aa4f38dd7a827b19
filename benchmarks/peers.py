"""Our blocks beside timm's: the same function on the same input, taking turns.

The inputs are the pyramid levels of a YOLO of scale n at 640 pixels: P3 is 64 x 80 x 80, P4
128 x 40 x 40, P5 256 x 20 x 20. timm's module gets our weights, and before a pair is timed its
outputs and the gradients of its input are compared with ours in float64: both are one function.
Forward is in evaluation mode without gradients, training is forward and backward. Printed are
medians (of CPU time with one thread, else of wall time) and timm / ours: above 1, ours is faster.

"x limit" is our time divided by that of one mean and one product over the map, ``x * mean(x)``,
which no gate can do without. Gates without a counterpart in timm have that column alone.

Needs timm: pip install 'yolo-attn[bench]'

Examples:
    python benchmarks/peers.py
    python benchmarks/peers.py --blocks 'NonLocal' --levels P5 --threads 1
    python benchmarks/peers.py --markdown docs/peers.md
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

# A thread that waits for another one gives its core back: on a machine with other work, spinning
# threads would be measured. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import timm
import torch
from blocks import runner
from plain.pair import Pair, disagreement, randomise
from timing import geometric_mean, interleaved, processor_name
from timm.layers import (
    EcaModule,
    GlobalContext,
    NonLocalAttn,
    SelectiveKernel,
    SEModule,
)
from timm.layers.cbam import CbamModule
from timm.layers.coord_attn import CoordAttn
from torch import Tensor, nn

import yolo_attn

# Channels and side of each level of scale n at 640 pixels.
LEVELS = {"P3": (64, 80), "P4": (128, 40), "P5": (256, 20)}
TOLERANCE = 1e-9
# What "never slower than its peers" leaves to noise.
FLOOR = 0.95
HEADER = (
    "| block | level | threads | forward ms, ours | timm | timm / ours | x limit "
    "| training ms, ours | timm | timm / ours | x limit |\n|---|---|" + "---:|" * 9
)


def hidden(channels: int) -> int:
    """One bottleneck width for both sides."""
    return max(channels // 16, 8)


def _global_context(channels: int) -> nn.Module:
    """With the paper's eps, torch's default, in place of timm's 1e-6."""
    planes = hidden(channels)
    block = GlobalContext(channels, rd_channels=planes, fuse_add=True, fuse_scale=False)
    block.mlp_add.norm.eps = 1e-5
    return block


@dataclass
class Peer:
    """A block of ours and how timm's module is made the same function.

    Attributes:
        block: Its name.
        options: Options of ours that differ from its defaults, from the width.
        timm: Builds timm's module from the width; None where timm has none.
        names: timm's modules or parameters -> ours. A bias that ours does without is zero.
        note: What timm's side computes beyond or besides.
    """

    block: str
    options: Callable[[int], dict[str, Any]]
    timm: Callable[[int], nn.Module] | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def _non_local(share: int) -> Peer:
    """With ``d = C / share``: 2 is the paper's, 8 is timm's default."""
    return Peer(
        "NonLocal",
        lambda c: {"rd_channels": c // share, "scale": c**-0.5},
        lambda c: NonLocalAttn(c, rd_channels=c // share),
        {"t": "theta", "p": "phi", "g": "g", "z": "out", "norm": "norm"},
        "biases in p and z, which the softmax and the norm cancel",
    )


PEERS: dict[str, Peer] = {
    "NonLocal d=C/2": _non_local(2),
    "NonLocal d=C/8": _non_local(8),
    "SE": Peer(
        "SE",
        lambda c: {"rd_channels": hidden(c)},
        lambda c: SEModule(c, rd_channels=hidden(c)),
        {"fc1": "fc1", "fc2": "fc2"},
    ),
    "ECA": Peer("ECA", lambda c: {}, lambda c: EcaModule(c), {"conv.weight": "weight"}),
    "CBAM": Peer(
        "CBAM",
        lambda c: {"rd_channels": hidden(c), "norm": "bn"},
        lambda c: CbamModule(c, rd_channels=hidden(c), mlp_bias=True),
        {
            "channel.fc1": "fc1",
            "channel.fc2": "fc2",
            "spatial.conv.conv": "conv",
            "spatial.conv.bn": "norm",
        },
        "the two maps in the other order",
    ),
    "SK": Peer(
        "SK",
        lambda c: {"rd_channels": 32, "groups": 32},
        lambda c: SelectiveKernel(c, rd_channels=32, groups=32, split_input=False),
        {
            "paths.0.conv": "branches.0.conv",
            "paths.0.bn": "branches.0.norm",
            "paths.1.conv": "branches.1.conv",
            "paths.1.bn": "branches.1.norm",
            "attn.fc_reduce": "select.reduce",
            "attn.bn": "select.norm",
            "attn.fc_select": "select.expand",
        },
    ),
    "GlobalContext": Peer(
        "GlobalContext",
        lambda c: {"rd_channels": hidden(c)},
        _global_context,
        {
            "conv_attn": "mask",
            "mlp_add.fc1": "add.w1",
            "mlp_add.norm": "add.norm",
            "mlp_add.fc2": "add.w2",
        },
        "a bias in conv_attn, which the softmax cancels",
    ),
    "CoordAtt": Peer(
        "CoordAtt",
        lambda c: {"rd_channels": hidden(c)},
        lambda c: CoordAttn(c, rd_channels=hidden(c), bias=True),
        {"conv1": "conv1", "bn1": "norm", "conv_h": "conv_h", "conv_w": "conv_w"},
        "a bias in conv1, which the norm cancels",
    ),
    "FcaNet": Peer("FcaNet", lambda c: {"rd_channels": hidden(c)}),
    "SimAM": Peer("SimAM", lambda c: {}),
}
# The blocks of which one mean and one product over the map are the limit.
GATES = ("SE", "ECA", "CBAM", "GlobalContext", "CoordAtt", "FcaNet", "SimAM")


class Limit(nn.Module):
    """One mean and one product over the map."""

    def forward(self, x: Tensor) -> Tensor:
        """``x * mean_n x``."""
        return x * x.mean((2, 3), keepdim=True)


@torch.no_grad()
def load(theirs: nn.Module, ours: nn.Module, names: Mapping[str, str]) -> nn.Module:
    """Give timm's module our weights; a tensor that ours does not have is zero."""
    source = ours.state_dict()
    for name, value in theirs.state_dict().items():
        module, _, leaf = name.rpartition(".")
        key = names[name] if name in names else f"{names[module]}.{leaf}"
        if key in source:
            tensor = source[key].reshape(value.shape)
            value.copy_(tensor.flip(1) if module == "spatial.conv.conv" else tensor)
        elif leaf == "bias":
            value.zero_()
        else:
            raise KeyError(f"{type(theirs).__name__}: ours has no {key!r} for {name!r}")
    return theirs


def make_pair(name: str, channels: int, side: int, batch: int) -> Pair:
    """Both modules with the same weights, and their input; the pair of a block alone has itself."""
    torch.manual_seed(0)
    peer = PEERS[name]
    ours = yolo_attn.create(peer.block, channels, **peer.options(channels))
    randomise(ours)
    theirs = ours if peer.timm is None else load(peer.timm(channels), ours, peer.names)
    return Pair(ours, theirs, torch.randn(batch, channels, side, side))


@dataclass
class Row:
    """Milliseconds (ours, timm, limit) of ``forward`` and ``training``; None: there is none."""

    title: str
    level: str
    threads: int
    ms: dict[str, tuple[float, float | None, float | None]] = field(default_factory=dict)

    def ratio(self, mode: str) -> float | None:
        """Timm's time over ours."""
        ours, theirs, _ = self.ms[mode]
        return None if theirs is None else theirs / ours

    def __str__(self) -> str:
        cells = [self.title, self.level, str(self.threads)]
        for mode, (ours, theirs, limit) in self.ms.items():
            cells += [f"{ours:.3f}", *_cells(theirs, ".3f"), *_cells(self.ratio(mode), ".2f")]
            cells += _cells(None if limit is None else ours / limit, ".1f")
        return f"| {' | '.join(cells)} |"


def _cells(value: float | None, form: str) -> list[str]:
    return ["-" if value is None else format(value, form)]


def measure(name: str, level: str, threads: int, args: argparse.Namespace) -> Row | float:
    """The row of a block, or by how much it disagrees with timm's."""
    torch.set_num_threads(threads)
    pair = make_pair(name, *LEVELS[level], args.batch)
    has_peer, is_gate = PEERS[name].timm is not None, name in GATES
    if has_peer:
        difference = disagreement(pair.to(torch.float64))
        if not difference < TOLERANCE:
            return difference
        pair = pair.to(torch.float32)
    clock = time.process_time if threads == 1 else time.perf_counter
    row = Row(name, level, threads)
    for mode, training in (("forward", False), ("training", True)):
        modules = [pair.ours, *([pair.plain] if has_peer else []), *([Limit()] if is_gate else [])]
        runs = [runner(module.train(training), pair, training, args) for module in modules]
        times = list(interleaved(runs, args.repeats, args.seconds, lambda: None, clock))
        ours = times.pop(0)
        theirs = times.pop(0) if has_peer else None
        row.ms[mode] = (ours, theirs, times.pop(0) if is_gate else None)
    return row


def summary(rows: list[Row]) -> list[str]:
    """Geometric means of timm / ours and of the limit's multiples; rows below the floor."""
    lines = [
        "| geometric means | forward | training | both | lowest | x limit, forward | training |\n"
        "|---|" + "---:|" * 6
    ]
    names = list(dict.fromkeys(PEERS[row.title].block for row in rows))
    for title, chosen in [
        *((name, [r for r in rows if PEERS[r.title].block == name]) for name in names),
        ("all", rows),
    ]:
        ratios: list[list[float]] = []
        limits: list[list[float]] = []
        for mode in ("forward", "training"):
            ratios.append([v for v in (r.ratio(mode) for r in chosen) if v is not None])
            times = (r.ms[mode] for r in chosen)
            limits.append([ours / limit for ours, _, limit in times if limit is not None])
        both = ratios[0] + ratios[1]
        values = [geometric_mean(ratio) for ratio in (*ratios, both)]
        values += [min(both, default=float("nan")), *map(geometric_mean, limits)]
        cells = ["-" if v != v else f"{v:.2f}" for v in values]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    low = [
        f"{r.title} {r.level} {mode} {r.threads} thread(s) {ratio:.2f}"
        for r in rows
        for mode in r.ms
        for ratio in [r.ratio(mode)]
        if ratio is not None and ratio < FLOOR
    ]
    lines += ["", f"timm / ours under {FLOOR}: {'; '.join(low) or 'none'}."]
    return lines


def machine(args: argparse.Namespace) -> list[str]:
    """Where, with what and how the table was made, and what differs."""
    command = " ".join(["python benchmarks/peers.py", *sys.argv[1:]])
    notes = dict.fromkeys(f"{p.block}: {p.note}" for p in PEERS.values() if p.note)
    return [
        f"Printed by `{command}`",
        f"on {processor_name()}, float32, batch {args.batch}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, timm {timm.__version__}, yolo_attn {yolo_attn.__version__}.",
        "",
        "Both sides have the same hidden widths, weights and results; timm's has besides: "
        + "; ".join(notes)
        + ".",
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", default="*", help="shell pattern of block names")
    parser.add_argument("--levels", default="P3,P4,P5", help="pyramid levels, P3 to P5")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=400, help="most turns of a row")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for the turns of a row")
    parser.add_argument("--markdown", metavar="FILE", help="write the table there too")
    args = parser.parse_args()
    args.levels = [level.strip().upper() for level in args.levels.split(",")]
    args.threads = [int(number) for number in args.threads.split(",")]
    args.device, args.dtype = "cpu", "float32"
    return args


def main() -> int:
    args = parse()
    # A softmax's tails are denormal numbers, which would be measured in place of the block.
    torch.set_flush_denormal(True)
    lines: list[str] = []

    def emit(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    for line in [*machine(args), "", HEADER]:
        emit(line)
    rows: list[Row] = []
    failures: list[str] = []
    for name in fnmatch.filter(PEERS, args.blocks):
        for level in args.levels:
            for threads in args.threads:
                row = measure(name, level, threads, args)
                if isinstance(row, Row):
                    rows.append(row)
                    emit(str(row))
                else:
                    failures.append(
                        f"{name} {level} differs from timm's by {row:.1e} (accepted: "
                        f"{TOLERANCE:.0e}) and was not timed"
                    )
    emit("")
    for line in [*summary(rows), *(f"\n{failure}." for failure in failures)]:
        emit(line)
    if args.markdown:
        Path(args.markdown).write_text("\n".join(["# Blocks beside timm's", "", *lines, ""]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
