"""Options and fixtures that several test files share."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

# Nothing may try to download weights, fonts or data sets in a test.
os.environ.setdefault("YOLO_OFFLINE", "1")
# Small tensors gain nothing from threads, and `pytest -n` runs a process a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ultralytics' settings file of the user is not for tests to write (nor to depend on).
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="yolo-attn-tests-")
# Nor is the memory of file digests, which studies keep there.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="yolo-attn-tests-")

# A shell that starts the tests in the background has some signals ignored, and every process hands
# that on. With a handler here, the processes that tests start have them as a user's do.
for _name in ("SIGINT", "SIGHUP"):
    _signal = getattr(signal, _name, None)
    if _signal is not None and signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, lambda number, frame: None)

REPO = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"
CASES = Path(__file__).parent / "protocol"
LOSSES = Path(__file__).parent / "losses_golden"
# Fixture of the loss tests -> beginnings of the golden files that it goes through.
LOSS_FILES = {
    "box_golden": ("c_", "r_"),
    "class_golden": ("cls_",),
    "sum_golden": ("seam_",),
    "any_loss_golden": ("",),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", default=str(GOLDEN), help="folder of golden files (*.npz) for test_golden.py"
    )
    parser.addoption(
        "--cases", default=str(CASES), help="folder of protocol cases for test_protocols.py"
    )
    parser.addoption(
        "--loss-golden",
        default=str(LOSSES),
        help="folder of golden losses (*.npz, grammar.json) for test_losses*.py",
    )
    parser.addoption("--shots", default="", help="folder for screenshots of test_report_browser.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_file" in metafunc.fixturenames:
        folder = Path(metafunc.config.getoption("--golden"))
        files = sorted(folder.glob("*.npz"))
        if not files:
            raise pytest.UsageError(f"--golden {folder}: no .npz file there")
        metafunc.parametrize("golden_file", files, ids=[f.stem for f in files])
    for fixture, beginnings in LOSS_FILES.items():
        if fixture in metafunc.fixturenames:
            folder = Path(metafunc.config.getoption("--loss-golden"))
            files = sorted(f for f in folder.glob("*.npz") if f.name.startswith(beginnings))
            if not files:
                raise pytest.UsageError(f"--loss-golden {folder}: no {beginnings} file there")
            metafunc.parametrize(fixture, files, ids=[f.stem for f in files])
    for fixture, pattern in (("visdrone_case", "*/annotations"), ("coco_case", "*/gt.json")):
        if fixture in metafunc.fixturenames:
            folder = Path(metafunc.config.getoption("--cases"))
            if not [*folder.glob("*/expected.json")]:
                raise pytest.UsageError(f"--cases {folder}: no folder with an expected.json there")
            cases = sorted(p.parent for p in folder.glob(pattern))
            metafunc.parametrize(fixture, cases, ids=[c.name for c in cases])
