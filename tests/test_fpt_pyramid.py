"""The whole pyramid of FPT as a model: all three interactions over all levels, the base kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.transfer_harness import detection, distinct, equal
from yolo_attn import create
from yolo_attn.blocks.fpt_ground import FPTGround
from yolo_attn.blocks.fpt_render import FPTRender
from yolo_attn.blocks.fpt_self import FPTSelf
from yolo_attn.blocks.identity_start import IdentityStart
from yolo_attn.overlay.dry_run import load_model_yaml

each_family = pytest.mark.parametrize("family", ["yolov5n", "yolov8n"])


def test_fuse_is_one_convolution_of_all_maps_together() -> None:
    block = create("FPTFuse", [6, 4, 8])
    nn.init.normal_(block.conv.bias)
    xs = [torch.randn(2, c, 5, 7) for c in (6, 4, 8)]
    parts = zip(xs, block.conv.weight.split([6, 4, 8], dim=1))
    expected = sum(F.conv2d(x, w, padding=1) for x, w in parts) + block.conv.bias[:, None, None]
    torch.testing.assert_close(block(xs), expected)


def sources(d: dict[str, Any]) -> list[tuple[str, list[int]]]:
    """Module and sources, as row indices, of each row."""
    found = []
    for i, (f, _, module, _) in enumerate([*d["backbone"], *d["head"]]):
        listed = f if isinstance(f, list) else [f]
        found.append((module, [s if s >= 0 else i + s for s in listed]))
    return found


@each_family
def test_each_level_reads_itself_every_coarser_and_every_finer_one(family: str) -> None:
    d = load_model_yaml(f"{family}-fpt.yaml")
    rows, origin = sources(d), d["yolo_attn"]["rows"]
    taps = {"P3": 4, "P4": 6, "P5": 9}
    level = {origin.index(i): tap for tap, i in taps.items()}
    fuses = {level[reads[0]]: reads for module, reads in rows if module == "FPTFuse"}
    assert fuses.keys() == taps.keys()
    for tap, (_, *branches) in fuses.items():
        made = [(rows[b][0], [level[s] for s in rows[b][1]]) for b in branches]
        wanted = [("FPTSelf", [tap])]
        wanted += [("FPTGround", [tap, other]) for other in taps if other > tap]
        wanted += [("FPTRender", [tap, other]) for other in taps if other < tap]
        assert sorted(made) == sorted(wanted)
    # The neck reads the fused levels and none of the backbone's own.
    head = [s for _, reads in rows[len(d["backbone"]) :] for s in reads]
    fused = {i for i, (module, _) in enumerate(rows) if module == "FPTFuse"}
    assert {s for s in head if s < len(d["backbone"])} == fused


@each_family
def test_every_tensor_of_the_base_is_kept_and_every_branch_learns(family: str) -> None:
    base, model = distinct(family), detection(f"{family}-fpt.yaml")
    model.load(base)
    origin = model.yaml["yolo_attn"]["rows"]
    kept = [equal(base.model[i], model.model[j]) for j, i in enumerate(origin) if i >= 0]
    assert len(kept) == len(base.model) and all(kept)

    torch.manual_seed(0)
    fresh = detection(f"{family}-fpt.yaml").train()
    with torch.no_grad():
        for module in fresh.modules():
            if isinstance(module, IdentityStart):  # one step later
                module.g.fill_(0.1)
            if isinstance(module, FPTGround):  # its norm starts at zero
                module.norm.weight.fill_(1.0)
    sum(y.float().pow(2).sum() for y in tensors(fresh(torch.rand(2, 3, 128, 160)))).backward()
    branches = [m for m in fresh.modules() if isinstance(m, (FPTSelf, FPTGround, FPTRender))]
    assert len(branches) == 9
    for branch in branches:
        for name, p in branch.named_parameters():
            assert p.grad is not None and p.grad.abs().sum() > 0, f"{type(branch).__name__} {name}"


def tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [t for part in parts for t in tensors(part)]
