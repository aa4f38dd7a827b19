"""``freeze=`` of a training run counts the layers of the base: the blocks in between stay free."""

from __future__ import annotations

from pathlib import Path
from types import FunctionType
from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.location import PROVENANCE


def setup_model(original: FunctionType, trainer: Any) -> Any:
    """``BaseTrainer.setup_model``; then ``freeze`` is translated for an overlay's model."""
    checkpoint = original(trainer)
    # The arguments of a run that is resumed have been translated when it began.
    if not getattr(trainer, "resume", False):
        _translate(trainer)
    return checkpoint


def _translate(trainer: Any) -> None:
    from ultralytics.utils import LOGGER

    model = getattr(trainer.model, "student_model", trainer.model)
    d = getattr(model, "yaml", None)
    provenance = d.get(PROVENANCE) if isinstance(d, dict) else None
    wanted = getattr(trainer.args, "freeze", None)
    if not isinstance(provenance, dict) or "rows" not in provenance:
        return  # no overlay
    if not isinstance(wanted, (int, list)):
        return
    rows = list(provenance["rows"])
    if len(rows) != len(model.model):
        return  # rows were edited by hand since
    layers = frozen_layers(wanted, rows, provenance.get("replaced") or (), str(provenance["base"]))
    if layers != (wanted if isinstance(wanted, list) else list(range(wanted))):
        LOGGER.info(
            f"freeze={wanted} counts the layers of {Path(str(provenance['base'])).name}: here "
            f"these are {layers}; blocks that the overlay added stay trainable"
        )
        trainer.args.freeze = layers


def frozen_layers(
    wanted: int | list[Any], rows: list[int], replaced: Any = (), base: str = "the base"
) -> list[Any]:
    """Layers of an overlay's model for ``freeze`` given in layers of its base.

    Args:
        wanted: The first so many layers, or a list of layers; names stay as they are.
        rows: For each layer its index in the base, -1 for an inserted one.
        replaced: Layers to which the overlay gave another module; they are new, so not frozen.
        base: Name of the base, for messages.

    Raises:
        YoloAttnError: The base has no such layer.
    """
    count = 1 + max(rows)
    here = {origin: i for i, origin in enumerate(rows) if origin >= 0 and i not in set(replaced)}
    if isinstance(wanted, int):
        return sorted(here[k] for k in range(min(wanted, count)) if k in here)
    layers: list[Any] = []
    for k in wanted:
        if not isinstance(k, int):
            layers.append(k)
        elif not 0 <= k < count:
            raise YoloAttnError(
                f"freeze={wanted}: {base} has no layer {k} (accepted: 0 to {count - 1}, counted in "
                "the base)"
            )
        elif k in here:
            layers.append(here[k])
    return layers
