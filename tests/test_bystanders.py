"""Stock models, other people's plugins and forks of Ultralytics never suffer from us."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import ultralytics
from torch import nn
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.modules import conv

import yolo_attn
from yolo_attn import host
from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay import meaning

from .processes import python, yolo

ASSETS = Path(ultralytics.__file__).parent / "assets"
REPO = Path(__file__).resolve().parents[1]
PLUGIN_PATH = {"PYTHONPATH": os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])}


def save(model: nn.Module, file: Path) -> Path:
    checkpoint = {"epoch": -1, "model": deepcopy(model).half(), "train_args": {"imgsz": 32}}
    torch.save({**checkpoint, "version": "0", "date": ""}, file)
    return file


def built(file: object) -> nn.Module:
    return YOLO(str(file)).model


@pytest.mark.parametrize(
    "fault", ["raise RuntimeError('no licence')", "import sys; sys.exit('no licence')"]
)
def test_a_broken_plugin_leaves_stock_models_alone_with_one_warning(
    fault: str, tmp_path: Path
) -> None:
    (tmp_path / "broken_blocks.py").write_text(fault)
    save(built("yolov8n.yaml"), tmp_path / "stock.pt")
    env = {"YOLO_ATTN_BLOCKS": "broken_blocks", **PLUGIN_PATH}
    done = yolo(
        *("predict", "model=stock.pt", f"source={ASSETS}"),
        *("imgsz=32", "device=cpu", "project=" + str(tmp_path)),
        cwd=tmp_path,
        **env,
    )  # fmt: skip
    assert (done.stdout + done.stderr).count("could not import blocks from") == 1
    code = "import yolo_attn; yolo_attn.create('MyGate', 8)"
    unknown = python("-c", code, cwd=tmp_path, ok=False, **env)
    last = unknown.stderr.strip().splitlines()[-1]
    assert re.search("unknown block 'MyGate'.*YOLO_ATTN_BLOCKS=broken_blocks: .*no licence", last)


@pytest.mark.parametrize(
    "names", [{"name": "SPPF"}, {"name": "Mine", "aliases": ("C2f",)}], ids=str
)
def test_a_users_block_may_not_take_a_name_of_ultralytics(names: dict) -> None:
    class Block(nn.Module):
        def __init__(self, channels: int):
            super().__init__()

    with pytest.raises(YoloAttnError, match="is taken by Ultralytics.*register it under another"):
        yolo_attn.register(Block, **names)


def test_names_are_taken_before_ultralytics_is_imported_too() -> None:
    assert {"SPPF", "C2f", "RTDETRDecoder", "DetectionModel"} <= host._in_source()


@pytest.fixture
def newer_ultralytics(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose rows may name CBAM: its class of that name has other options than ours."""
    monkeypatch.setattr(tasks, "CBAM", conv.CBAM, raising=False)
    monkeypatch.setattr(meaning, "_SAID", set())


def overlay(folder: Path, name: str = "yolov8n-mine.yaml") -> Path:
    (folder / "yolov8-mine.yaml").write_text("base: yolov8.yaml\ninsert:\n  - [P5, 1, CBAM, []]\n")
    return folder / name


def has(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(type(m) is kind for m in model.modules())


def test_an_overlay_keeps_meaning_ours_when_ultralytics_gains_the_name(
    newer_ultralytics: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = built(overlay(tmp_path))
    assert has(model, yolo_attn.block_info("CBAM").cls) and not has(model, conv.CBAM)
    # What was expanded from it, as a checkpoint holds it.
    again = tasks.parse_model(deepcopy(model.yaml), 3, False)[0]
    assert has(again, yolo_attn.block_info("CBAM").cls)


def plain(folder: Path) -> Path:
    rows = "backbone:\n  - [-1, 1, Conv, [16, 3, 2]]\n  - [-1, 1, CBAM, {args}]\n"
    rows += "head:\n  - [[1], 1, Detect, [nc]]\n"
    (folder / "plain.yaml").write_text("nc: 2\n" + rows)
    return folder / "plain.yaml"


def test_a_plain_row_means_ultralytics_when_it_gains_the_name(
    newer_ultralytics: None, tmp_path: Path
) -> None:
    file = plain(tmp_path)
    text = file.read_text()
    file.write_text(text.replace("{args}", "[16]"))
    try:
        layers = tasks.parse_model(tasks.yaml_model_load(file), 3, False)[0]
        assert has(layers, conv.CBAM)
    except TypeError as error:  # the stock code's own words, for its class takes other arguments
        assert not isinstance(error, YoloAttnError)
    d = tasks.yaml_model_load(file)
    assert "yolo_attn" not in d


def test_a_checkpoint_of_a_plain_row_keeps_the_block_that_it_was_built_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = plain(tmp_path)
    file.write_text(file.read_text().replace("{args}", "[]"))
    pt = save(built(file), tmp_path / "plain.pt")
    monkeypatch.setattr(tasks, "CBAM", conv.CBAM, raising=False)
    d = tasks.torch_safe_load(pt)[0]["model"].yaml
    assert d["yolo_attn"]["ours"] == [1]
    assert has(tasks.parse_model(deepcopy(d), 3, False)[0], yolo_attn.block_info("CBAM").cls)


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of a fork that names a block by a string and has a CBAM of its own."""
    folder = tmp_path_factory.mktemp("fork")
    source = Path(ultralytics.__file__).parent
    skip = shutil.ignore_patterns("__pycache__", "assets")
    shutil.copytree(source, folder / "ultralytics", ignore=skip)
    file = folder / "ultralytics" / "nn" / "tasks.py"
    extra = "from ultralytics.nn.modules.conv import CBAM\n"
    file.write_text(file.read_text().replace("import torch\n", "import torch\n" + extra, 1))
    rows = "nc: 2\nbackbone:\n  - [-1, 1, Conv, [16, 3, 2]]\n  - [-1, 1, {row}]\n"
    rows += "head:\n  - [[1], 1, Detect, [nc]]\n"
    (folder / "own.yaml").write_text(rows.format(row="CBAM, [wrong]"))
    (folder / "near.yaml").write_text(rows.format(row="NonLocl, []"))
    (folder / "ours.yaml").write_text(rows.format(row="NonLocal, []"))
    (folder / "wrong.yaml").write_text(rows.format(row="NonLocal, [{nonsense: 1}]"))
    return folder


def in_fork(fork: Path, name: str):
    code = (
        "import ultralytics, sys\n"
        "from ultralytics.nn.tasks import DetectionModel\n"
        f"assert ultralytics.__file__.startswith({str(fork)!r})\n"
        f"m = DetectionModel({name!r}, verbose=False)\n"
        "print('built', type(m.model[1]).__module__)\n"
    )
    path = os.pathsep.join([str(fork), os.environ.get("PYTHONPATH", "")])
    return python("-c", code, cwd=fork, ok=False, PYTHONPATH=path)


@pytest.mark.parametrize("name", ["own.yaml", "near.yaml"])
def test_a_forks_own_errors_come_out_as_its_own(fork: Path, name: str) -> None:
    done = in_fork(fork, name)
    assert done.returncode and "Traceback" in done.stderr and "yolo_attn: error" not in done.stderr


def test_a_block_of_ours_works_in_a_fork_that_lacks_it(fork: Path) -> None:
    done = in_fork(fork, "ours.yaml")
    assert "built yolo_attn.blocks" in done.stdout, done.stderr[-2000:]
    done = in_fork(fork, "wrong.yaml")
    assert "yolo_attn: error: wrong.yaml row 1: NonLocal" in done.stderr


def test_an_installed_ultralytics_is_known_by_its_record(tmp_path: Path, monkeypatch) -> None:
    assert host.is_installed(ultralytics.__file__)
    package = tmp_path / "checkout" / "ultralytics"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    # What an editable install for some other environment leaves behind.
    (package.parent / "ultralytics.egg-info").mkdir()
    assert not host.is_installed(str(package / "__init__.py"))
    info = tmp_path / "site" / "ultralytics-8.4.0.dist-info"
    info.mkdir(parents=True)
    url = package.parent.as_uri()
    (info / "direct_url.json").write_text(f'{{"url": "{url}", "dir_info": {{"editable": true}}}}')
    monkeypatch.syspath_prepend(str(info.parent))
    host.is_installed.cache_clear()
    assert host.is_installed(str(package / "__init__.py"))
    host.is_installed.cache_clear()


THREADS = """
import sys, threading
from ultralytics.nn import tasks
sys.setswitchinterval(1e-5)
start, faults = threading.Barrier(8), []
def work(k):
    start.wait()
    for j in range(int(sys.argv[3])):
        try:
            if (k + j) % 3 == 0:
                tasks.parse_model(tasks.yaml_model_load(sys.argv[2]), 3, False)
            else:
                tasks.torch_safe_load(sys.argv[1], **({"safe_only": True} if (k + j) % 3 == 1
                                                      and hasattr(tasks, "_SafeLoad") else {}))
        except BaseException as error:
            faults.append(f"{type(error).__name__}: {error}")
threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
print("faults", len(faults), faults[:2])
"""


@pytest.mark.parametrize("each", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_eight_threads_build_and_load_in_a_fresh_process(each: int, tmp_path: Path) -> None:
    file = plain(tmp_path)
    file.write_text(file.read_text().replace("CBAM, {args}", "NonLocal, []"))
    pt = save(built(file), tmp_path / "plain.pt")
    done = python("-c", THREADS, str(pt), str(file), str(each), cwd=tmp_path)
    assert "faults 0 []" in done.stdout


def test_an_activation_of_one_model_is_not_left_to_another_thread(tmp_path: Path) -> None:
    mine = overlay(tmp_path)
    (tmp_path / "yolov8-mine.yaml").open("a").write("activation: nn.ReLU()\n")
    before, kinds = conv.Conv.default_act, set()

    def build(file: object) -> None:
        for _ in range(3):
            d = tasks.yaml_model_load(file)
            layers = tasks.parse_model(d, 3, False)[0]
            kinds.add((str(file), type(layers[0].act).__name__))

    threads = [threading.Thread(target=build, args=(f,)) for f in (mine, "yolov8n.yaml") * 2]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert kinds == {(str(mine), "ReLU"), ("yolov8n.yaml", "SiLU")}
    assert conv.Conv.default_act is before


def test_the_start_file_does_nothing_where_the_package_is_not(tmp_path: Path) -> None:
    shutil.copy(REPO / "yolo_attn_start.py", tmp_path)
    # What an editable install leaves of the package where its checkout has moved: only data.
    (tmp_path / "yolo_attn" / "cfg").mkdir(parents=True)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import yolo_attn_start as s; "
        "s.install(); print('alive')"
    )
    assert "alive" in python("-I", "-S", "-c", code, cwd=tmp_path).stdout


def test_the_start_file_is_what_the_metadata_names_and_every_wheel_holds() -> None:
    text = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    assert 'yolo_attn = "yolo_attn_start:install"' in text
    included = text.split("wheel.force-include]")[1].split("\n[")[0]
    assert '"yolo_attn_start.py" = "yolo_attn_start.py"' in included


@pytest.mark.parametrize("folder", ["run1n", "exp12x", "2l"])
def test_a_scale_letter_is_read_from_the_files_name_alone(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    d = tasks.yaml_model_load(overlay(tmp_path / folder))
    assert d["scale"] == "n" and d["yaml_file"] == str(tmp_path / folder / "yolov8n-mine.yaml")
    # A file in the folder that Ultralytics makes of that name is another one.
    other = tmp_path / re.sub(r"(\d+)[nslmx]", r"\1", folder)
    other.mkdir()
    (other / "yolov8n-mine.yaml").write_text("base: yolov8.yaml\ninsert:\n  - [P5, 1, SE, []]\n")
    d = tasks.yaml_model_load(tmp_path / folder / "yolov8n-mine.yaml")
    assert "CBAM" in [row[2] for row in d["backbone"]]
