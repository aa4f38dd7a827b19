"""The repeats of a row whose block takes them itself, as Ultralytics' C2f does."""

from __future__ import annotations

from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.registry import BlockInfo


def with_repeats(
    info: BlockInfo, args: list[Any], n: int, local: dict[str, Any]
) -> tuple[list[Any], int]:
    """The row's args with its repeats among them, and how often the block then stands in a row.

    Args:
        info: The block.
        args: Options in order, or the same with one trailing mapping of keywords.
        n: The row's repeats.
        local: Local variables of ``parse_model``; ``depth`` scales repeats above 1.

    Raises:
        YoloAttnError: The args say the repeats, too.
    """
    if not info.repeats:
        return args, n
    positional, keywords = args, {}
    if args and isinstance(args[-1], dict):
        positional, keywords = args[:-1], args[-1]
    if info.repeats in keywords or len(positional) > list(info.options).index(info.repeats):
        raise YoloAttnError(
            f"{info.name}: option {info.repeats!r} is not accepted in a row (accepted: the row's "
            "repeats, its second entry)"
        )
    scaled = max(round(n * local.get("depth", 1.0)), 1) if n > 1 else n
    return [*positional, {**keywords, info.repeats: scaled}], 1
