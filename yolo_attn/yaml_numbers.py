"""Numbers that a YAML gives as strings: YAML 1.1, which everybody reads, takes ``1e-4`` for one."""

from __future__ import annotations

import inspect
import re
from typing import Any

# YAML 1.1 wants a point and a signed exponent: 1.0e-4.
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d{1,3}")


def read_number(value: Any, option: inspect.Parameter) -> Any:
    """`value`, or the number that it is where the option takes numbers; lists value by value.

    Args:
        value: From a row, or from Python.
        option: Of a block's constructor: its default or annotation says what it takes.
    """
    if isinstance(value, (list, tuple)):
        return type(value)(read_number(v, option) for v in value)
    if not isinstance(value, str) or not EXPONENT.fullmatch(value):
        return value
    kind, default = str(option.annotation), option.default
    is_number = isinstance(default, (int, float)) and not isinstance(default, bool)
    if not is_number and not re.search(r"\b(int|float)\b", kind):
        return value
    number = float(value)
    whole = number.is_integer() and "float" not in kind and not isinstance(default, float)
    return int(number) if whole else number
