"""Entries of an overlay's lists, ``[place, repeats, module, args]``, checked one by one."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.modules import known_module, unknown
from yolo_attn.overlay.row_guards import point_to_migrate
from yolo_attn.registry import find_block

SAME = "same"  # repeats or args of the row that is replaced


def read_entries(overlay: dict[str, Any], key: str, name: str) -> list[Any]:
    """The entries of one key; none where it is absent.

    Raises:
        YoloAttnError: It is no list.
    """
    entries = overlay.get(key)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise YoloAttnError(
            f"{name} {key}: {entries!r} (accepted: a list of [..., repeats, module, args])"
        )
    return entries


def split_options(entry: Any, count: int, accepted: dict[str, str], where: str) -> tuple[Any, dict]:
    """Split a trailing mapping of options off an entry of `count` values.

    Args:
        entry: The entry.
        count: How many values it has without options.
        accepted: Option -> how it is written.
        where: File and entry, for messages.

    Returns:
        The entry without them, and the options.

    Raises:
        YoloAttnError: What stands there is something else.
    """
    if not isinstance(entry, (list, tuple)) or len(entry) != count + 1:
        return entry, {}
    *rest, options = entry
    if not isinstance(options, dict) or not options or not set(options) <= set(accepted):
        ordinal = {3: "fourth", 4: "fifth"}[count]
        raise YoloAttnError(
            f"{where}: {options!r} (accepted as {ordinal} entry: {' or '.join(accepted.values())})"
        )
    return rest, options


def read_row(
    entry: Any, name: str, label: str, first: str, same: bool = False
) -> tuple[Any, list[Any]]:
    """One entry: its place, and ``[repeats, module, args]``.

    Args:
        entry: The entry.
        name: Of the overlay, for messages.
        label: Of the entry.
        first: What its first value is called.
        same: Whether repeats and args may be ``same``.

    Raises:
        YoloAttnError: It is malformed, or names a module or an option that nobody knows.
    """
    where = f"{name} {label}"
    if not isinstance(entry, (list, tuple)) or len(entry) != 4:
        raise YoloAttnError(f"{where}: {entry!r} (accepted: [{first}, repeats, module, args])")
    place, repeats, module, args = deepcopy(list(entry))
    whole = isinstance(repeats, int) and not isinstance(repeats, bool) and repeats >= 1
    if not whole and not (same and repeats == SAME):
        also = " or same" if same else ""
        raise YoloAttnError(f"{where}: repeats={repeats!r} (accepted: a whole number >= 1{also})")
    if same and args == SAME:
        check_module(module, name, label)
        return place, [repeats, module, args]
    return place, [repeats, module, read_args(module, args, name, label)]


def read_args(module: Any, args: Any, name: str, label: str) -> list[Any]:
    """The args of a module as a list, the options of a block of ours checked.

    Raises:
        YoloAttnError: They are malformed, or the module or an option is unknown.
    """
    where = f"{name} {label}"
    check_module(module, name, label)
    if not isinstance(args, (list, dict)):
        raise YoloAttnError(
            f"{where}: args={args!r} (accepted: a list of options, or one mapping of keywords)"
        )
    args = args if isinstance(args, list) else [args]
    info = find_block(module)
    if info is not None:
        keywords = dict(args[-1]) if args and isinstance(args[-1], dict) else None
        if keywords is not None:
            keywords.pop("identity_start", None)
        try:
            info.bind(args if keywords is None else [*args[:-1], keywords])
        except YoloAttnError as error:
            raise YoloAttnError(f"{where}: {point_to_migrate(error, args, name)}") from None
    return args


def check_module(module: Any, name: str, label: str) -> None:
    """Refuse what is no module's name.

    Raises:
        YoloAttnError: Names the nearest blocks, or what a name of the field is here.
    """
    from ultralytics.nn import tasks

    if not isinstance(module, str):
        raise YoloAttnError(f"{name} {label}: module={module!r} (accepted: a name)")
    if not known_module(module, vars(tasks)):
        raise YoloAttnError(f"{name} {label}: {unknown(module, name, made_here=True)}")


def with_identity(module: str, args: list[Any], identity_start: bool) -> list[Any]:
    """Args with the overlay's identity_start, for a block of ours that does not say otherwise."""
    info = find_block(module)
    if not identity_start or info is None or info.layer:
        return args
    keywords = args[-1] if args and isinstance(args[-1], dict) else {}
    positional = args[:-1] if args and isinstance(args[-1], dict) else args
    return [*positional, {"identity_start": True, **keywords}]


def read_flag(value: Any, where: str) -> bool:
    """A key that is true or false.

    Raises:
        YoloAttnError: It is something else.
    """
    if not isinstance(value, bool):
        raise YoloAttnError(f"{where}: {value!r} (accepted: true, false)")
    return value
