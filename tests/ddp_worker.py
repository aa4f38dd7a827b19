"""Train one epoch as a rank of a CPU (gloo) group; started by ``torch.distributed.run``.

Ultralytics' DDP set-up is written for accelerators; this trainer replaces just those lines. It does
not import us.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer


class _CpuDDP(nn.parallel.DistributedDataParallel):
    def __init__(self, module, device_ids=None, output_device=None, **kwargs):
        super().__init__(module, **kwargs)


nn.parallel.DistributedDataParallel = _CpuDDP


class CpuTrainer(DetectionTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.world_size, self.ddp = int(os.environ["WORLD_SIZE"]), False

    def _setup_ddp(self, *args):
        dist.init_process_group("gloo")
        self.device = torch.device("cpu")
        self.accelerator = getattr(self, "accelerator", None)

    def final_eval(self):
        pass


if __name__ == "__main__":
    model, data, project = sys.argv[1:4]
    overrides = {
        "model": model, "data": data, "project": project, "epochs": 1, "imgsz": 64, "batch": 4,
        "workers": 0, "device": "cpu", "plots": False, "val": False,
        "optimizer": "SGD", "amp": False,
    }  # fmt: skip
    trainer = CpuTrainer(overrides=overrides)
    # Up to 8.3.253 the world size is an argument.
    wants_size = "world_size" in inspect.signature(trainer._do_train).parameters
    trainer._do_train(*[trainer.world_size] if wants_size else [])
    inner = trainer.model.module if hasattr(trainer.model, "module") else trainer.model
    digest = hashlib.md5()
    for p in inner.parameters():
        digest.update(p.detach().numpy().tobytes())
    blocks = [
        type(m).__name__ for m in inner.modules() if type(m).__module__.startswith("yolo_attn.")
    ]
    # One write with its end of line: print() writes the two apart where the output is unbuffered,
    # and the lines of two ranks then share one.
    sys.stdout.write(
        f"rank {dist.get_rank()} of {dist.get_world_size()} blocks {blocks} md5 "
        f"{digest.hexdigest()}\n"
    )
    sys.stdout.flush()
