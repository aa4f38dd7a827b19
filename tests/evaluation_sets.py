"""A small COCO set and a model of random weights that detects a lot, for tests of evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

CLASSES = ("car", "person")
WIDTH, HEIGHT = 160, 128


def write_coco(folder: Path) -> Path:
    """Six images with crowds, areas that are not those of the boxes, one without objects."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(6):
        name = f"scene_{i:02d}.png"
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": i + 1, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for k in range(0 if i == 3 else 8):
            x, y = rng.uniform(0, 90, 2)
            w, h = rng.uniform(20, 48, 2) if k % 2 else rng.uniform(3, 12, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": (3, 7)[k % 2],
                    "bbox": [x, y, w, min(h, HEIGHT - 1 - y)],
                    "area": w * h * rng.uniform(0.6, 1),
                    "iscrowd": int(k == 7),
                }
            )
    categories = [{"id": 3, "name": "car"}, {"id": 7, "name": "person"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def write_model(folder: Path, *, block: bool = True) -> str:
    """A checkpoint of a tiny detector, with a block of ours or without."""
    from ultralytics import YOLO

    torch.manual_seed(0)
    middle = [-1, 1, "NonLocal", []] if block else [-1, 1, "nn.Identity", []]
    config = {
        "nc": len(CLASSES),
        "scales": {"n": [0.33, 0.125, 256]},
        "backbone": [[-1, 1, "Conv", [channels, 3, 2]] for channels in (64, 128, 128)],
        # Two levels: the loss of Ultralytics 8.4.0 needs the second one's stride.
        "head": [middle, [-1, 1, "Conv", [128, 3, 2]], [[3, 4], 1, "Detect", ["nc"]]],
    }
    (folder / "yolov8n-small.yaml").write_text(yaml.safe_dump(config))
    model = YOLO(str(folder / "yolov8n-small.yaml"))
    model.model.names = dict(enumerate(CLASSES))
    head = model.model.model[-1]
    with torch.no_grad():
        for boxes, classes in zip(head.cv2, head.cv3):
            classes[-1].bias.fill_(-2.0)
            # Boxes of about two strides to each side, as wide as the objects.
            boxes[-1].bias.copy_(-(torch.arange(16) - 2.0).abs().repeat(4))
            for conv in (boxes[-1], classes[-1]):
                conv.weight.normal_(0, 0.3)
    # `model.save` of Ultralytics 8.3.0 needs a model that came from a checkpoint.
    torch.save({"model": model.model}, folder / "model.pt")
    return str(folder / "model.pt")


def write_plain(folder: Path, dataset: Path) -> Path:
    """The labels and images of a converted set, without any trace of us."""
    import shutil

    shutil.copytree(dataset, folder, ignore=shutil.ignore_patterns("annotations", "*.cache"))
    (folder / "data.yaml").write_text(
        f"path: {folder}\ntrain: images/train\nval: images/train\nnames: [{', '.join(CLASSES)}]\n"
    )
    return folder / "data.yaml"
