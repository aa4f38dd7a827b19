"""After `yolo train` of a model with our blocks: a small table that says whether they are used.

Measured with the weights that best.pt holds, on a few validation images. Nothing of the training
is touched: it has ended, and another copy of the model is run.
"""

from __future__ import annotations

from copy import deepcopy
from types import FunctionType
from typing import Any

from torch import nn

SECONDS = 2.0  # no further image after them: large models on a CPU


def on_train_end(original: FunctionType, trainer: Any) -> None:
    """The default callback ``on_train_end``, which Ultralytics runs on rank 0 alone."""
    original(trainer)
    from ultralytics.utils import LOGGER

    try:
        for line in _lines(trainer):
            LOGGER.info(line)
    except Exception as error:  # a training that is done must not fail for a table
        text = " ".join(str(error).split())
        LOGGER.warning(f"yolo_attn: no table of the blocks' use ({type(error).__name__}: {text})")


def _lines(trainer: Any) -> list[str]:
    from yolo_attn.explain import use
    from yolo_attn.explain.hooks import subject
    from yolo_attn.explain.use_table import table

    if not use.block_rows(_plain(trainer.model)):
        return []
    name, model = _best(trainer)
    found = subject(model.to(trainer.device), name)
    images = use.spread(_validation_images(trainer.test_loader.dataset))
    blocks, count = use.measure(found, images, seconds=SECONDS)
    of = f"{count} validation image{'s' if count != 1 else ''}"
    return [f"Blocks of {name}:", *table(blocks, of)]


def _plain(model: Any) -> nn.Module:
    """The model inside of what trains it: DDP, distillation."""
    model = getattr(model, "module", model)
    return getattr(model, "student_model", model)


def _best(trainer: Any) -> tuple[str, nn.Module]:
    """A fresh model with the weights that the training ends with; with save=False the EMA's."""
    from ultralytics import YOLO

    for file in (trainer.best, trainer.last):
        if file.is_file():
            model: Any = YOLO(str(file)).model
            return file.name, model
    return "the averaged weights", deepcopy(_plain(trainer.ema.ema))


def _validation_images(dataset: Any) -> list[str]:
    """Files of any of Ultralytics' data sets; those for classification hold (file, class, ...)."""
    if hasattr(dataset, "im_files"):
        return [str(file) for file in dataset.im_files]
    return [str(sample[0]) for sample in dataset.samples]
