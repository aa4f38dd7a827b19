"""The blocks, one file a paper. Importing this package registers all of them."""

from __future__ import annotations

import importlib
import pkgutil

from yolo_attn.autoload import refuse_when_disabled

refuse_when_disabled()

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
