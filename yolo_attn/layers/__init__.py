"""Layers in the place of a convolution, an up-sampling or a stage; importing this registers them.

They use Ultralytics' ``Conv`` (when built, not when imported), so that ``fuse()`` merges their
normalisation and a YAML's ``activation`` reaches them.
"""

from __future__ import annotations

import importlib
import pkgutil

from yolo_attn.autoload import refuse_when_disabled

refuse_when_disabled()

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")
