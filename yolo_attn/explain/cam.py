"""Class-activation maps, drawn by the `grad-cam` package if it is installed.

Selvaraju et al.: Grad-CAM, ICCV 2017, arXiv 1610.02391; https://github.com/jacobgil/pytorch-grad-cam
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from yolo_attn.errors import YoloAttnError
from yolo_attn.explain.hooks import Subject, letterbox

BEST = 10  # the target is the sum of this many highest class scores of the image


def class_activation(
    subject: Subject, image: npt.NDArray[np.uint8], imgsz: int | None = None
) -> npt.NDArray[np.float64]:
    """Grad-CAM of the layers that the detection head reads, mean over them.

    Args:
        subject: The model.
        image: ``(H, W, 3)`` uint8, blue first.
        imgsz: Longer side of the model's input; what it was trained with by default.

    Returns:
        ``(H, W)`` from 0 to 1, a value for each pixel of the image.

    Raises:
        YoloAttnError: `grad-cam` is not installed.
    """
    grad_cam = _grad_cam()
    import cv2

    x, view = letterbox(image, imgsz or subject.imgsz, subject.stride)
    head = subject.model.model[-1]
    sources = head.f if isinstance(head.f, (list, tuple)) else [head.f]
    layers = [subject.model.model[i] for i in sources]
    with grad_cam(model=_Scores(subject.model), target_layers=layers) as cam:
        whole = cam(input_tensor=x.requires_grad_(True), targets=[_best])[0]
    left, top = view.offset
    inner = round(view.size[0] * view.scale[0]), round(view.size[1] * view.scale[1])
    inside = whole[top : top + inner[1], left : left + inner[0]].astype(np.float64)
    return cv2.resize(inside, view.size, interpolation=cv2.INTER_LINEAR)


def _grad_cam() -> type:
    try:
        from pytorch_grad_cam import GradCAM
    except ImportError as error:
        raise YoloAttnError(
            "--cam needs the grad-cam package: pip install grad-cam, or leave out --cam"
        ) from error
    return GradCAM


class _Scores(nn.Module):
    """The class scores ``(B, n, classes)`` of a detection model."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.names = model, model.names

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        out = out[0] if isinstance(out, (list, tuple)) else out
        classes = len(self.names)
        if out.shape[1] == 4 + classes:
            return out[:, 4:].transpose(1, 2)
        return out[..., 4:5]  # heads without NMS return (box, score, class)


def _best(scores: Tensor) -> Tensor:
    """Sum of the highest scores of one image ``(n, classes)``."""
    flat = scores.flatten()
    return torch.topk(flat, min(BEST, len(flat))).values.sum()
