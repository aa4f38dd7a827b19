"""What the start-up hook costs: interleaved starts with and without us.

"absent" is the true baseline: torch's entry points are read, but ours is not among them (the
metadata is hidden). With ``YOLO_ATTN_DISABLE=1`` the entry point is called and returns.

Example: python benchmarks/startup.py --starts 30
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

CASES = {
    "python -c pass": ["-c", "pass"],
    "import ultralytics": ["-c", "import ultralytics"],
    "yolo version": ["-c", "from ultralytics.cfg import entrypoint; entrypoint()", "version"],
}
# Hide our distribution from importlib.metadata, as if it were not installed, without touching the
# disk.
HIDE = (
    "import importlib.metadata as m; _e = m.entry_points\n"
    "def entry_points(**k):\n"
    "    return m.EntryPoints(e for e in _e(**k) if not e.value.startswith('yolo_attn.'))\n"
    "m.entry_points = entry_points\n"
)


def start(args: list[str], hook: bool) -> float:
    code = args[1] if hook or "import" not in args[1] else HIDE + args[1]
    if hook and "import" in args[1]:
        # The same work in both arms: the wrapper is defined, but hides nothing.
        code = HIDE.replace("not e.value.startswith('yolo_attn.')", "e.value") + args[1]
    env = {**os.environ, "YOLO_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, *args[2:]], env=env, check=True, stdout=subprocess.DEVNULL
    )
    return (time.perf_counter() - begin) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=30)
    args = parser.parse_args()
    print(f"medians of {args.starts} interleaved starts, in ms; difference: median of the pairs")
    print("| start | absent | installed | difference | ratio |\n|---|---|---|---|---|")
    for name, command in CASES.items():
        start(command, True), start(command, False)  # warm the disk cache
        times: dict[bool, list[float]] = {True: [], False: []}
        for i in range(args.starts):
            for hook in (True, False) if i % 2 else (False, True):
                times[hook].append(start(command, hook))
        absent, installed = statistics.median(times[False]), statistics.median(times[True])
        pairs = statistics.median(a - b for a, b in zip(times[True], times[False]))
        print(
            f"| {name} | {absent:.1f} | {installed:.1f} | {pairs:+.2f} | "
            f"{100 * pairs / absent:+.2f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
