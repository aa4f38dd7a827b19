"""Checkpoints with our blocks: restricted loading, and what is wrong with one that does not load.

``ULTRALYTICS_SAFE_LOAD=1`` knows our classes; no module of ours is looked for on a package index.
"""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from types import FunctionType
from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.location import note_checkpoint
from yolo_attn.overlay.provenance import stamp_checkpoint
from yolo_attn.registry import load_all

PACKAGE = "yolo_attn"


def torch_safe_load(original: FunctionType, weight: Any, safe_only: bool | None = None) -> Any:
    """Ultralytics' ``torch_safe_load``; under restricted loading our blocks are allowed.

    Raises:
        YoloAttnError: The checkpoint holds blocks of ours and is damaged or of another version.
    """
    if safe_only or (safe_only is None and original.__globals__.get("SAFE_LOAD", False)):
        allow_blocks(weight)
    # Unpickling imports single modules of blocks, and another thread the package that imports them
    # all: each would wait for the other.
    if holds_ours(weight):
        load_all()
    guarded = FunctionType(original.__code__, {**original.__globals__, **_guards(original, weight)})
    guarded.__defaults__ = original.__defaults__
    guarded.__kwdefaults__ = original.__kwdefaults__
    try:
        # Versions differ in the default of safe_only: pass it on only if it was given.
        result = guarded(weight) if safe_only is None else guarded(weight, safe_only)
        _walk(result[0], weight)
        return result
    except (YoloAttnError, FileNotFoundError):
        raise
    except Exception as error:
        # "ERROR ..." is Ultralytics' own explanation; files without our name are its to explain.
        if str(error).startswith("ERROR") or not holds_ours(weight):
            raise
        missing = re.search(r"attribute '(\w+)' on <module '(yolo_attn[\w.]*)'", str(error))
        if missing:
            raise _other_version(weight, f"{missing[2]}.{missing[1]}") from error
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise YoloAttnError(
                f"{weight} needs the module {error.name}, which is not here: install its package, "
                f"or put its folder on PYTHONPATH (and YOLO_ATTN_BLOCKS={error.name} if it has "
                "blocks)"
            ) from error
        raise YoloAttnError(
            f"{weight}: a checkpoint with blocks of yolo_attn that cannot be read "
            f"({type(error).__name__}: {str(error)[:200]}); is the file damaged? copy it again"
        ) from error


def _walk(checkpoint: Any, weight: Any) -> None:
    """Visit all modules once: one that lost its parts in the file fails here, not in a forward.

    A model of ours learns which version it is of, and messages where any model is from.
    """
    for key in ("ema", "model"):
        model = checkpoint.get(key) if isinstance(checkpoint, dict) else None
        for _ in model.modules() if model is not None and hasattr(model, "modules") else ():
            pass
        stamp_checkpoint(model)
        note_checkpoint(getattr(model, "yaml", None), str(weight))


def _guards(original: FunctionType, weight: Any) -> dict[str, Any]:
    """Stand-ins for what the loader calls, that never look for our modules on a package index.

    Ultralytics installs a missing module under the module's name: `yolo_attn.blocks.new_block`,
    which an older release of ours lacks, would be whatever a stranger publishes under that name.
    """
    stock = original.__globals__
    guards: dict[str, Any] = {}
    if "torch_load" in stock:

        def torch_load(*args: Any, **kwargs: Any) -> Any:
            try:
                return stock["torch_load"](*args, **kwargs)
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] == PACKAGE:
                    raise _other_version(weight, error.name) from error
                raise

        guards["torch_load"] = torch_load

    def check_requirements(requirements: Any = (), *args: Any, **kwargs: Any) -> Any:
        if isinstance(requirements, str) and requirements.partition(".")[0] == PACKAGE:
            raise _other_version(weight, requirements)
        return stock["check_requirements"](requirements, *args, **kwargs)

    guards["check_requirements"] = check_requirements
    return guards


def _other_version(weight: Any, name: str | None) -> YoloAttnError:
    from yolo_attn import __version__

    return YoloAttnError(
        f"{weight} needs {name}, which yolo_attn {__version__} does not have: it was saved with "
        "another version (try `pip install -U yolo-attn`), or the file is damaged"
    )


def holds_ours(weight: Any) -> bool:
    """Whether a checkpoint's pickle (stored uncompressed) names a module of ours."""
    return Path(str(weight)).is_file() and _mentions(weight, {PACKAGE})


def _mentions(weight: Any, packages: set[str]) -> bool:
    """Whether a checkpoint names one of these packages; True where the file is not there yet."""
    try:
        data = Path(str(weight)).read_bytes()
    except OSError:
        return True
    return any(package.encode() in data for package in packages)


def allow_blocks(weight: Any = None) -> None:
    """Let ``torch.load(weights_only=True)`` build the modules of registered blocks.

    Args:
        weight: The checkpoint; of a file that is there, only what it names is allowed. Every class
            that is allowed makes every restricted load of the process slower.
    """
    import torch
    from torch import nn

    from yolo_attn.registry import block_info, list_blocks, list_layers
    from yolo_attn.seam import host_modules

    modules = {block_info(name).cls.__module__ for name in (*list_blocks(), *list_layers())}
    # Our own blocks are also made of parts in modules that register nothing. Other threads import
    # and unpickle meanwhile: dictionaries are copied before they are gone through.
    modules |= {name for name in list(sys.modules) if name.startswith("yolo_attn.blocks.")}
    modules |= {"yolo_attn.blocks.identity_start", host_modules.__name__}
    if not _mentions(weight, {name.partition(".")[0] for name in modules}):
        return
    named = _named(weight)
    classes: list[Any] = [
        cls
        for module in sorted(modules)
        for cls in list(vars(sys.modules.get(module, torch)).values())
        if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == module
        if named is None or f"{module}.{cls.__qualname__}" in named
    ]
    if classes:
        # Ultralytics holds its lock while it adds classes of its own; torch has none, and a set
        # that two threads replace loses what one of them added.
        with _lock_of_host():
            torch.serialization.add_safe_globals(classes)


def _named(weight: Any) -> set[str] | None:
    """Classes that a checkpoint on disk names, beyond those of torch; None where it cannot say."""
    import torch

    names = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    if names is None or not Path(str(weight)).is_file():
        return None
    try:
        return set(names(weight))
    except Exception:  # no archive of torch.save; the loader itself will say so
        return None


_OWN_LOCK = threading.Lock()


def _lock_of_host() -> Any:
    """The lock under which Ultralytics changes torch's list of allowed classes, if it has one."""
    from ultralytics.nn import tasks

    return getattr(getattr(tasks, "_SafeLoad", None), "_lock", None) or _OWN_LOCK
