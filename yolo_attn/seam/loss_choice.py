"""The key ``loss`` of a model YAML: read, checked against the model's head, told to the user.

The YAML is the only carrier: it is stored in every checkpoint, and resuming, a further training
and DDP's workers read it there.
"""

from __future__ import annotations

import os
from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.losses.described import describe
from yolo_attn.losses.options import Expanded, expand

KEY = "loss"
STATE = "loss_state"  # running numbers, beside the key
ENV = "YOLO_ATTN_LOSS"
STOCK = " (Ultralytics' own code)"


def read(d: Any) -> Expanded | None:
    """The loss that a model dictionary names; None if it names none.

    Raises:
        YoloAttnError: It is refused; names the file.
    """
    if not isinstance(d, dict) or KEY not in d:
        return None
    try:
        return expand(d[KEY])
    except YoloAttnError as error:
        raise YoloAttnError(f"{d.get('yaml_file') or 'model'} {error}") from None


def from_environment() -> Any:
    """The value of ``YOLO_ATTN_LOSS``, which DDP's workers inherit; None if it is not set.

    Raises:
        YoloAttnError: It is not YAML.
    """
    import yaml

    text = os.environ.get(ENV, "").strip()
    if not text:
        return None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise YoloAttnError(
            f"{ENV}={text!r} is not YAML (accepted: a name such as wiou, or a mapping in braces)"
        ) from None


def check_loss(d: Any) -> None:
    """Refuse, when a model is built, a loss that is none or that its head would not train.

    Raises:
        YoloAttnError: Names the file and the head.
    """
    expanded = read(d)
    if expanded is None or (expanded.stock_box and expanded.stock_class):
        return
    head = str(d["head"][-1][2]) if d.get("head") else ""
    boxes, classes = trained_by(head)
    slides = "mu" in expanded.spec.get("cls", {})  # by the IoU of upright boxes
    for part, stock, known in (
        ("box", expanded.stock_box, boxes),
        ("cls", expanded.stock_class, boxes if slides else classes),
    ):
        if not stock and not known:
            raise YoloAttnError(
                f"{d.get('yaml_file') or 'model'} loss {part}: a model with the head {head} does "
                f"not train with this part of Ultralytics' loss for upright boxes (accepted: "
                f"Detect, Segment, Pose, v10Detect, WorldDetect ...; or no {part} there)"
            )


def trained_by(head: str) -> tuple[bool, bool]:
    """Whether the box loss and the class loss of a head are those that can be chosen."""
    from ultralytics.nn import tasks
    from ultralytics.nn.modules.head import OBB, Detect

    found = vars(tasks).get(head)
    if not isinstance(found, type) or not issubclass(found, Detect):
        return False, False
    return not issubclass(found, OBB), True


def loss_lines(d: dict[str, Any]) -> list[str]:
    """What a model dictionary's loss is, and what should be known of it; nothing without one."""
    expanded = read(d)
    return [] if expanded is None else lines_of(expanded)


def lines_of(expanded: Expanded) -> list[str]:
    """The same of an expanded loss."""
    stock = STOCK if expanded.stock_box and expanded.stock_class else ""
    said = [f"loss: {describe(expanded.spec)}{stock}"]
    if expanded.spec["box"] == "mpdiou":
        said.append(
            "loss: mpdiou's distance term nearly vanishes for objects that are small against the "
            "image"
        )
    return [*said, *(f"warning: {text}" for text in expanded.warnings)]
