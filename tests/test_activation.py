"""The start-up hook: active wherever torch and Ultralytics are imported, and never in the way."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.processes import python

ACTIVE = (
    "from ultralytics.nn import tasks, parse_model;"
    "import ultralytics.nn.tasks as t;"
    "print('active', 'yolo_attn.seam.redirect' in t.parse_model.__code__.co_names, parse_model is "
    "t.parse_model)"
)


def test_importing_the_package_imports_neither_torch_nor_ultralytics() -> None:
    code = (
        "import sys, yolo_attn;"
        "print([m for m in ('torch', 'ultralytics', 'numpy') if m in sys.modules])"
    )
    assert python("-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "flags", [(), ("-I",), ("-P",)] if sys.version_info >= (3, 11) else [(), ("-I",)], ids=str
)
def test_active_without_an_import_by_the_user(flags: tuple[str, ...], tmp_path: Path) -> None:
    if flags == ("-I",) and python("-I", "-c", "import yolo_attn", ok=False).returncode:
        pytest.skip("run from PYTHONPATH, which -I ignores")
    assert "active True True" in python(*flags, "-c", ACTIVE, cwd=tmp_path).stdout


def test_active_in_spawned_and_forked_children(tmp_path: Path) -> None:
    script = tmp_path / "children.py"
    script.write_text(
        "import multiprocessing as mp\n"
        "def child(_):\n"
        "    import ultralytics.nn.tasks as t\n"
        "    return 'yolo_attn.seam.redirect' in t.parse_model.__code__.co_names\n"
        "if __name__ == '__main__':\n"
        "    for method in ('spawn', 'fork', 'forkserver'):\n"
        "        with mp.get_context(method).Pool(1) as pool:\n"
        "            print(method, pool.map(child, [0]))\n"
    )
    out = python(str(script), cwd=tmp_path).stdout
    assert out.count("[True]") == 3, out


def test_disabled_means_untouched(tmp_path: Path) -> None:
    out = python("-c", ACTIVE, cwd=tmp_path, YOLO_ATTN_DISABLE="1").stdout
    assert "active False True" in out


def test_late_activation_reaches_names_imported_before(tmp_path: Path) -> None:
    code = (
        "from ultralytics.nn.tasks import parse_model, yaml_model_load\n"
        "assert 'yolo_attn.seam.redirect' not in parse_model.__code__.co_names\n"
        "import yolo_attn\n"
        "assert 'yolo_attn.seam.redirect' in parse_model.__code__.co_names\n"
        "from ultralytics import YOLO\n"
        "print(type(YOLO('yolov8n-nonlocal.yaml').model.model[10]).__name__)\n"
    )
    out = python("-c", code, cwd=tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD="0").stdout
    assert out.strip().endswith("NonLocal")


def test_an_error_inside_the_hook_never_breaks_an_import(tmp_path: Path) -> None:
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import yolo_attn.seam.redirect as r\n"
        "def broken(*a): raise RuntimeError('boom')\n"
        "r.redirect = broken\n"
        "import torch, ultralytics.nn.tasks as t\n"
        "print('alive', 'yolo_attn.seam.redirect' in t.parse_model.__code__.co_names)\n"
    )
    assert "alive False" in python("-c", code, cwd=tmp_path).stdout


def test_a_missing_function_is_one_warning(tmp_path: Path) -> None:
    code = (
        "import yolo_attn.autoload as a\n"
        "a.REDIRECTS['ultralytics.nn.tasks']['no_such_function'] = 'x:y'\n"
        "import ultralytics.nn.tasks as t\n"
        "print('active', 'yolo_attn.seam.redirect' in t.parse_model.__code__.co_names)\n"
    )
    done = python("-c", code, cwd=tmp_path)
    assert "active True" in done.stdout
    assert done.stderr.count("found no plain function no_such_function()") == 1


def test_reloading_the_module_keeps_the_hook(tmp_path: Path) -> None:
    code = (
        "import importlib, ultralytics.nn.tasks as t\n"
        "importlib.reload(t)\n"
        "print('active', 'yolo_attn.seam.redirect' in t.parse_model.__code__.co_names)\n"
    )
    assert "active True" in python("-c", code, cwd=tmp_path).stdout


def test_users_blocks_are_found_through_the_environment(tmp_path: Path) -> None:
    (tmp_path / "my_blocks.py").write_text(
        "import yolo_attn\nfrom torch import nn\n"
        "@yolo_attn.register\n"
        "class MyGate(nn.Module):\n"
        "    def __init__(self, channels, bias=True):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(channels, channels, 1, bias=bias)\n"
        "    def forward(self, x):\n"
        "        return x * self.conv(x).sigmoid()\n"
    )
    (tmp_path / "yolov8-mine.yaml").write_text(
        "base: yolov8.yaml\ninsert:\n  - [P5, 1, MyGate, [false]]\n"
    )
    code = "from ultralytics import YOLO; m = YOLO('yolov8n-mine.yaml'); print(m.model.model[10])"
    path = {"PYTHONPATH": f"{tmp_path}:{__import__('os').environ.get('PYTHONPATH', '')}"}
    assert "MyGate" in python("-c", code, cwd=tmp_path, YOLO_ATTN_BLOCKS="my_blocks", **path).stdout
    without = python("-c", code, cwd=tmp_path, ok=False, **path)
    assert without.returncode == 1 and "unknown block 'MyGate'" in without.stderr
    broken = python("-c", code, cwd=tmp_path, ok=False, YOLO_ATTN_BLOCKS="no_such_module", **path)
    assert "could not import blocks from YOLO_ATTN_BLOCKS=no_such_module" in broken.stderr
    assert "Traceback" not in broken.stderr
