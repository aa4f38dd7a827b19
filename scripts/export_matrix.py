"""Export YOLOv8n with every block to every format that runs here, and write docs/export.md.

Each cell is one forked child with a time limit: it exports a model with random weights, runs the
export on two real images at two sizes, and compares with eager mode. Cells that are done are kept
in a JSON file, so the run can be stopped and continued.

Example: python scripts/export_matrix.py --images shared/coco128/images --formats torchscript,onnx
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("YOLO_VERBOSE", "false")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="yolo-attn-export-config-"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from export_places import places, randomise, write_config

from yolo_attn.registry import block_info, list_blocks

SIZES = [(256, 256), (192, 320)]
SECONDS = 240
ONE_SIZE = ("executorch", "litert")  # the first size alone: a conversion takes most of a minute
BEST = 100  # boxes of each image that agreement looks at
STOCK = "(no block)"
# Column -> arguments of export, and the distributions whose versions matter.
FORMATS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "torchscript": ({"format": "torchscript"}, ("torch",)),
    "onnx": ({"format": "onnx"}, ("onnx", "onnxruntime", "onnxslim")),
    "onnx dynamic": ({"format": "onnx", "dynamic": True}, ("onnx", "onnxruntime", "onnxslim")),
    "openvino": ({"format": "openvino"}, ("openvino",)),
    "mnn": ({"format": "mnn"}, ("MNN",)),
    "ncnn": ({"format": "ncnn"}, ("ncnn", "pnnx")),
    "executorch": ({"format": "executorch"}, ("executorch",)),
    "litert": ({"format": "litert"}, ("litert-torch", "ai-edge-litert")),
}
# What the converters print where Ultralytics says less.
LACKING = re.compile(r"layer \S+ not exists or registered|Op Not Support: *\S+")
HEADER = """\
# Exports

Printed by `python scripts/export_matrix.py` on a CPU ({machine}) with ultralytics {ultralytics} and

{versions}

YOLOv8n with one block, random weights and running statistics, is exported with `yolo export` and
run through Ultralytics' own loader on two photographs of COCO at 256x256 and 192x320. A cell gives
the largest difference to eager mode over all outputs (boxes in pixels and scores, divided by the
value where that is above 1) and, of eager mode's {best} best boxes of each image, the share that
the export gives with the same class and an overlap (IoU) of at least 0.99. Static formats are
exported once for each size; `onnx dynamic` once, traced with one image at 256x256, and run at both
sizes with both images as a batch; executorch and litert (their conversion takes most of a minute)
at 256x256 alone. litert wants an older torch than the others and has an environment of its own.
A model that is too large for a format, or an operation that it lacks, is named as the format says
it; `not run`: the run was ended before that cell. `P5` is after the backbone, `N3` before the
head's first scale.

"""


def image(path: Path, size: tuple[int, int]) -> torch.Tensor:
    """One photograph, letterboxed: 1 x 3 x H x W, 0 to 1."""
    import cv2
    from ultralytics.data.augment import LetterBox

    pixels = LetterBox(size, auto=False)(image=cv2.imread(str(path)))
    array = np.ascontiguousarray(pixels[..., ::-1].transpose(2, 0, 1))
    return torch.from_numpy(array).float()[None] / 255


def model_file(name: str, place: str, folder: Path) -> Path:
    """A checkpoint of YOLOv8n with the block and random weights."""
    from ultralytics import YOLO

    config = folder / f"yolov8n-{name.lower() if name != STOCK else 'none'}.yaml"
    if name == STOCK:
        model = YOLO("yolov8n.yaml", verbose=False)
    else:
        write_config(block_info(name), place, config)
        model = YOLO(str(config), verbose=False)
    randomise(model.model)
    path = folder / "random.pt"
    torch.save({"model": model.model.eval()}, path)
    return path


def first(output: Any) -> np.ndarray:
    """The decoded predictions of a model's or an export's output: 1 x (4 + classes) x N."""
    while isinstance(output, (list, tuple)):
        output = output[0]
    return np.asarray(output, dtype=np.float32)


def agreement(eager: np.ndarray, exported: np.ndarray) -> float:
    """Share of eager's best boxes that the export has too: same class, IoU at least 0.99."""
    best = np.argsort(-eager[4:].max(0))[:BEST]
    a, b = eager[:, best], exported[:, best]
    low = np.maximum(a[:2] - a[2:4] / 2, b[:2] - b[2:4] / 2)
    high = np.minimum(a[:2] + a[2:4] / 2, b[:2] + b[2:4] / 2)
    inter = np.prod(np.clip(high - low, 0, None), axis=0)
    union = np.prod(a[2:4], axis=0) + np.prod(b[2:4], axis=0) - inter
    same = a[4:].argmax(0) == b[4:].argmax(0)
    return float(np.mean(same & (inter >= 0.99 * union)))


def measure(name: str, place: str, column: str, images: list[Path], folder: Path) -> str:
    """One cell: the largest difference and the agreement over images and sizes."""
    from ultralytics import YOLO
    from ultralytics.nn.autobackend import AutoBackend

    os.chdir(folder)
    arguments = FORMATS[column][0]
    source = model_file(name, place, folder)
    worst, agreed, made = 0.0, [], None
    for size in SIZES[:1] if column in ONE_SIZE else SIZES:
        if made is None or not arguments.get("dynamic"):
            made = YOLO(str(source)).export(
                imgsz=list(size), device="cpu", verbose=False, **arguments
            )
            backend = AutoBackend(str(made), device=torch.device("cpu"), verbose=False)
        inputs = [image(path, size) for path in images]
        if arguments.get("dynamic"):
            inputs = [torch.cat(inputs)]  # another batch than the traced one, too
        for x in inputs:
            with torch.no_grad():
                eager = first(YOLO(str(source)).model.eval()(x))
                exported = first(backend(x))
            if exported.shape != eager.shape:
                return f"wrong shape {exported.shape} at {size[0]}x{size[1]}"
            error = np.abs(exported - eager) / np.maximum(np.abs(eager), 1)
            worst = max(worst, float(error.max())) if np.isfinite(error).all() else float("nan")
            agreed += map(agreement, eager, exported)
    return f"{worst:.0e}, {100 * np.mean(agreed):.0f} %"


def reason(error: BaseException) -> str:
    """The last informative line of an error, short enough for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    text = re.sub(r"/\S*/", "", re.sub(r"[|`*<>]", "", text))
    return f"{type(error).__name__}: {text[:110]}"


def cell(name: str, place: str, column: str, images: list[Path]) -> str:
    """`measure` in a forked child: a format's crash or endless loop costs one cell."""
    missing = [d for d in FORMATS[column][1] if not _version(d)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    refused = block_info(name).no_export if name != STOCK else ""
    if refused:
        return refused
    read, write = os.pipe()
    log = tempfile.TemporaryFile()  # noqa: SIM115  # the child writes it
    child = os.fork()
    if child == 0:
        os.close(read)
        os.setsid()
        signal.alarm(SECONDS)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        with tempfile.TemporaryDirectory(prefix="yolo-attn-export-") as folder:
            try:
                text = measure(name, place, column, images, Path(folder))
            except BaseException as error:
                text = reason(error)
            os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    log.seek(0)
    told = LACKING.search(log.read().decode(errors="replace"))
    log.close()
    if said:
        return said if "%" in said or not told else told[0]
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGALRM:
        return f"longer than {SECONDS} s"
    return f"crash of the format ({signal.Signals(number).name})" if number else "ended early"


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _versions(column: str) -> str:
    needed = dict.fromkeys(["torch", *FORMATS[column][1]])
    return ", ".join(f"{d} {_version(d)}" for d in needed if _version(d))


def page(cells: dict[str, str], columns: list[str]) -> str:
    """docs/export.md."""
    found = {column: cells.get(f"versions {column}", "not run") for column in columns}
    versions = "\n".join(f"- {column}: {text}" for column, text in found.items())
    lines = [
        HEADER.format(
            ultralytics=_version("ultralytics"),
            versions=versions,
            machine=platform.machine(),
            best=BEST,
        )
    ]
    lines += ["| block | at | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, place in rows():
        found = [cells.get(f"{name} {place} {column}", "not run") for column in columns]
        if any(text != "not run" for text in found):
            lines.append(f"| {name} | {place} | " + " | ".join(found) + " |")
    return "\n".join(lines) + "\n"


def rows() -> list[tuple[str, str]]:
    """Blocks and places, every block's first place before the second ones."""
    found = [(k, n, p) for n in list_blocks() for k, p in enumerate(places(block_info(n)))]
    return [(STOCK, "-"), *((n, p) for _, n, p in sorted(found))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="folder; its first two count")
    parser.add_argument("--formats", default=",".join(FORMATS), help="columns, by commas")
    parser.add_argument("--blocks", default="", help="only these, by commas")
    parser.add_argument(
        "--cells", type=Path, default=Path("export-cells.json"), help="what is done; is added to"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/export.md"))
    args = parser.parse_args()
    columns = [c.strip() for c in args.formats.split(",")]
    unknown = [c for c in columns if c not in FORMATS]
    if unknown:
        parser.error(f"--formats {unknown[0]!r} (accepted: {', '.join(FORMATS)})")
    images = sorted(args.images.resolve().glob("*.jpg"))[:2]
    if len(images) < 2:
        parser.error(f"--images {args.images}: needs two .jpg files")
    torch.set_num_threads(1)
    cells = json.loads(args.cells.read_text()) if args.cells.exists() else {}
    for name, place in rows():
        if args.blocks and name not in args.blocks.split(","):
            continue
        for column in columns:
            key = f"{name} {place} {column}"
            if key not in cells:
                cells[key] = cell(name, place, column, images)
                cells[f"versions {column}"] = _versions(column)
                print(f"{key}: {cells[key]}", flush=True)
                args.cells.write_text(json.dumps(cells, indent=1))
    args.out.write_text(page(cells, list(FORMATS)), encoding="utf-8")


if __name__ == "__main__":
    main()
