"""Fusions with a weight for each map."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.golden_harness import Case, Golden
from yolo_attn import create


def _concat(config: dict[str, Any], golden: Golden) -> nn.Module:
    args = config["args"]
    channels = [golden.arrays[f"x{i}"].shape[1] for i in range(args["n"])]
    return create("WeightedConcat", channels, scale="sum", relu=args["relu"])


CASES = {"bifpn_yolo_concat": Case(_concat, names={"weight": "w"})}
