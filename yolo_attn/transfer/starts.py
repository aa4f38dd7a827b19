"""Where new rows and head branches start: from the trained ones that they are copies of.

A level that an overlay adds brings stages of old levels and a branch of the head that no
checkpoint has. Tensors of equal shape are taken from the stage that the new one was copied from,
and from the branch of the nearest level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from yolo_attn.transfer.row_alignment import Alignment, Rows, is_per_level

CLASSES = ("cv3", "one2one_cv3")  # branches whose last bias is of the classes


@torch.no_grad()
def start_new(
    source: Any,
    model: Any,
    rows: Rows,
    own: Rows,
    pairs: Alignment,
    levels: Mapping[int, int],
) -> list[str]:
    """Fill what a transfer left new.

    Args:
        source: The model that weights came from.
        model: The model that has them now.
        rows: The source's rows.
        own: The model's rows.
        pairs: Which belong together.
        levels: Target level of the head -> source level.

    Returns:
        What was filled and from where, a line each.
    """
    found = []
    row_of = {origin: j for j, origin in enumerate(own.origin) if origin >= 0}
    for j, origin in sorted(own.starts.items()):
        i = pairs.source_of.get(row_of.get(origin, -1))
        if j in pairs.source_of or i is None:
            continue
        count, total = _copy(source.model[i].state_dict(), model.model[j])
        if count:
            found.append(
                f"layer {j} {own.rows[j].module} from layer {i}: {count} of {total} tensors"
            )
    if len(own) - 1 in pairs.source_of:
        found += _start_levels(model.model[-1], own.strides, levels)
    return found


def _copy(tensors: Mapping[str, Tensor], into: nn.Module) -> tuple[int, int]:
    """Copy tensors of equal name and shape; how many, of how many."""
    own = into.state_dict()
    fitting = [name for name, value in own.items() if _fits(tensors.get(name), value)]
    for name in fitting:
        own[name].copy_(tensors[name])
    return len(fitting), len(own)


def _fits(tensor: Tensor | None, into: Tensor) -> bool:
    return tensor is not None and tensor.shape == into.shape


def _start_levels(head: Any, strides: Any, levels: Mapping[int, int]) -> list[str]:
    """Branches of levels that the source does not have, from those of the nearest level."""
    new = [k for k in range(len(strides)) if k not in levels]
    if not new or not levels:
        return []
    names = list(head.state_dict())
    found = []
    for k in new:
        nearest = min(levels, key=lambda j: abs(math.log2(strides[j] / strides[k])))
        # A level twice as fine has four times as many cells, and each as many objects fewer.
        shift = 2 * math.log2(strides[nearest] / strides[k]) * math.log(2)
        count = total = 0
        for name, branches in head.named_children():
            if not isinstance(branches, nn.ModuleList):
                continue
            if not is_per_level(names, name, len(strides)):
                continue
            tensors, new_tensors = branches[nearest].state_dict(), branches[k].state_dict()
            copied, of = _copy(tensors, branches[k])
            count, total = count + copied, total + of
            bias = list(new_tensors)[-1]
            if name in CLASSES and _fits(tensors.get(bias), new_tensors[bias]):
                new_tensors[bias].sub_(shift)
        if count:
            found.append(
                f"the head's branch at stride {strides[k]:g} from that at {strides[nearest]:g}: "
                f"{count} of {total} tensors"
            )
    return found
