"""Open a checkpoint of strangers without its classes and without running anything of it.

A pickle is a program: it names functions and calls them. Here a name is never looked up. What a
checkpoint needs (tensors, dictionaries, numbers, paths) is rebuilt by the few functions of this
file; every other name becomes a :class:`Stub`, whose call only writes down the arguments.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from yolo_attn.errors import YoloAttnError

MAGIC_OF_LEGACY = 0x1950A86A20F9469CFC6C

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "double", "float", "half"),
        *("int64", "int32", "int16", "int8", "uint8", "long", "int", "short", "bool"),
        *("uint16", "uint32", "uint64"),
    )
}
# What numpy calls a scalar's type, and what the standard library calls it.
_NUMPY_SCALARS = {
    **{"f8": "d", "f4": "f", "f2": "e", "b1": "?"},
    **{"i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H", "u1": "B"},
}


class _Inert(type):
    """Class of the stubs' classes: a pickle may not change them either."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise pickle.UnpicklingError("it changes a class")


class Stub(metaclass=_Inert):
    """An object whose class (or the result of a call whose function) is not used here.

    Attributes:
        path: Module and name of the class or function, as the file has it.
        args: What it was called with.
        state: What it was given afterwards: an object's attributes, mostly a dictionary.
        items: What was appended or set, of a list or dictionary.
    """

    path: ClassVar[str] = ""
    args: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        """Write down the arguments; nothing else happens."""
        self = super().__new__(cls)
        self.args, self.state, self.items = args, None, []
        return self

    def __init__(self, *args: Any, **kwargs: Any):
        """Nothing; the arguments are kept already."""

    def __call__(self, *args: Any, **kwargs: Any) -> Stub:
        """The result of a call of a result, such as ``getattr(module, name)(argument)``."""
        return Stub(*args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Keep an item of a list."""
        self.items.append(item)

    def extend(self, items: Any) -> None:
        """Keep items of a list."""
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    @property
    def attributes(self) -> dict[Any, Any]:
        """The state, if it is an object's dictionary, else empty."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2:  # (dictionary, slots)
            state = state[0]
        return state if isinstance(state, dict) else {}


class _Function:
    """One of this file's functions under the name of another; each file gets its own."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


class _StorageType:
    """A class of storages: all that is used of it is the type of its numbers."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype


class _Storage:
    """A storage: its numbers as a flat tensor."""

    __slots__ = ("flat",)

    def __init__(self, flat: Tensor):
        self.flat = flat


def read_checkpoint(path: str | Path) -> Any:
    """Read what a checkpoint holds, as data.

    Args:
        path: A file of ``torch.save``, in today's format (zip) or the one before.

    Returns:
        Its object: dictionaries, lists, numbers and tensors as they are, all else as stubs.

    Raises:
        YoloAttnError: It is not there, no checkpoint or damaged.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                file.seek(0)
                return _from_zip(path, file)
            file.seek(0)
            return _from_legacy(path, file, size)
    except YoloAttnError:
        raise
    except OSError as error:
        raise YoloAttnError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (Exception, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
        raise YoloAttnError(
            f"{path}: no checkpoint of torch.save, or damaged ({type(error).__name__}: {said})"
        ) from None


def _from_zip(path: Path, file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        pickles = [n for n in names if PurePosixPath(n).name == "data.pkl" and n.count("/") == 1]
        if len(pickles) != 1:
            raise YoloAttnError(f"{path}: no checkpoint (a zip file without one data.pkl)")
        root = pickles[0].rpartition("/")[0]
        if f"{root}/constants.pkl" in names:
            raise YoloAttnError(
                f"{path}: a TorchScript export, which holds code instead of a model (accepted: the "
                "best.pt or last.pt of a training)"
            )
        if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
            raise YoloAttnError(f"{path}: saved on a big-endian machine (accepted: little-endian)")
        storages: dict[str, _Storage] = {}

        def load(kind: Any, key: Any, count: Any) -> _Storage:
            if key not in storages:
                flat = torch.frombuffer(
                    bytearray(archive.read(f"{root}/data/{key}")) or bytearray(8), dtype=kind.dtype
                )
                storages[key] = _Storage(flat[: int(count)])
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), load).load()


def _from_legacy(path: Path, file: IO[bytes], size: int) -> Any:
    storages: dict[str, _Storage] = {}

    def load(kind: Any, key: Any, count: Any) -> _Storage:
        if key not in storages:
            # Its numbers come behind the pickle.
            if not 0 <= count * kind.dtype.itemsize <= size:
                raise pickle.UnpicklingError("a tensor is larger than the file")
            storages[key] = _Storage(torch.zeros(count, dtype=kind.dtype))
        return storages[key]

    if _Unpickler(file, load).load() != MAGIC_OF_LEGACY:
        raise YoloAttnError(f"{path}: no checkpoint (it begins as no file of torch.save does)")
    for _ in ("protocol", "machine"):
        _Unpickler(file, load).load()
    result = _Unpickler(file, load).load()
    for key in _Unpickler(file, load).load():
        flat = storages[key].flat
        (count,) = struct.unpack("<q", file.read(8))
        raw = file.read(count * flat.dtype.itemsize)
        if count != len(flat) or len(raw) != count * flat.dtype.itemsize:
            raise pickle.UnpicklingError("it ends too early")
        if count:
            flat.copy_(torch.frombuffer(bytearray(raw), dtype=flat.dtype))
    return result


class _Unpickler(pickle.Unpickler):
    """Turns names into stubs; the standard library's does the rest."""

    def __init__(self, file: IO[bytes], load: Callable[[Any, Any, Any], _Storage]):
        super().__init__(file, encoding="utf-8", errors="replace")
        self._load_storage = load
        self._stubs: dict[str, type[Stub]] = {}
        self._known: dict[str, Any] = _known_names()

    def find_class(self, module: str, name: str) -> Any:
        """A stub's class, or what this file has for a name of the short list; imports nothing."""
        path = f"{module}.{name}"
        if path in self._known:
            return self._known[path]
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _StorageType(_STORAGE_DTYPES[name])
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if path not in self._stubs:
            stub: Any = _Inert(name.rpartition(".")[2], (Stub,), {"path": path})
            self._stubs[path] = stub
        return self._stubs[path]

    def persistent_load(self, pid: Any) -> Any:
        """A storage of the file, or (in the older format) the class of a module."""
        if not isinstance(pid, tuple) or not pid:
            raise pickle.UnpicklingError("it names no storage")
        if pid[0] == "module":
            return pid[1]
        kind, key, count = pid[1], pid[2], pid[4]
        if pid[0] != "storage" or not isinstance(kind, _StorageType) or not isinstance(count, int):
            raise pickle.UnpicklingError("it names no storage")
        storage = self._load_storage(kind, str(key), count)
        if len(pid) > 5 and pid[5] is not None:
            _, offset, length = pid[5]
            return _Storage(storage.flat[offset : offset + length])
        return storage


def _known_names() -> dict[str, Any]:
    """What a checkpoint's names stand for, made anew for each file.

    Types here are those of C, which nothing can change, or this file's own.
    """
    known: dict[str, Any] = {"collections.OrderedDict": OrderedDict}
    for module in ("builtins", "__builtin__"):
        for kind in (set, frozenset, dict, list, tuple, complex, slice):
            known[f"{module}.{kind.__name__}"] = kind
    functions: dict[str, Callable[..., Any]] = {
        "collections.defaultdict": lambda *args: {},
        "_codecs.encode": _encoded,
        "copy_reg._reconstructor": _bare,
        "copyreg._reconstructor": _bare,
        "torch.Size": lambda values=(): tuple(values),
        "torch.device": lambda *args: ":".join(map(str, args)),
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_v3,
        "torch._utils._rebuild_parameter": _first,
        "torch._utils._rebuild_parameter_with_state": _first,
        "torch._tensor._rebuild_from_type_v2": _from_type,
        "numpy.core.multiarray.scalar": _scalar,
        "numpy._core.multiarray.scalar": _scalar,
    }
    for module in ("pathlib", "pathlib._local"):
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"):
            functions[f"{module}.{name}"] = _path
    return known | {path: _Function(call) for path, call in functions.items()}


def _encoded(text: Any, encoding: Any = "latin1") -> Any:
    """Bytes, as protocol 2 writes them."""
    if isinstance(text, str) and encoding in ("latin1", "latin-1", "utf-8"):
        return text.encode(encoding)
    return Stub(text)


def _bare(cls: Any, *args: Any) -> Any:
    """An object without its state yet, as protocols 0 and 1 write it."""
    return cls() if isinstance(cls, _Inert) else Stub(cls, *args)


def _path(*parts: Any) -> Any:
    return str(PurePosixPath(*parts)) if all(isinstance(p, str) for p in parts) else Stub(*parts)


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    """A number of numpy as one of Python."""
    code = dtype.args[0] if isinstance(dtype, Stub) and dtype.args else None
    kind = _NUMPY_SCALARS.get(code) if isinstance(code, str) else None
    if kind is None or not isinstance(raw, bytes) or len(raw) != struct.calcsize(f"<{kind}"):
        return Stub(dtype)
    return struct.unpack(f"<{kind}", raw)[0]


def _first(value: Any = None, *args: Any) -> Any:
    """A parameter is its tensor here."""
    return value


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *args: Any) -> Any:
    """A view of a storage; torch refuses one that reaches beyond it."""
    if not isinstance(storage, _Storage):
        return Stub(storage)
    return _view(storage.flat, offset, size, stride)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, *args: Any) -> Any:
    """The same of a storage of bytes; the fourth argument behind it is the type."""
    dtype = args[2] if len(args) > 2 else None
    if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype):
        return Stub(storage)
    whole = len(storage.flat) // dtype.itemsize * dtype.itemsize
    return _view(storage.flat[:whole].view(dtype), offset, size, stride)


def _view(flat: Tensor, offset: Any, size: Any, stride: Any) -> Tensor:
    if math.prod(size) == 0:
        return flat.new_empty(tuple(size))
    # A stride of 0 makes a small file a tensor of any size.
    if math.prod(size) > len(flat):
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return flat.as_strided(tuple(size), tuple(stride), offset)


def _from_type(function: Any, kind: Any = None, args: Any = (), state: Any = None) -> Any:
    """A tensor of a subclass, as a plain one."""
    return function(*args) if isinstance(function, _Function) else Stub(kind)
