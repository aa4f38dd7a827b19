"""The table: file name (before the first dot) -> how our block expresses that reference block."""

from __future__ import annotations

import importlib
import pkgutil

from tests.golden_harness import Case

TABLE: dict[str, Case] = {}
for _module in pkgutil.iter_modules(__path__):
    _cases = importlib.import_module(f"{__name__}.{_module.name}").CASES
    _twice = TABLE.keys() & _cases.keys()
    assert not _twice, f"{_module.name}: {sorted(_twice)} stand in the table already"
    TABLE.update(_cases)
