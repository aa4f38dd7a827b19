"""Box and class losses of the literature, by the value of the YAML key ``loss``.

```python
loss = box_loss("inner-ciou")        # or {"box": "ciou", "inner": 0.7}
loss(pred, target).sum().backward()  # corners (n, 4) -> (n,)
```
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from yolo_attn.losses.class_options import expand_class
from yolo_attn.losses.classification import advanced, class_losses
from yolo_attn.losses.combined import box_losses
from yolo_attn.losses.options import expand

__all__ = ["BoxLoss", "ClassLoss", "box_loss", "class_loss"]


def box_loss(spec: Any) -> BoxLoss:
    """A box loss from the value of the YAML key ``loss`` (its class part is checked, not used).

    Raises:
        YoloAttnError: The value is refused; says why.
    """
    expanded = expand(spec)
    for text in expanded.warnings:
        warnings.warn(text, stacklevel=2)
    return BoxLoss(expanded.spec)


def class_loss(spec: Any) -> ClassLoss:
    """A class loss from a name or ``{cls: name, option: number, ...}``.

    Raises:
        YoloAttnError: It is refused; says why.
    """
    expanded, texts = expand_class(spec, "class loss")
    for text in texts:
        warnings.warn(text, stacklevel=2)
    return ClassLoss(expanded)


class BoxLoss:
    """Loss of every box; made by :func:`box_loss`.

    Attributes:
        spec: The loss with all defaults written out.
    """

    def __init__(self, spec: dict[str, Any]):
        self.spec = spec
        self._mean: Tensor | float = 1.0

    @property
    def state(self) -> float:
        """Running mean of ``1 - S`` (WIoU version 2 and 3); starts at 1, can be set."""
        return float(self._mean)

    @state.setter
    def state(self, value: float) -> None:
        self._mean = float(value)

    def __call__(
        self,
        pred: Tensor,
        target: Tensor,
        stride: Tensor | float = 1.0,
        imgsz: Any = None,
        train: bool = True,
    ) -> Tensor:
        """The loss, (n,), in float32 or float64.

        Args:
            pred: (n, 4) float, x1 y1 x2 y2.
            target: (n, 4), the same.
            stride: Pixels in a unit of the boxes, one number or (n,): MPDIoU and NWD need it.
            imgsz: (H, W) of the network's input in pixels: MPDIoU needs it.
            train: Whether the running mean moves; without gradient it never does.
        """
        loss, self._mean = box_losses(self.spec, pred, target, stride, imgsz, self._mean, train)
        return loss


class ClassLoss:
    """Unreduced class loss; made by :func:`class_loss`.

    ``state`` is the mean IoU mu that slide and ema_slide compare targets with. A training by the
    YAML key takes the mean CIoU of the positives of the *previous* batch: the class loss runs
    before the boxes are compared.

    Attributes:
        spec: The loss with all defaults written out.
        state: mu; starts at the option ``mu`` (1), can be set.
    """

    def __init__(self, spec: dict[str, Any]):
        self.spec = spec
        self.state: float = spec.get("mu", 1.0)
        self.updates = 0

    def update(self, mean_iou: float) -> None:
        """Take in a batch's mean IoU: ema_slide moves towards it, slide takes it as it is."""
        self.updates += 1
        if self.spec["cls"] == "ema_slide":
            decay, tau = self.spec["decay"], self.spec["tau"]
            self.state = advanced(self.state, self.updates, float(mean_iou), decay, tau)
        else:
            self.state = float(mean_iou)

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss, of the shape of `logits`; targets are soft, in [0, 1]."""
        return class_losses(self.spec, logits, target, self.state)
