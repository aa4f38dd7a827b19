"""Run Ultralytics' own tests with our hook off, with it on, and with a model of ours as default.

Its tests travel in its source distribution, which pip fetches in the version that is installed; the
rest runs without network, on weights and data sets that are drawn here (Ultralytics would download
its own). A test that asks for the network or takes longer than --seconds in the first run is left
out of all runs. What fails in a later run only is run once more in both ways before it counts. Runs
that are done are kept in --folder, so that a run can be stopped and continued.

Example: python scripts/host_tests.py --files test_python.py test_engine.py
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
MODEL = "yolo26n-cbam.yaml"
FILES = ["test_python.py", "test_engine.py", "test_ndjson_converter.py", "test_integrations.py"]
RUNS = {
    "off": "YOLO_ATTN_DISABLE=1",
    "on": "hook on",
    "ours": "hook on, a model of ours as default model",
}
SLOWEST = 90  # seconds for a test
# Loaded by pytest in every run: no network, a time limit, and one JSON line a test.
PLUGIN = """
import json, os, signal, socket
import pytest

ASKED = set()

LOOK_UP = socket.getaddrinfo
CONNECT = socket.socket.connect

def is_here(host):
    return host in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0")

def refuse():
    ASKED.add(os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0])
    raise OSError("no network in this run")

def getaddrinfo(host, *args, **kwargs):
    return LOOK_UP(host, *args, **kwargs) if is_here(host) else refuse()

def connect(self, address):
    # Processes of one machine may talk to each other.
    here = not isinstance(address, tuple) or is_here(address[0])
    return CONNECT(self, address) if here else refuse()

socket.getaddrinfo = getaddrinfo
socket.socket.connect = connect

class TooLong(BaseException):
    pass

def expire(*_):
    raise TooLong("longer than --seconds")

def pytest_collection_modifyitems(items):
    wanted = json.loads(os.environ["HOST_TESTS_ONLY"] or "null")
    left_out = set(json.loads(os.environ["HOST_TESTS_LEFT_OUT"]))
    items[:] = [i for i in items
                if i.nodeid not in left_out and (wanted is None or i.nodeid in wanted)]

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    signal.signal(signal.SIGALRM, expire)
    signal.alarm(int(os.environ["HOST_TESTS_SECONDS"]))
    yield
    signal.alarm(0)

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" or report.outcome != "passed":
        line = {
            "test": item.nodeid, "outcome": report.outcome, "seconds": round(call.duration, 1),
            "network": item.nodeid in ASKED,
            "too_long": bool(call.excinfo and issubclass(call.excinfo.type, TooLong)),
            "why": str(call.excinfo.value)[:300] if call.excinfo else "",
        }
        with open(os.environ["HOST_TESTS_LINES"], "a") as file:
            print(json.dumps(line), file=file)
"""
# Run in a process of its own: what Ultralytics would download.
WEIGHTS = """
import sys
from copy import deepcopy
from pathlib import Path
import torch
from ultralytics import YOLO
from ultralytics.cfg import TASK2MODEL

default, folder = sys.argv[1], Path(sys.argv[2])
(folder / "path with spaces").mkdir(parents=True, exist_ok=True)
for name in {*TASK2MODEL.values(), "yolo11n-grayscale.pt"}:
    torch.manual_seed(0)
    plain = name.replace(".pt", ".yaml").replace("-grayscale", "")
    model = YOLO(default if name == "yolo26n.pt" else plain)
    checkpoint = {"epoch": -1, "model": deepcopy(model.model).half(), "ema": None,
                  "train_args": {"task": model.task, "imgsz": 640}, "version": "0", "date": ""}
    torch.save(checkpoint, folder / name)
    if name == "yolo26n.pt":
        torch.save(checkpoint, folder / "path with spaces" / name)
"""
# One object an image: class, then box, outline, key points or corners.
LABELS = {
    "coco8": "0 0.5 0.5 0.4 0.4",
    "coco8-seg": "0 0.3 0.3 0.7 0.3 0.7 0.7 0.3 0.7",
    "coco8-pose": "0 0.5 0.5 0.4 0.4" + " 0.5 0.5 2" * 17,
    "dota8": "0 0.3 0.3 0.7 0.3 0.7 0.7 0.3 0.7",
}


def sources(folder: Path) -> Path:
    """The folder `tests` of the installed Ultralytics' source distribution."""
    from importlib.metadata import version

    name = f"ultralytics-{version('ultralytics')}"
    archive = folder / f"{name}.tar.gz"
    if not archive.is_file():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        subprocess.run(
            [*pip, "-d", str(folder), f"ultralytics=={version('ultralytics')}"], check=True
        )
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.name.startswith(f"{name}/tests/")]
        if not members:
            raise SystemExit(f"{archive} holds no folder tests: this release ships none")
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(folder, members=members, **safe)  # type: ignore[arg-type]
    return folder / name / "tests"


def draw_datasets(folder: Path) -> None:
    """Four training and four validation images with one object each, for the small data sets."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for name, label in LABELS.items():
        for split in ("train", "val"):
            images, labels = (folder / name / kind / split for kind in ("images", "labels"))
            for part in (images, labels):
                part.mkdir(parents=True, exist_ok=True)
            for k in range(4):
                image = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
                cv2.imwrite(str(images / f"{k}.jpg"), image)
                (labels / f"{k}.txt").write_text(f"{label}\n", encoding="utf-8")


def environment(folder: Path, run: str) -> dict[str, str]:
    """Settings of its own, no network, and our hook on or off."""
    settings = folder / run / "Ultralytics" / "settings.json"
    if not settings.is_file():
        settings.parent.mkdir(parents=True)
        code = (
            "from ultralytics.utils import SETTINGS; import sys; SETTINGS.update(eval(sys.argv[1]))"
        )
        folders = {f"{k}_dir": str(folder / run / k) for k in ("weights", "datasets", "runs")}
        subprocess.run(
            [sys.executable, "-c", code, repr(folders)],
            env={**os.environ, "YOLO_CONFIG_DIR": str(folder / run), "YOLO_OFFLINE": "1"},
            check=True,
        )
    path = [str(REPO), str(folder / run), os.environ.get("PYTHONPATH", "")]
    env = {
        **os.environ,
        "YOLO_CONFIG_DIR": str(folder / run),
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "false",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }
    env.pop("YOLO_ATTN_DISABLE", None)
    return {**env, "YOLO_ATTN_DISABLE": "1"} if run == "off" else env


def prepare(tests: Path, folder: Path, run: str) -> Path:
    """A folder with a copy of the tests, the weights and the data sets; done once."""
    place = folder / run
    env = environment(folder, run)
    if not (place / "ready").is_file():
        shutil.copytree(tests, place / "tests", dirs_exist_ok=True)
        (place / "host_tests_plugin.py").write_text(PLUGIN, encoding="utf-8")
        draw_datasets(place / "datasets")
        default = MODEL if run == "ours" else "yolo26n.yaml"
        make = [sys.executable, "-c", WEIGHTS, default, str(place / "weights")]
        subprocess.run(make, cwd=place, env=env, check=True, stdout=subprocess.DEVNULL)
        if run == "ours":
            init = place / "tests" / "__init__.py"
            text = init.read_text(encoding="utf-8")
            changed = text.replace('CFG = "yolo26n.yaml"', f'CFG = "{MODEL}"')
            if changed == text:
                raise SystemExit(f"{init}: no line CFG = to put our model into")
            init.write_text(changed, encoding="utf-8")
        (place / "ready").touch()
    return place


def run_tests(
    place: Path, env: dict[str, str], options: argparse.Namespace, left_out: set[str],
    only: list[str] | None = None,
) -> dict[str, dict]:  # fmt: skip
    """Run pytest; test -> its line. A run that is on disk already is read."""
    lines = place / ("lines.jsonl" if only is None else "again.jsonl")
    if only is not None or not (place / "done").is_file():
        lines.unlink(missing_ok=True)
        lines.touch()
        env = {
            **env,
            "HOST_TESTS_LINES": str(lines),
            "HOST_TESTS_ONLY": json.dumps(only) if only is not None else "",
            "HOST_TESTS_LEFT_OUT": json.dumps(sorted(left_out)),
            # Twice in later runs, which may find the machine busier.
            "HOST_TESTS_SECONDS": str(options.seconds * (2 if left_out else 1)),
        }
        files = [f"tests/{file}" for file in options.files]
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p"]
        done = subprocess.run(
            [*pytest, "host_tests_plugin", *files],
            cwd=place, env=env, capture_output=True, text=True,
        )  # fmt: skip
        (place / "log.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode not in (0, 1):
            raise SystemExit(f"pytest ended with {done.returncode}: {place / 'log.txt'}")
        if only is None:
            (place / "done").touch()
    read = map(json.loads, lines.read_text(encoding="utf-8").splitlines())
    return {line["test"]: line for line in read}


def failed(lines: dict[str, dict], test: str) -> bool:
    return lines.get(test, {}).get("outcome") == "failed"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", nargs="*", default=FILES, help="of its folder tests")
    parser.add_argument("--seconds", type=int, default=SLOWEST, help="longest a test may take")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "yolo-attn-host-tests"
    )
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tests = sources(folder)

    left_out: set[str] = set()
    results: dict[str, dict[str, dict]] = {}
    for run in RUNS:
        place = prepare(tests, folder, run)
        results[run] = run_tests(place, environment(folder, run), options, left_out)
        if run == "off":
            left_out = {
                t
                for t, r in results[run].items()
                if (r["outcome"] == "failed" and r["network"]) or r["seconds"] > options.seconds
            }
            print(f"left out of all runs (they want the network, or more time): {len(left_out)}")
        kept = {t: r for t, r in results[run].items() if t not in left_out}
        count = {
            o: sum(r["outcome"] == o for r in kept.values())
            for o in ("passed", "failed", "skipped")
        }
        print(f"{RUNS[run]}: " + ", ".join(f"{n} {o}" for o, n in count.items()), flush=True)

    bad = False
    for run in ("on", "ours"):
        worse = [
            t for t in results[run] if failed(results[run], t) and not failed(results["off"], t)
        ]
        missing = sorted(set(results["off"]) - left_out - set(results[run]))
        if worse:
            again = {
                r: run_tests(folder / r, environment(folder, r), options, left_out, worse)
                for r in ("off", run)
            }
            worse = [t for t in worse if failed(again[run], t) and not failed(again["off"], t)]
        bad |= run == "on" and bool(worse or missing)
        print(f"{RUNS[run]}: fail that pass with it off: {len(worse)}, not run: {len(missing)}")
        for test in worse:
            print(f"  {test}: {results[run][test]['why']}")
        for test in missing:
            print(f"  {test}: not run")
    raise SystemExit(bad)


if __name__ == "__main__":
    main()
