"""Print fingerprints of stock models as JSON: seeded tensors and the layer table.

Run in a process of its own, once with the hook and once with YOLO_ATTN_DISABLE=1: ``python
stock_fingerprint.py YAML...``
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER, ROOT


def model_yamls() -> list[Path]:
    """Every model YAML that the installed Ultralytics ships."""
    return sorted((Path(ROOT) / "cfg" / "models").rglob("*.yaml"))


def fingerprint(path: Path) -> str:
    """Hash of one model at its smallest scale, or the error that it ends in."""
    lines: list[str] = []
    LOGGER.info = lambda text="", *args: lines.append(str(text))  # the printed table counts too
    try:
        d = tasks.yaml_model_load(path)
        if d.get("scales"):
            d["scale"] = next(iter(d["scales"]))
        torch.manual_seed(0)
        model, save = tasks.parse_model(d, d.get("channels", 3), True)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    digest = hashlib.sha256("\n".join([*lines, repr(save), repr(model)]).encode())
    for layer in model:
        digest.update(repr((layer.i, layer.f, layer.type, layer.np)).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    paths = [Path(p) for p in sys.argv[1:]] or model_yamls()
    prints = {p.name: fingerprint(p) for p in paths}
    print(json.dumps({"ours": "yolo_attn.autoload" in sys.modules, "prints": prints}))
