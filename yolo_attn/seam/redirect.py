"""Send the calls of a function to a handler by exchanging its code object in place.

In place, because Ultralytics' modules import these functions from each other by name: every name
that anybody holds is the same function object. Standard library only: this runs while Ultralytics
is being imported.
"""

from __future__ import annotations

import importlib
import inspect
import threading
from types import FunctionType
from typing import Any, Callable

_ORIGINALS: dict[str, FunctionType] = {}
_IMPORTING = threading.RLock()


def redirect(function: Any, handler: str) -> bool:
    """Make `function` call ``handler(original, *arguments)``.

    Signature, defaults, name and documentation stay; ``inspect.getsource`` still shows the
    original.

    Args:
        function: A plain function or method of an Ultralytics module.
        handler: ``"module:function"``; imported at the first call.

    Returns:
        Whether it is redirected now; False if it is not a plain function without closure.
    """
    if not isinstance(function, FunctionType) or function.__closure__:
        return False
    if _is_redirected(function):
        return True
    code = function.__code__
    original = FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
    original.__kwdefaults__ = function.__kwdefaults__
    original.__doc__ = function.__doc__
    key = f"{function.__module__}.{function.__qualname__}"
    _ORIGINALS[key] = original

    parameters, arguments = _as_text(function)
    source = (
        f"def {function.__name__}({parameters}):\n"
        f"    from yolo_attn.seam.redirect import call\n"
        f"    return call({key!r}, {handler!r}, {arguments})\n"
    )
    namespace: dict[str, Any] = {}
    exec(compile(source, code.co_filename, "exec"), namespace)
    function.__code__ = namespace[function.__name__].__code__.replace(
        co_filename=code.co_filename, co_firstlineno=code.co_firstlineno
    )
    return True


def fits(function: Any, handler: str) -> bool:
    """Whether a handler takes what calls of `function` would pass on: a fork may have changed it.

    Args:
        function: A function of a fork.
        handler: ``"module:function"``; imported now.
    """
    if not isinstance(function, FunctionType):
        return False
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    names = [
        p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    count = sum(kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD for kind in kinds)
    try:
        inspect.signature(_imported(handler)).bind(None, *[None] * count, **dict.fromkeys(names))
    except (TypeError, ImportError, AttributeError):
        return False
    return True


def original_of(name: str) -> FunctionType:
    """The original of a redirected function, by its full name."""
    return _ORIGINALS[name]


def call(key: str, handler: str, *args: Any, **kwargs: Any) -> Any:
    """Call the handler with the original function in front of the arguments."""
    return _imported(handler)(_ORIGINALS[key], *args, **kwargs)


def _imported(handler: str) -> Callable[..., Any]:
    """The handler; one thread at a time imports, as modules of ours import each other."""
    module, name = handler.split(":")
    with _IMPORTING:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _is_redirected(function: FunctionType) -> bool:
    return "yolo_attn.seam.redirect" in function.__code__.co_names


def _as_text(function: FunctionType) -> tuple[str, str]:
    """Parameters (defaults stay on the function object) and the arguments that pass them on."""
    parameters, arguments = [], []
    star = False
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.VAR_POSITIONAL:
            star = True
            parameters.append(f"*{p.name}")
            arguments.append(f"*{p.name}")
        elif p.kind is p.VAR_KEYWORD:
            parameters.append(f"**{p.name}")
            arguments.append(f"**{p.name}")
        elif p.kind is p.KEYWORD_ONLY:
            if not star:
                star = True
                parameters.append("*")
            parameters.append(p.name)
            arguments.append(f"{p.name}={p.name}")
        else:
            parameters.append(p.name)
            arguments.append(p.name)
    return ", ".join(parameters), ", ".join(arguments)
