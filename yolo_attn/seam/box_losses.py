"""The chosen box and class loss in Ultralytics' criteria; without the key ``loss``, stock code.

All of detection, segmentation, pose, World, YOLOE, v10 and 26 go through two functions:
``v8DetectionLoss.__init__`` reads the choice and leaves plain data on its box loss, and
``BboxLoss.forward`` computes by it. The assigner keeps CIoU, as in all papers. What is pickled with
a criterion (checkpoints up to 8.4.60) is plain data and stock classes, and loads without us.
"""

from __future__ import annotations

from copy import deepcopy
from types import FunctionType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from yolo_attn.losses.classification import advanced, class_losses
from yolo_attn.losses.combined import box_losses, keeps_mean
from yolo_attn.losses.options import STOCK, Expanded
from yolo_attn.seam import loss_state
from yolo_attn.seam.loss_choice import KEY, check_loss, from_environment, lines_of, read

CHOICE = "yolo_attn_loss"  # of a BboxLoss: {"spec", "strides", "state"}
_TOLD: WeakSet[nn.Module] = WeakSet()


def init(
    original: FunctionType, criterion: Any, model: Any, tal_topk: int = 10, *more: Any, **named: Any
) -> None:
    """``v8DetectionLoss.__init__``, then the model's choice.

    Raises:
        YoloAttnError: The choice is refused.
    """
    original(criterion, model, tal_topk, *more, **named)
    expanded = _choice(model)
    if expanded is None:
        return
    # A choice that did not come through a YAML was not checked at build.
    check_loss(model.yaml)
    _tell(model, expanded)
    if expanded.stock_box and expanded.stock_class:
        return
    state = loss_state.state_of(model, str(tal_topk), expanded.spec)
    criterion.bbox_loss.__dict__[CHOICE] = {
        "spec": expanded.spec,
        "strides": [float(s) for s in criterion.stride],
        "state": state,
    }
    if not expanded.stock_class:
        criterion.bce = ClassCriterion(criterion.bbox_loss)


def _choice(model: Any) -> Expanded | None:
    d = getattr(model, "yaml", None)
    if not isinstance(d, dict):
        return None
    wanted = from_environment()
    if wanted is not None:
        # Into the YAML: that is what reaches the checkpoint.
        model.yaml = d = {**d, KEY: wanted}
    return read(d)


def _tell(model: nn.Module, expanded: Expanded) -> None:
    """One line, once a training, on the first process."""
    from ultralytics.utils import LOGGER, RANK

    if torch.is_grad_enabled() and RANK in (-1, 0) and model not in _TOLD:
        _TOLD.add(model)
        for line in lines_of(expanded):
            LOGGER.info(f"yolo_attn {line}")


def forward(original: FunctionType, module: nn.Module, *args: Any) -> tuple[Tensor, Tensor]:
    """``BboxLoss.forward``: the stock result, with the chosen box loss in place of CIoU's sum."""
    result: tuple[Tensor, Tensor] = original(module, *args)
    choice = module.__dict__.get(CHOICE)
    if choice is None:
        return result
    # The first seven have been the same in all versions; 8.4.0 added the image size and strides.
    _, pred, anchors, target, scores, scores_sum, mask = args[:7]
    spec, state = choice["spec"], choice["state"]
    foreground = mask.nonzero(as_tuple=True)  # once: a mask waits for the device at each use
    boxes, targets = pred[foreground], target[foreground]
    if "mu" in state and len(boxes) and torch.is_grad_enabled():
        _take_mean_iou(module, spec["cls"], state, boxes, targets)
    if {k: v for k, v in spec.items() if k != "cls"} == STOCK:
        return result
    stride: Tensor | float = 1.0
    imgsz: Any = None
    if spec["box"] in ("mpdiou", "nwd") or "nwd" in spec:
        of_anchors, imgsz = (args[8], args[7]) if len(args) > 8 else _sizes(anchors, choice)
        stride = of_anchors.reshape(-1)[foreground[1]]
    mean = loss_state.get(module, state, "mean") if keeps_mean(spec) else 1.0
    losses, after = box_losses(spec, boxes, targets, stride, imgsz, mean)
    if after is not mean:
        loss_state.put(module, state, "mean", after)
    weight = scores[foreground].sum(-1)
    return (losses * weight).sum() / scores_sum, result[1]


def _take_mean_iou(
    module: nn.Module,
    cls: dict[str, Any],
    state: dict[str, float],
    boxes: Tensor,
    targets: Tensor,
) -> None:
    """Mean CIoU of the positives, for the class loss of the next step."""
    with torch.no_grad():
        mean = 1 - box_losses(STOCK, boxes, targets)[0].mean()
    if "updates" in state:
        state["updates"] += 1
        before = loss_state.get(module, state, "mu")
        mean = advanced(before, int(state["updates"]), mean, cls["decay"], cls["tau"])
    loss_state.put(module, state, "mu", mean)


def _sizes(anchors: Tensor, choice: dict[str, Any]) -> tuple[Tensor, tuple[float, float]]:
    """Stride of every anchor and (H, W) of the image, from the anchors themselves (8.3.x).

    Every level begins at (0.5, 0.5), which every dtype holds exactly; a largest coordinate, such as
    159.5, bfloat16 would not.
    """
    strides = torch.tensor(choice["strides"], device=anchors.device)
    level = (anchors == 0.5).all(1).cumsum(0) - 1
    first = level == 0
    width = int((first & (anchors[:, 1] == 0.5)).sum())
    height = int(first.sum()) // width
    return strides[level], (height * choice["strides"][0], width * choice["strides"][0])


class ClassCriterion(nn.BCEWithLogitsLoss):
    """The chosen class loss, unreduced, in the place of a criterion's ``bce``.

    Pickled as the stock class: a checkpoint that holds a criterion loads without us.
    """

    def __init__(self, box: nn.Module):
        super().__init__(reduction="none")
        self.__dict__["box"] = box  # not a submodule: the criterion has it already

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Loss of every anchor and class."""
        choice = self.__dict__["box"].__dict__[CHOICE]
        slides = "mu" in choice["state"]
        mu = loss_state.get(self.__dict__["box"], choice["state"], "mu") if slides else 1.0
        return class_losses(choice["spec"]["cls"], input, target, mu)

    def __reduce__(self) -> Any:
        return nn.BCEWithLogitsLoss, (None, None, None, "none")

    def __deepcopy__(self, memo: dict[int, Any]) -> ClassCriterion:
        return ClassCriterion(deepcopy(self.__dict__["box"], memo))
