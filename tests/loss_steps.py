"""Three training steps of small models; prints a hash of the weights and the loss items of each.

A process of its own, because it is run with our hook and without. It does not import us.

Arguments: ``KIND[=LOSS] ...`` with LOSS in JSON; without LOSS the YAML has no key `loss`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from ultralytics.nn import tasks
from ultralytics.utils import DEFAULT_CFG, ROOT

MODELS = {
    "detect": ("yolov8n.yaml", tasks.DetectionModel),
    "v10": ("yolov10n.yaml", tasks.DetectionModel),
    "26": ("yolo26n.yaml", tasks.DetectionModel),
    "segment": ("yolov8n-seg.yaml", tasks.SegmentationModel),
    "pose": ("yolov8n-pose.yaml", tasks.PoseModel),
    "world": ("yolov8s-world.yaml", tasks.WorldModel),
    "yoloe": ("yoloe-v8s.yaml", getattr(tasks, "YOLOEModel", None)),
    "obb": ("yolov8n-obb.yaml", tasks.OBBModel),
}
SIDE = 64
IMAGES = 3  # 8.4.0 takes a batch of two for a pair of prototypes


def exists(kind: str) -> bool:
    """Whether this version has the model."""
    name, cls = MODELS[kind]
    name = name.replace("v8n", "v8").replace("v8s", "v8").replace("26n", "26")
    return cls is not None and any((Path(ROOT) / "cfg" / "models").rglob(name))


def model(kind: str, **keys: object) -> torch.nn.Module:
    """A fresh model, always with the same weights; `keys` are added to its YAML."""
    name, cls = MODELS[kind]
    torch.manual_seed(0)
    net = cls({**tasks.yaml_model_load(name), **keys}, verbose=False)
    net.args = DEFAULT_CFG
    return net.train()


def batch(kind: str, objects: int = 4) -> dict[str, torch.Tensor]:
    """A few images with a few objects."""
    g = torch.Generator().manual_seed(1)
    sides = torch.rand(objects, 2, generator=g) * 0.4 + 0.1
    centres = torch.rand(objects, 2, generator=g) * 0.5 + 0.25
    found = {
        "img": torch.rand(IMAGES, 3, SIDE, SIDE, generator=g),
        "batch_idx": (torch.arange(objects) * IMAGES // max(objects, 1)).float(),
        "cls": (torch.arange(objects).float() % 3)[:, None],
        "bboxes": torch.cat([centres, sides], 1),
    }
    if kind == "obb":
        found["resized_shape"] = [[SIDE, SIDE]] * IMAGES  # 8.4.0 reads it
        found["bboxes"] = torch.cat([found["bboxes"], torch.zeros(objects, 1)], 1)
    if kind == "segment":
        found["masks"] = (torch.rand(IMAGES, SIDE // 4, SIDE // 4, generator=g) * objects).round()
    if kind == "pose":
        found["cls"] = torch.zeros(objects, 1)
        found["keypoints"] = torch.rand(objects, 17, 3, generator=g)
    if kind in ("world", "yoloe"):
        found["txt_feats"] = torch.randn(IMAGES, 80, 512, generator=g)
    return found


def total(result: tuple) -> tuple[torch.Tensor, list[float]]:
    """The loss as one number, and its items (a vector or, from 8.4.104 on, a dict)."""
    loss, items = result
    items = torch.stack([*items.values()]) if isinstance(items, dict) else items
    return loss.sum(), items.tolist()


def main() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    for argument in sys.argv[1:]:
        kind, _, loss = argument.partition("=")
        if not exists(kind):
            print(f"{argument}\tabsent")
            continue
        net = model(kind, **({"loss": json.loads(loss)} if loss else {}))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        shown = []
        for _ in range(3):
            optimizer.zero_grad()
            value, items = total(net.loss(batch(kind)))
            value.backward()
            optimizer.step()
            shown.append(items)
        digest = hashlib.md5()
        for p in net.state_dict().values():
            digest.update(p.detach().contiguous().numpy().tobytes())
        print(f"{argument}\t{digest.hexdigest()}\t{json.dumps(shown)}")


if __name__ == "__main__":
    main()
