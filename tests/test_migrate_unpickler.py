"""A stranger's checkpoint is data: it is read whole, and nothing in it runs."""

from __future__ import annotations

import os
import pathlib
import pickle
import subprocess
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from torch import nn

from yolo_attn.errors import YoloAttnError
from yolo_attn.migrate.saved_modules import read_module
from yolo_attn.migrate.unpickler import Stub, read_checkpoint

from .processes import python


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("passing", torch.zeros(2), persistent=False)
        self.width = 4


def roundtrip(path: Path, value: Any, **how: Any) -> Any:
    torch.save(value, path, **how)
    return read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_modules_are_stubs_with_the_tensors_of_the_file(tmp_path: Path, zipped: bool) -> None:
    net = Net().half()
    read = roundtrip(tmp_path / "a.pt", {"model": net}, _use_new_zipfile_serialization=zipped)
    assert isinstance(read["model"], Stub) and not isinstance(read["model"], nn.Module)
    saved = read_module(read["model"], "a.pt")
    assert saved.name == "Net" and saved.attributes["width"] == 4
    wanted = net.state_dict()
    assert list(saved.state()) == list(wanted)
    for name, tensor in saved.state().items():
        assert tensor.dtype == wanted[name].dtype and torch.equal(tensor, wanted[name])
    assert saved.children["conv"].attributes["kernel_size"] == (3, 3)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_of_every_type_and_layout_come_back(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(24.0).view(4, 6)
    tensors = {
        "transposed": base.t(),
        "slice": base[1:3, ::2],
        "expanded": torch.ones(1, 3).expand(1, 3),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "bool": torch.tensor([True, False]),
        "int8": torch.tensor([-3], dtype=torch.int8),
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "unsigned": torch.tensor([65535], dtype=torch.uint16),
    }
    read = roundtrip(tmp_path / "a.pt", tensors, _use_new_zipfile_serialization=zipped)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name


def test_what_trainings_save_besides_is_plain_data(tmp_path: Path) -> None:
    counted: defaultdict[str, int] = defaultdict(int)
    counted["a"] = 1
    value = {
        "fitness": np.float64(0.25),
        "count": np.int64(3),
        "path": pathlib.PurePosixPath("runs/train"),
        "names": OrderedDict(a=1),
        "set": {1, 2},
        "raw": b"\x00\xff",
        "default": counted,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
    }
    read = roundtrip(tmp_path / "a.pt", value)
    assert read["fitness"] == 0.25 and read["count"] == 3
    assert read["path"] == "runs/train" and read["raw"] == b"\x00\xff"
    assert read["names"] == {"a": 1} and read["set"] == {1, 2} and read["default"] == {"a": 1}
    assert read["size"] == (1, 2) and read["device"] == "cpu" and read["dtype"] == torch.float16


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any):
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def attacks(mark: Path) -> dict[str, Any]:
    """Objects that write `mark` when a plain unpickler reads them."""
    command, code = f"echo x > {mark}", f"open({str(mark)!r}, 'w')"
    return {
        "os.system": Calls(os.system, command),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "popen": Calls(subprocess.getoutput, command),
        "open": Calls(open, str(mark), "w"),
        "touch": Calls(pathlib.Path.touch, Calls(pathlib.Path, str(mark))),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "save": Calls(torch.save, 1, str(mark)),
        "nested": [{"deep": (Calls(os.system, command),)}],
        "parameter": Calls(torch._utils._rebuild_parameter, Calls(os.system, command), True, {}),
        "loads": Calls(pickle.loads, pickle.dumps(Calls(os.system, command))),
        "bytes": Calls(torch.storage._load_from_bytes, b"x"),
    }


ATTACKS = list(attacks(Path("x")))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_no_call_of_the_file_runs(tmp_path: Path, attack: str, zipped: bool) -> None:
    mark = tmp_path / "ran"
    value = {"model": None, "ema": attacks(mark)[attack]}
    read = roundtrip(tmp_path / "a.pt", value, _use_new_zipfile_serialization=zipped)
    assert not mark.exists()
    assert read["model"] is None


def test_the_attacks_would_run_otherwise(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save(attacks(mark)["os.system"], tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert mark.exists()


WATCH = """
import sys
from pathlib import Path
import torch, yolo_attn.migrate.unpickler as u
seen = []
def watch(event, args):
    if event in ("import", "exec", "compile", "os.system", "subprocess.Popen", "pickle.find_class"):
        seen.append((event, str(args)[:80]))
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append((event, str(args)[:80]))
u.read_checkpoint(sys.argv[1])
sys.addaudithook(watch)
u.read_checkpoint(sys.argv[1])
assert not seen, seen
print("quiet")
"""


def test_reading_imports_runs_and_opens_nothing(tmp_path: Path) -> None:
    torch.save({"m": Net(), **attacks(tmp_path / "ran")}, tmp_path / "a.pt")
    assert python("-c", WATCH, str(tmp_path / "a.pt")).stdout.strip() == "quiet"
    assert not (tmp_path / "ran").exists()


def handmade(path: Path, program: bytes) -> Path:
    """A checkpoint with a pickle written by hand."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program)
    return path


@pytest.mark.parametrize(
    "program",
    [
        # setattr on a class by BUILD's slots: cos\nsystem, (None, {"x": 1}), b
        b"\x80\x02cos\nsystem\nN}X\x01\x00\x00\x00xK\x01s\x86b.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x05\x00\x00\x00_callK\x01s\x86b.",
        b"\x80\x02ccollections\nOrderedDict\nN}X\x01\x00\x00\x00xK\x01s\x86b.",
        # a tensor of a size that the file does not have
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00(tt(tN}tR.",
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00"
        b"cpuK\x01tQ.",
        b"\x80\x02" + b"(" * 5000 + b"t" * 5000 + b".",
        b"\x80\x02K\x01K\x02s.",
        b"garbage",
        b"",
    ],
)
def test_a_hostile_pickle_is_refused_in_one_line_or_read_as_data(
    tmp_path: Path, program: bytes
) -> None:
    before = dict(vars(torch._utils._rebuild_tensor_v2)), list(vars(OrderedDict))
    try:
        read_checkpoint(handmade(tmp_path / "a.pt", program))
    except YoloAttnError as error:
        assert "a.pt" in str(error) and "\n" not in str(error)
    assert before == (dict(vars(torch._utils._rebuild_tensor_v2)), list(vars(OrderedDict)))


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(4)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for name, raw in files.items():
        if name.endswith("data/0"):
            files[name] = raw[:8]
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name, raw in files.items():
            archive.writestr(name, raw)
    with pytest.raises(YoloAttnError, match="larger than its storage"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "empty", "cut", "torchscript"])
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.pt"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("not a checkpoint\n")
    elif kind == "empty":
        path.touch()
    elif kind == "cut":
        torch.save({"x": torch.zeros(4000)}, path)
        path.write_bytes(path.read_bytes()[:9000])
    elif kind == "torchscript":
        torch.jit.trace(nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 4, 4)).save(str(path))
    with pytest.raises(YoloAttnError, match=r"a\.pt: ") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
