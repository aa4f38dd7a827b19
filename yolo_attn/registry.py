"""The list of blocks: what a YAML may name, and what each block states of itself."""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, TypeVar
from weakref import WeakSet

from yolo_attn import host
from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.versions import earlier_defaults
from yolo_attn.yaml_numbers import read_number

if TYPE_CHECKING:
    from torch import nn

ENTRY_POINT_GROUP = "yolo_attn.blocks"
MODULES_ENV = "YOLO_ATTN_BLOCKS"

T = TypeVar("T")


@dataclass(frozen=True)
class BlockInfo:
    """What the registry knows of a block.

    Attributes:
        name: Name in YAML and :func:`create`.
        cls: The ``nn.Module``; its first argument is ``channels`` (an int, or a list of ints for a
            block with several inputs), the others are the block's options in order.
        paper: Authors, title, venue, arXiv id.
        inputs: Number of input maps; ``(low, high)`` where a range is accepted.
        aliases: Other names.
        cost: What dominates, in ``N = H*W`` and ``C``.
        identity_at_start: Whether the output equals the (first) input before training, with default
            options. Where that depends on the options, the block has an attribute
            `starts_as_identity`. A method ``zero_started()`` returns the parameter whose zero makes
            it so, None where it is not so; explain/use.py measures how far that has moved.
        placement: Where the paper puts the block, in one sentence.
        width_options: Options that are channel counts; a YAML row has them scaled with the model's
            width, as Ultralytics does for its own modules.
        repeats: Option that a YAML row's repeats set, as for Ultralytics' C2f; empty: that many
            blocks in a row.
        dead_parameters: Parameters without a gradient under default options: name -> reason.
        levels: For several inputs, the size of each map relative to the first (2: twice as wide and
            high); the last one holds for all further inputs. Empty: all of one size.
        min_size: Smallest height and width of the (first) map.
        no_export: Why the block cannot be exported to ONNX or TorchScript; empty where it can.
        layer: Whether this stands in the place of a base's own layer (SPDConv, DySample, VoVGSCSP
            ...) rather than beside them: `list_blocks` leaves it out, `list_layers` lists it.
    """

    name: str
    cls: type[nn.Module]
    paper: str = ""
    inputs: int | tuple[int, int] = 1
    aliases: tuple[str, ...] = ()
    cost: str = ""
    identity_at_start: bool = False
    placement: str = ""
    width_options: tuple[str, ...] = ()
    repeats: str = ""
    dead_parameters: Mapping[str, str] = field(default_factory=dict)
    levels: tuple[float, ...] = ()
    min_size: int = 1
    no_export: str = ""
    layer: bool = False

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.cls) or "").split("\n", 1)[0]

    @property
    def options(self) -> dict[str, Any]:
        """Options in order with their defaults (``Parameter.empty`` where there is none)."""
        parameters = list(inspect.signature(self.cls.__init__).parameters.values())[2:]
        return {p.name: p.default for p in parameters}

    @property
    def min_inputs(self) -> int:
        """Fewest input maps."""
        return self.inputs if isinstance(self.inputs, int) else self.inputs[0]

    @property
    def max_inputs(self) -> int:
        """Most input maps."""
        return self.inputs if isinstance(self.inputs, int) else self.inputs[1]

    @property
    def takes_list(self) -> bool:
        """Whether ``channels`` is a list and ``forward`` takes a list of maps."""
        return self.max_inputs > 1

    def bind(self, args: list[Any]) -> list[Any]:
        """Turn the args of a YAML row into positional options.

        Args:
            args: Options in order, or the same with one trailing mapping of keywords.

        Returns:
            Options in order, defaults filled in up to the last one given.

        Raises:
            YoloAttnError: An option is unknown, given twice, missing, or there are too many.
        """
        options = self.options
        names = list(options)
        accepted = ", ".join(names) if names else "no options"
        args = list(args)
        keywords = args.pop() if args and isinstance(args[-1], dict) else {}
        if len(args) > len(names):
            raise YoloAttnError(
                f"{self.name} takes at most {len(names)} options ({accepted}), got {len(args)}: "
                f"{args}"
            )
        bound = dict(zip(names, args))
        for key, value in keywords.items():
            if key not in options:
                raise YoloAttnError(
                    f"{self.name} has no option {key!r}{did_you_mean(key, names)} (accepted: "
                    f"{accepted})"
                )
            if key in bound:
                raise YoloAttnError(f"{self.name}: option {key!r} is given twice")
            bound[key] = value
        missing = [n for n in names if options[n] is inspect.Parameter.empty and n not in bound]
        if missing:
            raise YoloAttnError(
                f"{self.name} needs the option {missing[0]!r} (options: {accepted})"
            )
        parameters = inspect.signature(self.cls.__init__).parameters
        bound = {name: read_number(value, parameters[name]) for name, value in bound.items()}
        # A model of an older version means that version's defaults.
        bound = {**earlier_defaults(self.name), **bound}
        last = max((names.index(n) for n in bound), default=-1)
        return [bound.get(n, options[n]) for n in names[: last + 1]]


# Every instance, alive, of a registered class with a loss of its own.
_WITH_LOSS: WeakSet[Any] = WeakSet()
_BLOCKS: dict[str, BlockInfo] = {}
_ALIASES: dict[str, str] = {}
# Adding a block, and going through the instances: short, and nothing is imported under it.
_LOCK = threading.RLock()
# Origin of blocks that could not be imported -> what it raised.
_FAILED: dict[str, str] = {}
_loaded = False
_loading = threading.local()


def register(cls: type[T] | None = None, *, name: str | None = None, **facts: Any) -> Any:
    """Make a block known to YAMLs and to :func:`create`; usable as a call or as a decorator.

    Args:
        cls: ``nn.Module`` whose first argument is ``channels``; an ``out_channels`` attribute
            states its output channels (default: those of the first input).
        name: Name in YAMLs; the class name by default.
        **facts: Further fields of :class:`BlockInfo`.

    Returns:
        The class, unchanged.

    Raises:
        YoloAttnError: The name is taken by another class or has a meaning in Ultralytics, or the
            constructor does not fit.
    """

    def add(cls: type[T]) -> type[T]:
        info = BlockInfo(name=name or cls.__name__, cls=cls, **facts)  # type: ignore[arg-type]
        _check_constructor(info)
        names = (info.name, *info.aliases)
        if cls.__module__.partition(".")[0] != __package__:
            host.refuse_taken(names, cls)
        with _LOCK:
            for key in names:
                holder = _BLOCKS.get(_ALIASES.get(key, key))
                if holder is not None and not _same_class(holder.cls, cls):
                    raise YoloAttnError(
                        f"block name {key!r} is already taken by "
                        f"{holder.cls.__module__}.{holder.cls.__qualname__}; "
                        f"register {cls.__module__}.{cls.__qualname__} under another name"
                    )
            if hasattr(cls, "aux_loss"):
                _watch_instances(cls)
            _BLOCKS[info.name] = info
            _ALIASES.update({alias: info.name for alias in info.aliases})
        return cls

    return add if cls is None else add(cls)


def _watch_instances(cls: type) -> None:
    """Note each instance of `cls`, however it comes to be: built, copied or unpickled.

    So that a training step can tell in no time that no model has a loss of ours.
    """
    original: Any = cls.__new__
    if hasattr(original, "watched"):
        return

    def __new__(kind: type, *args: Any, **kwargs: Any) -> Any:
        plain = original is object.__new__
        instance = original(kind) if plain else original(kind, *args, **kwargs)
        with _LOCK:
            _WITH_LOSS.add(instance)
        return instance

    __new__.watched = True  # type: ignore[attr-defined]
    # What a signature of the class is taken from.
    __new__.__wrapped__ = cls.__init__  # type: ignore[attr-defined, misc]
    cls.__new__ = staticmethod(__new__)  # type: ignore[assignment]


def has_own_loss(module: object) -> bool:
    """Whether `module` is a registered block with an auxiliary loss (see ``seam/losses.py``)."""
    return module in _WITH_LOSS and getattr(module, "has_aux_loss", True)


def any_own_loss() -> bool:
    """Whether a registered block with an auxiliary loss exists in this process."""
    if not len(_WITH_LOSS):
        return False
    with _LOCK:  # another thread may build or load a model
        instances = list(_WITH_LOSS)
    return any(map(has_own_loss, instances))


def _same_class(a: type, b: type) -> bool:
    """Whether `b` is `a`, or `a` reloaded (notebooks run a cell twice)."""
    return (a.__module__, a.__qualname__) == (b.__module__, b.__qualname__)


def _check_constructor(info: BlockInfo) -> None:
    parameters = list(inspect.signature(info.cls.__init__).parameters.values())
    if len(parameters) < 2 or any(
        p.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters[1:]
    ):
        raise YoloAttnError(
            f"{info.cls.__qualname__}.__init__ must be (self, channels, option, ...) with options "
            "that can be "
            f"given by position or by keyword, found {inspect.signature(info.cls.__init__)}"
        )


def _load() -> None:
    """Import our blocks and layers, then those of other packages and of ``YOLO_ATTN_BLOCKS``.

    Threads that come here together all import: Python lets one of them do it and the others wait.
    A lock of ours around it would stand crosswise to Python's own lock of each module.
    """
    global _loaded
    if _loaded or getattr(_loading, "here", False):
        return
    _loading.here = True
    try:
        importlib.import_module("yolo_attn.blocks")
        importlib.import_module("yolo_attn.layers")
        for entry_point in _entry_points():
            _import_blocks(
                entry_point.load, f"entry point {entry_point.name!r} ({entry_point.value})"
            )
        for module in filter(None, re.split(r"[,\s]+", os.environ.get(MODULES_ENV, ""))):
            _import_blocks(partial(importlib.import_module, module), f"{MODULES_ENV}={module}")
        _loaded = True
    finally:
        _loading.here = False


def load_all() -> None:
    """Import every block now, before threads or an unpickler import some of their modules."""
    _load()


def _entry_points() -> list[Any]:
    from importlib.metadata import entry_points

    found: Any = entry_points()
    # Python 3.9 returns a dict of groups; newer versions an object with select().
    return list(
        found.select(group=ENTRY_POINT_GROUP)
        if hasattr(found, "select")
        else found.get(ENTRY_POINT_GROUP, ())
    )


def _import_blocks(load: Callable[[], Any], origin: str) -> None:
    """Import somebody's blocks; what goes wrong there must not stop a model that has none of them.

    ``sys.exit`` or ``pytest.skip`` in a module are no reason to end this program either.
    """
    try:
        load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        text = " ".join(str(error).split())
        with _LOCK:
            known = origin in _FAILED
            _FAILED[origin] = f"{type(error).__name__}: {text}" if text else type(error).__name__
        if not known:
            _warn(f"could not import blocks from {origin}: {_FAILED[origin]}")


def _warn(message: str) -> None:
    """A line in the log, once Ultralytics has one; a program's warning filter cannot raise it."""
    import logging

    logging.getLogger("ultralytics").warning(f"yolo_attn {message}; models without them work")


def failed_imports() -> str:
    """What to add to the error of an unknown name: which blocks could not be imported, and why."""
    _load()
    with _LOCK:
        said = "; ".join(f"{origin}: {why}" for origin, why in _FAILED.items())
    return f" (could not import blocks from {said})" if said else ""


def list_blocks(pattern: str = "*") -> list[str]:
    """Return the names of registered blocks that match a shell pattern, ignoring case, sorted."""
    return _names(pattern, layers=False)


def list_layers(pattern: str = "*") -> list[str]:
    """The same for the layers that bases are made of."""
    return _names(pattern, layers=True)


def _names(pattern: str, layers: bool) -> list[str]:
    _load()
    return sorted(
        name
        for name, info in list(_BLOCKS.items())
        if info.layer is layers and fnmatch.fnmatchcase(name.lower(), pattern.lower())
    )


def find_block(name: object) -> BlockInfo | None:
    """Return the facts of the block with this name or alias, or None."""
    if not isinstance(name, str):
        return None
    _load()
    return _BLOCKS.get(_ALIASES.get(name, name))


def block_info(name: str) -> BlockInfo:
    """Return the facts of the block with this name or alias.

    Raises:
        YoloAttnError: No such block; the message has the nearest names.
    """
    info = find_block(name)
    if info is None:
        meant = in_this_project(name)
        if meant:
            raise YoloAttnError(
                f"unknown block {name!r}, {meant}; `yolo-attn migrate FILE` translates forks' YAMLs"
            )
        raise YoloAttnError(
            f"unknown block {name!r}{did_you_mean(name, known_names())} (`yolo-attn blocks` lists "
            f"them all){failed_imports()}"
        )
    return info


def in_this_project(name: object) -> str:
    """What a name of the field is here: ``"in this project: SE (without biases)"``.

    Empty for any other name, and for our own.
    """
    from yolo_attn.migrate.names import field_name

    found = None if find_block(name) else field_name(name)
    if found is None:
        return ""
    known = f"in this project: {' or '.join(found.blocks)}"
    return (known if found.blocks else "not in this project yet") + (
        f" ({found.note})" if found.note else ""
    )


def known_names() -> list[str]:
    """Return every accepted name, aliases included, sorted."""
    _load()
    return sorted([*_BLOCKS, *_ALIASES])


def create(name: str, channels: int | list[int], *args: Any, **options: Any) -> nn.Module:
    """Build a block by name.

    Args:
        name: Registered name or alias, e.g. ``"NonLocal"``.
        channels: Channels of the input map, or a list of them for a block with several inputs.
        *args: Options in order.
        **options: Options by name.

    Returns:
        The block, initialised as its paper says.

    Raises:
        YoloAttnError: Unknown block or option.
        ValueError: An option's value is not accepted by the block.

    Example:
        >>> import yolo_attn
        >>> block = yolo_attn.create("NonLocal", 64, mode="dot_product")
    """
    info = block_info(name)
    bound = info.bind([*args, options] if options else list(args))
    return info.cls(channels, *bound)
