"""Models of every task load the weights of their base, each into its own layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ultralytics import YOLO

# Task suffix -> layer behind which the block stands: the last of the backbone.
TASKS = {"": 9, "-cls": 8, "-seg": 9, "-pose": 9, "-obb": 9}


@pytest.mark.parametrize("task", TASKS)
def test_models_of_every_task_load_their_base(task: str, tmp_path: Path) -> None:
    after = TASKS[task]
    file = tmp_path / f"yolov8n{task}-mine.yaml"
    file.write_text(f"base: yolov8n{task}.yaml\ninsert:\n  - [{after}, 1, GlobalContext, []]\n")
    base = YOLO(f"yolov8n{task}.yaml")
    mine = YOLO(str(file), task=base.task)
    mine.model.load(base.model)
    own = mine.model.state_dict()
    for name, value in base.model.state_dict().items():
        _, layer, rest = name.split(".", 2)
        at = int(layer) + (int(layer) > after)
        torch.testing.assert_close(own[f"model.{at}.{rest}"], value)
