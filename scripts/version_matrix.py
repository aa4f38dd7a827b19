"""Run tests against several releases of Ultralytics and write docs/compatibility.md.

Each release is installed with ``pip install --target --no-deps`` beside the torch of this
environment and put in front on PYTHONPATH. Releases before 8.3.2xx import tqdm, pandas and seaborn,
which newer ones do not bring along. Suites that are done are kept in a JSON file, so that the run
can be stopped and continued.

Example: python scripts/version_matrix.py --jobs 2
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

REPO = Path(__file__).resolve().parents[1]
VERSIONS = ["8.3.0", "8.3.100", "8.3.253", "8.4.0", "8.4.60", "8.4.120", "8.4.150"]
OLD_NEEDS = ["tqdm", "pandas", "seaborn", "psutil", "py-cpuinfo", "scipy"]
HOOK = "active_without or late or disabled or users or one_line"
BLOCKS = "ultralytics_does or copies_equal or meta_device or batch_of_one or refused"
ZOO = "smallest_scale or later_families or short_name or built_model"
TRAIN = "val_and_predict or restricted or disabled or resumes or together"
SUITES = {
    "hook and errors": ["tests/test_activation.py", "tests/test_errors.py", "-k", HOOK],
    "stock untouched": ["tests/test_seam_stock.py"],
    "parser": ["tests/test_seam_parser.py"],
    "overlays": ["tests/test_seam_overlay.py"],
    "losses": ["tests/test_seam_box_losses.py", "tests/test_losses_training.py"],
    "GFLOPs": ["tests/test_seam_flops.py"],
    "blocks": ["tests/test_blocks.py", "-k", BLOCKS],
    "zoo": ["tests/test_zoo.py", "-k", ZOO],
    "transfer": ["tests/test_weights.py"],
    "evaluation": ["tests/test_evaluation_checkpoint.py", "tests/test_seam_size_metrics.py"],
    "study files": ["tests/test_ablation_study.py"],
    "a study": ["tests/test_ablation_run.py", "-m", "slow", "-k", "leaves_a_table"],
    "train, val, predict, resume, DDP": ["tests/test_train.py", "-k", TRAIN],
}

OTHER_INSTALLS = """\
**Other installs.** A fork's own folder `ultralytics` in front of the installed one, or any checkout that nobody
installed: only what looks for blocks of ours is in place, until a YAML or checkpoint has one that the fork lacks.
`pip install -e` of Ultralytics counts as installed. `import torch` never fails for lack of this package where pip
installed it (wheel, `-e`, `--target`): the entry point names `yolo_attn_start.py`, which travels with the metadata.
Beyond reach: metadata copied alone (PyInstaller's `--copy-metadata yolo-attn` without the module), for no file of
ours is there to be found; add `--hidden-import yolo_attn_start`.
"""  # noqa: E501


def install(version: str, folder: Path) -> Path:
    target = folder / version
    if not (target / "ultralytics").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
        subprocess.run([*pip, f"ultralytics=={version}"], check=True)
    return target


def needs_trapz(target: Path) -> bool:
    """Whether a release calls numpy.trapz, gone since numpy 2.4: stock `yolo val` fails."""
    import numpy

    metrics = (target / "ultralytics" / "utils" / "metrics.py").read_text(encoding="utf-8")
    return not hasattr(numpy, "trapz") and "np.trapz(" in metrics and "trapezoid" not in metrics


def shim(folder: Path) -> Path:
    """A folder whose sitecustomize gives numpy its old name back."""
    (folder / "trapz").mkdir(exist_ok=True)
    code = "import numpy\nnumpy.trapz = numpy.trapezoid\n"
    (folder / "trapz" / "sitecustomize.py").write_text(code, encoding="utf-8")
    return folder / "trapz"


def run_suite(target: Path | None, files: list[str], log: Path) -> str:
    """Return ``passed``, or what failed; the output goes to `log`."""
    shims = [] if target is None or not needs_trapz(target) else [shim(target.parent)]
    path = os.pathsep.join(str(p) for p in (target, REPO, *shims) if p is not None)
    env = {**os.environ, "YOLO_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(pytest, cwd=REPO, env=env, capture_output=True, text=True)
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    counts = dict(
        (what, int(n))
        for n, what in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout[-400:])
    )
    failed = counts.get("failed", 0) + counts.get("error", 0)
    total = counts.get("passed", 0) + failed
    skipped = f" ({counts['skipped']} skipped)" if counts.get("skipped") else ""
    return f"{counts.get('passed', 0)}/{total}{skipped}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versions", nargs="*", default=VERSIONS)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "yolo-attn-versions"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cells", type=Path, help="what is done (default: cells.json in --folder)")
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "compatibility.md")
    args = parser.parse_args()

    import torch
    import ultralytics

    args.folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *OLD_NEEDS], check=True)
    targets: dict[str, Path | None] = {v: install(v, args.folder) for v in args.versions}
    targets[ultralytics.__version__] = None

    kept: Path = args.cells or args.folder / "cells.json"
    cells: dict[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
    lock = Lock()

    def row(version: str) -> str:
        for name, files in SUITES.items():
            key = f"{version}: {name}"
            if key not in cells:
                log = args.folder / f"{version}-{re.sub(r'[^a-z]+', '-', name.lower())}.log"
                found = run_suite(targets[version], files, log)
                with lock:
                    cells[key] = found
                    kept.write_text(json.dumps(cells, indent=1))
                print(f"{key}: {found}", flush=True)
        return f"| {version} | " + " | ".join(cells[f"{version}: {n}"] for n in SUITES) + " |"

    old = [v for v, target in targets.items() if target is not None and needs_trapz(target)]
    notes = []
    if old:
        notes = [
            "",
            f"{', '.join(old)} cannot validate any model with this numpy, with or without us (they "
            "call `numpy.trapz`, gone since 2.4); here they ran with that name put back.",
        ]
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(row, targets))
    python = ".".join(map(str, sys.version_info[:3]))
    lines = [
        "# Versions of Ultralytics",
        "",
        f"Written by `python scripts/version_matrix.py` with torch {torch.__version__}, Python "
        f"{python}, on a CPU.",
        "A cell is tests passed of tests run. Skipped: ways to break `parse_model` that this "
        "release spells differently, and model families that it does not have yet.",
        "",
        "`bash .ci/weekly` runs this against the newest releases of Ultralytics and torch, too "
        "([contributing](../CONTRIBUTING.md)).",
        *notes,
        "",
        OTHER_INSTALLS,
        "| Ultralytics | " + " | ".join(SUITES) + " |",
        "|" + "---|" * (len(SUITES) + 1),
        *rows,
        "",
    ]
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    sys.exit(any(failed(text) for text in cells.values()))


def failed(cell: str) -> bool:
    """Whether a cell ``passed/run (n skipped)`` has a failure, or ran nothing at all."""
    passed, run = cell.split(" ")[0].split("/")
    return passed != run or run == "0"


if __name__ == "__main__":
    main()
