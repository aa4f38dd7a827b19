"""Run the tests on the code paths that other processors take, each in a fresh process.

The order in which a sum is added is the library's choice for the processor at hand; a test that
relies on it passes here and fails elsewhere. numpy and scipy (OpenBLAS), torch (ATen, MKL, oneDNN)
and numpy's own loops can be told to take another processor's path, as far as this processor has its
instructions. What is in force is read from the libraries themselves; a path of which they ignore
a setting is not run, and that is said.

One line a path: settings, what is in force, tests, seconds; below it the tests that failed. The
exit code is 1 if any failed. Without arguments behind ``--``, pytest gets those of the README.

Examples:
    python scripts/any_cpu.py
    python scripts/any_cpu.py --paths zen old -- tests/test_blocks.py -k MLCA
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
# Of these nothing is inherited: the first path is the machine's own.
MANAGED = (
    "ATEN_CPU_CAPABILITY", "OPENBLAS_CORETYPE", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA", "NPY_DISABLE_CPU_FEATURES", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS", "MKL_DYNAMIC", "OMP_WAIT_POLICY",
)  # fmt: skip
LEVELS = ("DEFAULT", "AVX2", "AVX512")  # ATen's names, ascending
# The OpenBLAS of numpy's wheels has one set of kernels for both and says the second name.
SAME_KERNELS = {"Prescott": "Katmai", "Zen": "Haswell"}
BRANCHES = {1: "OFF", 2: "AUTO", 3: "COMPATIBLE"}  # MKL_CBWR_*
ISA = {"SSE41": "Intel SSE4.1", "AVX2": "Intel AVX2"}

Facts = dict[str, Any]


@dataclass(frozen=True)
class CodePath:
    """One way through the libraries: environment variables, and the instructions they take."""

    name: str
    env: Mapping[str, str]
    needs: str = "DEFAULT"

    @property
    def settings(self) -> str:
        """The variables as one would type them."""
        return " ".join(f"{k}={quoted(v)}" for k, v in self.env.items())


def quoted(value: str) -> str:
    return f"'{value}'" if " " in value else value


def paths(own: Facts) -> list[CodePath]:
    """All paths; OpenBLAS serves numpy, the others torch, so each path sets both at once."""
    one = {"OMP_NUM_THREADS": "1"}
    haswell = {
        "OPENBLAS_CORETYPE": "Haswell", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
    }  # fmt: skip
    zen = {
        "OPENBLAS_CORETYPE": "Zen", "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE",
    }  # fmt: skip
    old = {
        "OPENBLAS_CORETYPE": "Prescott", "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41",
    }  # fmt: skip
    if own["numpy"]:
        old["NPY_DISABLE_CPU_FEATURES"] = " ".join(own["numpy"])
    # MKL would cut them down to the cores; those that wait must not keep the cores busy.
    threads = {"OMP_NUM_THREADS": "4", "MKL_DYNAMIC": "FALSE", "OMP_WAIT_POLICY": "PASSIVE"}
    return [
        CodePath("own", one),
        CodePath("haswell", {**haswell, **one}, "AVX2"),
        CodePath("zen", {**zen, **one}, "AVX2"),
        CodePath("old", {**old, **one}),
        CodePath("skylakex", {"OPENBLAS_CORETYPE": "SkylakeX", **one}, "AVX512"),
        CodePath("threads", threads),
    ]


def clean(**settings: str) -> dict[str, str]:
    """This environment with these settings and no others of the libraries."""
    kept = {k: v for k, v in os.environ.items() if k not in MANAGED}
    return {**kept, "YOLO_OFFLINE": "1", **settings}


def facts_of_this_process() -> Facts:
    """What the libraries do in this process; None or empty where they do not say."""
    import numpy as np
    import psutil
    import scipy.linalg  # noqa: F401 - it has an OpenBLAS of its own
    import torch

    # oneDNN says it at its first call.
    torch.nn.functional.conv2d(torch.zeros(2, 16, 64, 64), torch.zeros(16, 16, 3, 3))
    process = psutil.Process()
    loaded = {m.path for m in process.memory_maps()} if hasattr(process, "memory_maps") else set()
    blas = [p for p in loaded if "openblas" in p]
    cores = {_says(p, "get_corename", ctypes.c_char_p) for p in blas}
    counts = [_says(p, "get_num_threads", ctypes.c_int) for p in blas]
    umath = ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath")  # 2 and 1
    numpy_core: Any = next(sys.modules[name] for name in umath if name in sys.modules)
    return {
        "ATen": torch.backends.cpu.get_cpu_capability(),
        "OpenBLAS": sorted({c.decode() for c in cores if c}),
        "MKL": _mkl_branch(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"),
        "numpy": [
            name for name in numpy_core.__cpu_dispatch__ if numpy_core.__cpu_features__.get(name)
        ],
        "threads": torch.get_num_threads(),
        "OpenBLAS threads": max((n for n in counts if n), default=None),
        "versions": f"numpy {np.__version__}, torch {torch.__version__}",
    }


def _says(library: str, question: str, answer: Any) -> Any:
    handle = ctypes.CDLL(library)
    for start in ("scipy_openblas", "openblas"):
        for end in ("64_", ""):
            function = getattr(handle, f"{start}_{question}{end}", None)
            if function is not None:
                function.restype = answer
                return function()
    return None


def _mkl_branch(library: Path) -> str | None:
    if not library.exists():
        return None
    function = getattr(ctypes.CDLL(str(library)), "mkl_serv_cbwr_get", None)
    if function is None:
        return None
    code = function(1)  # MKL_CBWR_BRANCH
    return BRANCHES.get(code, f"branch {code}")


def in_force(env: Mapping[str, str]) -> Facts:
    """The facts of a fresh process with this environment."""
    words = [sys.executable, str(Path(__file__).resolve()), "--facts"]
    done = subprocess.run(words, env={**env, "ONEDNN_VERBOSE": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"any_cpu.py: the libraries do not load with these settings\n{done.stderr}"
        )
    isa = re.search(r"^\w*dnn\w*_verbose,.*cpu,isa:(.*)$", done.stdout, re.MULTILINE)
    # Python and oneDNN write to the same pipe, each when it likes.
    (told,) = (line for line in done.stdout.splitlines() if line.startswith("{"))
    return {**json.loads(told), "oneDNN": isa[1] if isa else None}


def ignored(env: Mapping[str, str], facts: Facts) -> list[str]:
    """The settings of `env` that the libraries have not taken."""
    taken = {
        "ATEN_CPU_CAPABILITY": lambda v: facts["ATen"] == v.upper(),
        "OPENBLAS_CORETYPE": lambda v: facts["OpenBLAS"] in ([v], [SAME_KERNELS.get(v)]),
        "MKL_CBWR": lambda v: facts["MKL"] == v,
        "ONEDNN_MAX_CPU_ISA": lambda v: facts["oneDNN"] == ISA[v],
        "NPY_DISABLE_CPU_FEATURES": lambda v: not set(v.split()) & set(facts["numpy"]),
        "OMP_NUM_THREADS": lambda v: facts["threads"] == int(v),
    }
    return [f"{k}={quoted(v)}" for k, v in env.items() if k in taken and not taken[k](v)]


def said(facts: Facts) -> str:
    """The facts in one line."""
    return (
        f"ATen {facts['ATen']}, OpenBLAS {'/'.join(facts['OpenBLAS']) or '?'}, MKL "
        f"{facts['MKL'] or 'absent'}, oneDNN {(facts['oneDNN'] or '?').split(' with ')[0]}, numpy "
        f"{facts['numpy'][-1] if facts['numpy'] else 'baseline'}, threads {facts['threads']} "
        f"(OpenBLAS {facts['OpenBLAS threads'] or '?'})"
    )


def readme_arguments() -> list[str]:
    """What the README's test command gives to pytest."""
    text = (REPO / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- test command -->.*?-m pytest(.*?)\n```", text, re.DOTALL)
    if not found:
        raise SystemExit("any_cpu.py: README.md has no test command between its markers")
    return found[1].split()


@dataclass(frozen=True)
class Outcome:
    """What pytest did on one path."""

    passed: int
    skipped: int
    failed: tuple[str, ...]  # ids
    seconds: float
    crash: str  # why there is no sound result, or empty


def run(path: CodePath, arguments: Sequence[str], folder: Path) -> Outcome:
    """Run pytest on one path; its output goes to a log in `folder`."""
    report, log = folder / f"{path.name}.xml", folder / f"{path.name}.log"
    report.unlink(missing_ok=True)
    pytest = [sys.executable, "-m", "pytest", *arguments, "-p", "no:cacheprovider"]
    pytest += ["-o", "junit_family=xunit1", f"--junitxml={report}"]
    begin = time.monotonic()
    with open(log, "w", encoding="utf-8") as file:
        code = subprocess.run(
            pytest, cwd=REPO, env=clean(**path.env), stdout=file, stderr=subprocess.STDOUT
        ).returncode
    seconds = time.monotonic() - begin
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = sum(c.find("skipped") is not None for c in cases)
    ids = dict.fromkeys(f"{c.get('file') or c.get('classname')}::{c.get('name')}" for c in failed)
    # 1 stands for failed tests; anything else but 0 is pytest's own trouble, or a signal.
    crash = "" if code == 0 or (code == 1 and failed) else f"pytest ended with exit code {code}"
    return Outcome(len(cases) - len(failed) - skipped, skipped, tuple(ids), seconds, crash)


def chosen(every: Sequence[CodePath], names: Sequence[str] | None) -> list[CodePath]:
    """The paths of these names, by default all."""
    known = {p.name: p for p in every}
    for name in names or ():
        if name not in known:
            raise SystemExit(f"any_cpu.py: no path {name!r} (accepted: {', '.join(known)})")
    return [known[name] for name in names] if names else list(every)


def main() -> int:
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--paths", nargs="+", metavar="NAME", help="some of the paths")
    parser.add_argument("--list", action="store_true", help="print the paths and run nothing")
    parser.add_argument("--folder", type=Path, help="for the logs (default: a temporary folder)")
    parser.add_argument("--facts", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(words[:at])
    if args.facts:
        print(json.dumps(facts_of_this_process()))
        return 0

    inherited = [f"{k}={quoted(os.environ[k])}" for k in MANAGED if k in os.environ]
    own = in_force(clean())
    todo = chosen(paths(own), args.paths)
    print(f"This machine: {said(own)}; {own['versions']}")
    if inherited:
        print(f"Left out of the environment: {' '.join(inherited)}")
    if args.list:
        for path in todo:
            print(f"{path.name:<9} {path.settings}")
        return 0
    folder: Path = args.folder or Path(tempfile.mkdtemp(prefix="yolo-attn-any-cpu-"))
    folder.mkdir(parents=True, exist_ok=True)
    arguments = words[at + 1 :] or readme_arguments()
    print(f"pytest {' '.join(arguments)}; logs in {folder}", flush=True)
    bad, ran = False, False
    for path in todo:
        start = f"{path.name:<9} {path.settings}"
        if LEVELS.index(path.needs) > LEVELS.index(own["ATen"]):
            print(f"{start} | not run: this processor has no {path.needs}", flush=True)
            continue
        facts = in_force(clean(**path.env))
        if ignored(path.env, facts):
            why = f"ignored: {' '.join(ignored(path.env, facts))}; in force: {said(facts)}"
            print(f"{start} | not run, {why}", flush=True)
            continue
        found = run(path, arguments, folder)
        ran, bad = True, bad or bool(found.failed or found.crash)
        counts = f"{found.passed} passed, {len(found.failed)} failed, {found.skipped} skipped"
        print(f"{start} | {said(facts)} | {counts}, {found.seconds:.0f} s", flush=True)
        for line in (*found.failed, *([found.crash] if found.crash else [])):
            print(f"    {line}", flush=True)
    return int(bad or not ran)


if __name__ == "__main__":
    sys.exit(main())
