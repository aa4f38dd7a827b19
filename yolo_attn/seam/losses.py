"""Auxiliary losses: blocks with a loss of their own add it to the model's.

A block takes part if it has a method ``aux_loss(batch)`` that returns a scalar (a mean over the
images) or None, and no attribute ``has_aux_loss`` that is false. The sum is one more column,
``aux_loss``, of the progress table and of results.csv.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from yolo_attn.registry import any_own_loss, has_own_loss

COLUMN = "aux_loss"


def blocks_with_loss(model: nn.Module) -> list[Any]:
    """The blocks of a model that have an auxiliary loss."""
    # Only classes of ours: a stock module may have an attribute of that name, too.
    return [m for m in model.modules() if has_own_loss(m)]


def loss(original: FunctionType, model: nn.Module, batch: dict[str, Any], preds: Any = None) -> Any:
    """Ultralytics' ``loss(batch, preds)`` with the blocks' own added; else untouched."""
    # A process without such a block does not walk the model's modules at every step.
    blocks = blocks_with_loss(model) if any_own_loss() else []
    result = original(model, batch, preds)
    if not blocks:
        return result
    total, items = result
    image = batch["img"]
    own = [block.aux_loss(batch) for block in blocks]
    aux: Tensor = sum(
        (value.float() for value in own if value is not None),
        torch.zeros((), device=image.device),
    )
    return _added(total, aux * image.shape[0]), _with_column(items, aux.detach())


def _added(total: Tensor, aux: Tensor) -> Tensor:
    """Totals are one number, or one a component, summed by the trainer."""
    return total + aux if total.ndim == 0 else torch.cat([total, aux[None].to(total)])


def _with_column(items: Any, aux: Tensor) -> Any:
    # A dict from 8.4.104 on, a vector whose names the trainer knows before.
    return {**items, COLUMN: aux} if isinstance(items, dict) else torch.cat([items, aux[None]])


def setup_train(original: FunctionType, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """``BaseTrainer._setup_train``; names our column where names are fixed in advance."""
    result = original(trainer, *args, **kwargs)
    names = tuple(trainer.loss_names)
    if names and COLUMN not in names and blocks_with_loss(trainer.model):
        trainer.loss_names = (*names, COLUMN)
    return result
