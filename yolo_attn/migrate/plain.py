"""Plain data out of a stranger's object: dictionaries, lists, strings and numbers, no more."""

from __future__ import annotations

from typing import Any

from yolo_attn.errors import YoloAttnError

MOST_VALUES = 100_000
DEEPEST = 32


def plain_copy(value: Any, strict: str = "") -> Any:
    """A copy that holds nothing but plain data.

    Args:
        value: What a file holds.
        strict: Name for an error where something else is in it; empty: that becomes None.

    Raises:
        YoloAttnError: Something else is in it and `strict` is given, or it has no end.
    """
    return _copy(value, strict, 0, [MOST_VALUES])


def _copy(value: Any, strict: str, depth: int, budget: list[int]) -> Any:
    budget[0] -= 1
    if depth > DEEPEST or budget[0] < 0:
        raise YoloAttnError(f"{strict or 'the checkpoint'}: data without end (is it damaged?)")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_copy(v, strict, depth + 1, budget) for v in value]
    if isinstance(value, dict):
        return {
            key: _copy(v, strict, depth + 1, budget)
            for key, v in value.items()
            if isinstance(key, (str, int, float))
        }
    if strict:
        raise YoloAttnError(f"{strict} holds {type(value).__name__} (accepted: plain data)")
    return None
