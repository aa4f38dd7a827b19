"""``YOLO("mine.yaml")``: when a model with our blocks cannot be built, say which row is at fault.

A model's first forward pass is in Ultralytics' constructors, far from the rows.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.host import foreign


def new_model(original: FunctionType, model: Any, cfg: Any, *args: Any, **kwargs: Any) -> Any:
    """Ultralytics' ``Model._new``; errors of models that are not ours pass through untouched."""
    try:
        return original(model, cfg, *args, **kwargs)
    except YoloAttnError:
        raise
    except Exception as error:
        if foreign():
            raise  # of our rows the parser has spoken
        from ultralytics.nn import tasks

        from yolo_attn.overlay import dry_run
        from yolo_attn.overlay.model_checks import names_ours

        try:
            d = tasks.yaml_model_load(cfg)
        except Exception:
            raise error from None
        if not names_ours(d):
            raise
        try:
            dry_run.run(d)
        except YoloAttnError as located:
            raise located from error
        raise YoloAttnError(f"{cfg}: cannot be built ({dry_run.one_line(error)})") from error
