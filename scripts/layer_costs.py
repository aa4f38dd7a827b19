"""What each layer costs in YOLOv8n at its place, and whether it exports: docs/layer-costs.md.

Printed by ``python scripts/layer_costs.py --out docs/layer-costs.md`` (names as arguments: those
alone). Parameters and GFLOPs (640 px) as Ultralytics prints them; milliseconds of one image on one
thread of this processor, base and layer in turns, fused, the median of the quotients beside the
base's own time (SimSPPF costs what the base's SPPF does: its quotient shows the scatter); ONNX and
TorchScript at the traced size against eager mode.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("YOLO_OFFLINE", "1")

import numpy as np
import torch
from export_places import randomise
from torch import nn
from ultralytics import YOLO
from ultralytics.utils.torch_utils import get_flops

from yolo_attn.registry import block_info

# A row of the layer at its place in YOLOv8n: (base layer that it replaces, args).
PLACES: dict[str, tuple[int, str]] = {
    "SPDConv": (5, "[512, 3, 2]"),
    "RFAConv": (5, "[512, 3, 2]"),
    "RFCBAMConv": (5, "[512, 3, 2]"),
    "RFCAConv": (5, "[512, 3, 2]"),
    "GSConv": (5, "[512, 3, 2]"),
    "HWD": (5, "[512]"),
    "DCNv2": (5, "[512, 3, 2]"),
    "LDConv": (5, "[512, 6, 2]"),
    "ODConv": (5, "[512, 3, 2]"),
    "PConv": (0, "[]"),
    "WTConv": (1, "[null, 5, 2]"),
    "ScConv": (0, "[]"),
    "DySample": (10, "[]"),
    "CARAFE": (10, "[]"),
    "EUCB": (10, "[]"),
    "VoVGSCSP": (12, "[512]"),
    "C2fFaster": (12, "[512]"),
    "C2fDWR": (12, "[512]"),
    "FasterNetBlock": (12, "[512]"),
    "GSBottleneck": (12, "[512]"),
    "DWR": (9, "[]"),
    "RFB": (9, "[1024]"),
    "ASPP": (9, "[1024]"),
    "SimSPPF": (9, "[1024, 5]"),
    "SPPFLSKA": (9, "[1024, 5]"),
    "SPPFCSPC": (9, "[1024, 5]"),
}
# They keep size and width, so that they stand behind a convolution instead of in its place.
INSERTED = {"PConv", "ScConv"}


def config_of(name: str) -> str:
    """An overlay of YOLOv8 with the layer at its place."""
    place, args = PLACES[name]
    if name in INSERTED:
        return f"base: yolov8.yaml\ninsert:\n  - [{place}, 1, {name}, {args}]\n"
    repeats = 3 if block_info(name).repeats else 1
    return f"base: yolov8.yaml\nreplace:\n  - [{place}, {repeats}, {name}, {args}]\n"


def model_of(name: str, folder: Path) -> nn.Module:
    """YOLOv8n with the layer, untrained; an empty name is the base."""
    if not name:
        return YOLO("yolov8n.yaml", verbose=False).model
    (folder / "yolov8-layer.yaml").write_text(config_of(name))
    # A digit and one of n, s, l, m, x in a folder's name would pass for a scale letter.
    os.chdir(folder)
    return YOLO("yolov8n-layer.yaml", verbose=False).model


def exported(model: nn.Module, image: torch.Tensor) -> dict[str, float]:
    """Largest relative difference of each exported file and eager mode."""
    import onnxruntime

    head = model.model[-1]
    head.export, head.format = True, "onnx"
    want = model(image).numpy()
    buffer = io.BytesIO()
    torch.onnx.export(model, (image,), buffer, opset_version=17, dynamo=False)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    onnx = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    script = torch.jit.trace(model, image, check_trace=False)(image).numpy()
    scale = np.maximum(np.abs(want), 1)
    return {
        "ONNX": float((np.abs(onnx - want) / scale).max()),
        "TorchScript": float((np.abs(script - want) / scale).max()),
    }


def quotient(model: nn.Module, base: nn.Module, side: int, turns: int) -> tuple[float, float]:
    """Milliseconds of the base, and the median quotient of the two."""
    image = torch.rand(1, 3, side, side)
    times = []
    for _ in range(turns):
        pair = []
        for m in (base, model):
            start = time.perf_counter()
            m(image)
            pair.append(time.perf_counter() - start)
        times.append(pair)
    measured = np.array(times[1:])
    return float(np.median(measured[:, 0])) * 1e3, float(np.median(measured[:, 1] / measured[:, 0]))


@torch.no_grad()
def row(name: str, folder: Path, turns: int) -> str:
    """One line of the table."""
    base, model = model_of("", folder).eval(), model_of(name, folder).eval()
    parameters = [sum(p.numel() for p in m.parameters()) for m in (base, model)]
    flops = [get_flops(m, 640) for m in (base, model)]
    randomise(model)
    error = exported(model, torch.rand(1, 3, 96, 128))
    model.model[-1].export = False
    base.fuse(verbose=False), model.fuse(verbose=False)
    ms, ratio = quotient(model, base, 640, turns)
    place, args = PLACES[name]
    cells = [
        name,
        f"{'behind' if name in INSERTED else 'for'} {place}, `{args}`",
        f"{parameters[1]:,} ({parameters[1] - parameters[0]:+,})",
        f"{flops[1]:.2f} ({flops[1] - flops[0]:+.2f})",
        f"{ms * ratio:.1f} ({ratio:.2f})",
        *(f"yes, {error[kind]:.0e}" if error[kind] < 1e-3 else "NO" for kind in error),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("names", nargs="*", default=[*PLACES])
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    here = Path.cwd()
    torch.set_num_threads(1)
    assert __doc__ is not None
    heading = ["layer", "place", "parameters", "GFLOPs", "ms (of base)", "ONNX", "TorchScript"]
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in args.names:
            lines.append(row(name, Path(folder), args.turns))
            print(lines[-1], flush=True)
        os.chdir(here)
    if args.out:
        said = " ".join(__doc__.split("\n\n", 1)[1].split()).replace("``", "`")
        text = ["# What the layers cost", "", said, "", *lines, ""]
        (here / args.out).write_text("\n".join(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
