"""Arms of one seed see the same images in the same order, whatever their models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.processes import python
from yolo_attn.data.synthetic import make_smallshapes

ORDER = """
import hashlib, sys
from ultralytics import YOLO
model, data, seed, project = sys.argv[1:]
def look(trainer):
    batch = next(iter(trainer.train_loader))
    raise SystemExit("batch " + hashlib.sha256(batch["img"].numpy().tobytes()).hexdigest())
net = YOLO(model)
net.add_callback("on_train_start", look)
net.train(data=data, epochs=1, imgsz=64, batch=4, workers=0, device="cpu", plots=False,
          seed=int(seed), project=project, name="x", exist_ok=True, pretrained=False)
"""


@pytest.mark.slow
def test_the_first_batch_is_the_same_for_all_arms_of_a_seed(tmp_path: Path) -> None:
    make_smallshapes(
        tmp_path / "s", image_size=64, train_images=8, val_images=2, object_size=(6, 12)
    )

    def first(model: str, seed: int) -> str:
        done = python(
            "-c", ORDER, model, str(tmp_path / "s" / "data.yaml"), str(seed), str(tmp_path),
            cwd=tmp_path, ok=False,
        )  # fmt: skip
        found = re.search(r"batch (\w{64})", done.stderr + done.stdout)
        assert found, done.stderr[-2000:]
        return found[1]

    of_seed = [first(model, 0) for model in ("yolov8n.yaml", "yolov8n-nonlocal.yaml")]
    assert of_seed[0] == of_seed[1] != first("yolov8n.yaml", 1)
