"""Faults around a training: folders that cannot be written, full disks, Ctrl-C, two runs at once,
and a checkpoint where the package is gone or of another version."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn import tasks

from yolo_attn.errors import YoloAttnError

from .processes import PATIENCE, environment, python

MODEL = """\
nc: 3
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, NonLocal, []]
  - [-1, 1, Conv, [16, 3, 2]]
head:
  - [[2, 3], 1, Detect, [nc]]
"""
ENTRY = "from ultralytics.cfg import entrypoint; entrypoint()"
# Ultralytics writes elsewhere when it sees pytest.
ALONE: dict[str, str | None] = {"PYTEST_CURRENT_TEST": None}
SHORT = ["imgsz=64", "batch=2", "workers=0", "device=cpu", "plots=False", "val=False", "amp=False"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, a checkpoint of it, and eight images with labels."""
    import cv2
    import numpy as np

    (tmp_path / "tiny.yaml").write_text(MODEL, encoding="utf-8")
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind / "train").mkdir(parents=True)
    for i in range(8):
        image = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"data/images/train/{i}.jpg"), image)
        (tmp_path / f"data/labels/train/{i}.txt").write_text(f"{i % 3} 0.5 0.5 0.4 0.4\n")
    (tmp_path / "data.yaml").write_text(
        f"path: {tmp_path / 'data'}\ntrain: images/train\nval: images/train\n"
        "names: {0: a, 1: b, 2: c}\n"
    )
    return tmp_path


@pytest.fixture
def checkpoint(folder: Path) -> Path:
    YOLO(str(folder / "tiny.yaml"), verbose=False).save(folder / "tiny.pt")
    return folder / "tiny.pt"


def train(folder: Path, *more: str, prefix: tuple[str, ...] = (), **env: str | None):
    """Start `yolo train` on the tiny model; returns the finished process."""
    args = ["train", "model=tiny.yaml", "data=data.yaml", "epochs=1", *SHORT, *more]
    return subprocess.run(
        [*prefix, sys.executable, "-c", ENTRY, *args],
        cwd=folder, env=environment(**ALONE, **env), capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip


def without_write_permission() -> tuple[str, ...]:
    """Run as a user whom permissions bind (the superuser may write anywhere)."""
    if os.geteuid():
        return ()
    setpriv = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    try:
        subprocess.run(
            [*setpriv, sys.executable, "-c", "import torch"], check=True, timeout=PATIENCE
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("root, and no other user may run this interpreter")
    return setpriv


def opened(folder: Path) -> None:
    """Let another user reach and read a folder of pytest's."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    for parent in folder.parents[:3]:
        if str(parent).startswith("/tmp/") and parent.owner() == folder.owner():
            parent.chmod(parent.stat().st_mode | 0o055)


@pytest.mark.slow
def test_read_only_home_and_packages(folder: Path) -> None:
    prefix = without_write_permission()
    opened(folder)
    (folder / "runs").mkdir()
    (folder / "runs").chmod(0o777)
    (folder / "data/labels").chmod(0o777)
    done = train(
        folder, f"project={folder / 'runs'}", prefix=prefix, HOME="/proc", YOLO_CONFIG_DIR=None
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "yolo_attn" not in done.stderr and list(folder.glob("runs/**/last.pt"))


@pytest.mark.slow
def test_project_without_write_permission_is_a_plain_error(folder: Path) -> None:
    prefix = without_write_permission()
    opened(folder)
    done = train(
        folder, f"project={folder / 'closed'}", prefix=prefix, HOME="/proc", YOLO_CONFIG_DIR=None
    )
    assert done.returncode != 0
    assert re.search(r"PermissionError|Permission denied|Read-only", done.stderr)
    assert "yolo_attn/" not in done.stderr


@pytest.mark.slow
def test_disk_full_while_saving(folder: Path) -> None:
    # Files end at 20 kB, as on a disk that fills up while the checkpoint is written.
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); {ENTRY}"
    )
    args = ["train", "model=tiny.yaml", "data=data.yaml", "epochs=1", *SHORT]
    done = python("-c", code, *args, cwd=folder, ok=False, **ALONE)
    assert done.returncode != 0
    assert re.search(r"File too large|No space left|PytorchStreamWriter|OSError", done.stderr)
    # Then with room again: what was cut off is no obstacle.
    assert train(folder).returncode == 0


@pytest.mark.slow
def test_interrupted_training_resumes(folder: Path) -> None:
    args = [
        "train",
        "model=tiny.yaml",
        "data=data.yaml",
        "epochs=400",
        f"project={folder}",
        "name=one",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, *args, *SHORT],
        cwd=folder, env=environment(**ALONE), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + PATIENCE
    while not list(folder.glob("**/one/weights/last.pt")) and time.monotonic() < end:
        time.sleep(0.2)
    (last,) = folder.glob("**/one/weights/last.pt")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0 and "yolo_attn/" not in stderr
    at = torch.load(last, weights_only=False, map_location="cpu")["epoch"]
    code = (
        f"from ultralytics import YOLO; m = YOLO({str(last)!r});\n"
        f"m.add_callback('on_train_epoch_end', lambda t: setattr(t, 'stop', t.epoch >= {at + 2}))\n"
        f"m.train(resume=True); print('resumed at', m.trainer.start_epoch)"
    )
    done = python("-c", code, cwd=folder, ok=False, **ALONE)
    assert f"resumed at {at + 1}" in done.stdout, done.stderr[-2000:]


@pytest.mark.slow
def test_two_trainings_at_once(folder: Path) -> None:
    args = ["train", "model=tiny.yaml", "data=data.yaml", "epochs=2", f"project={folder / 'runs'}"]
    args += SHORT
    both = [
        subprocess.Popen(
            [sys.executable, "-c", ENTRY, *args],
            cwd=folder, env=environment(**ALONE), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in both:
        _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, stderr[-2000:]
    assert all(YOLO(str(p)).model is not None for p in folder.glob("runs/**/last.pt"))


HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'yolo_attn':
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path = [Hidden(), *(f for f in sys.meta_path if 'yolo_attn' not in type(f).__module__)]
for name in [n for n in sys.modules if n.partition('.')[0] == 'yolo_attn']:
    del sys.modules[name]
"""


def test_without_the_package_the_message_names_what_to_install(checkpoint: Path) -> None:
    # What Ultralytics would hand to pip is recorded instead of installed.
    code = f"""{HIDE}
from ultralytics.nn import tasks
tasks.check_requirements = lambda wanted, *a, **k: print('pip would install', wanted)
try:
    tasks.torch_safe_load({str(checkpoint)!r})
except ModuleNotFoundError as error:
    print('missing', error.name)
"""
    env = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "YOLO_VERBOSE": "true"}
    done = python("-c", code, **env)
    assert "appears to require 'yolo_attn'" in done.stdout + done.stderr
    # pip's rule: yolo_attn is the distribution yolo-attn, ours (tests/test_architecture.py).
    assert "pip would install yolo_attn\n" in done.stdout and "missing yolo_attn" in done.stdout


def renamed(checkpoint: Path, old: bytes, new: bytes) -> Path:
    """The checkpoint as another version of ours would have written it."""
    out = checkpoint.with_name("other.pt")
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)
    return out


@pytest.mark.parametrize("restricted", [False, True])
def test_module_of_another_version_is_never_looked_for_on_an_index(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, restricted: bool
) -> None:
    wanted: list[str] = []
    monkeypatch.setattr(tasks, "check_requirements", lambda name, *a, **k: wanted.append(name))
    other = renamed(checkpoint, b"yolo_attn.blocks.non_local", b"yolo_attn.blocks.nun_local")
    expected = "nun_local.*another version|outside the supported"
    with pytest.raises((YoloAttnError, TypeError), match=expected):
        tasks.torch_safe_load(str(other), safe_only=restricted)
    assert not wanted


def test_class_of_another_version_is_named(checkpoint: Path) -> None:
    other = renamed(checkpoint, b"NonLocal", b"NonGlobe")
    with pytest.raises(YoloAttnError, match=r"needs yolo_attn.blocks.non_local.NonGlobe.*another"):
        tasks.torch_safe_load(str(other))


def test_strangers_modules_stay_ultralytics_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "strange.pt"
    code = b"cnot_there_at_all\nThing\n."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("strange/data.pkl", code)
        archive.writestr("strange/version", "3\n")
        archive.writestr("strange/byteorder", "little")
    wanted: list[str] = []
    monkeypatch.setattr(tasks, "check_requirements", lambda name, *a, **k: wanted.append(name))
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        tasks.torch_safe_load(str(path))
    assert wanted == ["not_there_at_all"]


def test_module_of_the_users_that_is_not_here_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "check_requirements", lambda *a, **k: False)
    other = renamed(checkpoint, b"torch.nn.modules.conv", b"their_own.blocks_here")
    with pytest.raises(YoloAttnError, match=r"needs the module their_own, .*YOLO_ATTN_BLOCKS="):
        tasks.torch_safe_load(str(other))


def test_damaged_checkpoint_is_one_line(checkpoint: Path) -> None:
    out = checkpoint.with_name("cut.pt")
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data[: len(data) // 2] if "/data/" in name else data)
    with pytest.raises(YoloAttnError, match=r"cut.pt: a checkpoint with blocks.*damaged"):
        tasks.torch_safe_load(str(out))


def test_restricted_loading_runs_nothing_of_the_file(checkpoint: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    evil = checkpoint.with_name("evil.pt")
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(evil, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            pickled = pickle.dumps({"model": Payload(), "yolo_attn": 1}, protocol=2)
            target.writestr(name, pickled if name.endswith("data.pkl") else data)
    with pytest.raises((TypeError, YoloAttnError)):
        tasks.torch_safe_load(str(evil), safe_only=True)
    assert not (tmp_path / "ran").exists()
