"""How the files beside this one were made, by yolo_attn 0.1.0 (5498f3b): run it with that checkout.

git worktree add /tmp/old 5498f3b && cd $(mktemp -d) && PYTHONPATH=/tmp/old python .../make.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from ultralytics import YOLO

import yolo_attn
from yolo_attn.data.synthetic import make_smallshapes

BASE = """nc: 5
reg_max: 1 # a small head
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
"""
HEAD = "head:\n  - [[2, 3], 1, Detect, [nc]]\n"
OVERLAY = """base: tiny.yaml
insert:
  - [3, 1, NonLocal, []]
  - [3, 1, EMA, []]
  - [3, 1, MDCR, []]
  - [3, 1, SE, []]
  - [2, 1, CBAM, [{identity_start: true}]]
  - [2, 1, GlobalContext, []]
  - [2, 1, CoordAtt, [{identity_start: true}]]
"""
ROWS = """  - [-1, 1, SE, []]
  - [-1, 1, NonLocal, [dot_product]]
"""
HOW = {"data": "shapes.yaml", "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu"}
HOW |= {"plots": False, "optimizer": "SGD", "lr0": 0.01, "project": "runs"}


def main() -> None:
    """Write overlay_last.pt (interrupted), rows_best.pt and expanded.yaml beside this file."""
    assert yolo_attn.__version__ == "0.1.0", yolo_attn.__file__
    make_smallshapes(Path("shapes"), image_size=96, train_images=8, val_images=4)
    Path("shapes.yaml").write_text(
        "path: shapes\ntrain: images/train\nval: images/val\n"
        "names: [disk, square, triangle, cross, ring]\n"
    )
    Path("tiny.yaml").write_text(BASE + HEAD)
    Path("tiny-overlay.yaml").write_text(OVERLAY)
    Path("tiny-rows.yaml").write_text(BASE + ROWS + HEAD.replace("[2, 3]", "[2, 5]"))
    here = Path(__file__).parent

    model = YOLO("tiny-overlay.yaml")

    def interrupt(trainer) -> None:
        if trainer.epoch == 0:
            raise KeyboardInterrupt

    model.add_callback("on_model_save", interrupt)
    try:
        model.train(epochs=3, name="overlay", **HOW)
    except KeyboardInterrupt:
        pass
    (last,) = Path.cwd().glob("**/overlay/weights/last.pt")
    shutil.copy(last, here / "overlay_last.pt")

    YOLO("tiny-rows.yaml").train(epochs=1, name="rows", **HOW)
    (best,) = Path.cwd().glob("**/rows/weights/best.pt")
    shutil.copy(best, here / "rows_best.pt")

    expand = [sys.executable, "-m", "yolo_attn.cli", "expand", "tiny-overlay.yaml"]
    (here / "expanded.yaml").write_text(
        subprocess.run(expand, stdout=-1, check=True).stdout.decode()
    )


if __name__ == "__main__":
    main()
