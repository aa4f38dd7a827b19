"""From an expanded spec to the loss of every box: overlap term, base, focusing, NWD mix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from yolo_attn.errors import YoloAttnError
from yolo_attn.losses import box, modifiers
from yolo_attn.losses.geometry import Pair, at_least_float32

PLAIN = {
    "iou": box.iou,
    "giou": box.giou,
    "diou": box.diou,
    "ciou": box.ciou,
    "eiou": box.eiou,
    "piou": box.piou,
    "wiou": box.wiou,
}


def keeps_mean(spec: dict[str, Any]) -> bool:
    """Whether the loss has a running mean."""
    return bool(spec.get("wise", {}).get("version", 1) > 1)


def box_losses(
    spec: dict[str, Any],
    pred: Tensor,
    target: Tensor,
    stride: Tensor | float = 1.0,
    imgsz: Any = None,
    mean: Tensor | float = 1.0,
    train: bool = True,
) -> tuple[Tensor, Tensor | float]:
    """Loss of every box, and the running mean after it.

    Args:
        spec: What options.expand returns.
        pred: (n, 4) float, x1 y1 x2 y2.
        target: (n, 4), the same.
        stride: Pixels in a unit of the boxes, one number or (n,).
        imgsz: (H, W) of the network's input in pixels; MPDIoU needs it.
        mean: The running mean before.
        train: Whether a loss with a running mean moves it; without gradient it never does.

    Returns:
        (n,), in float32 or float64; and the mean, which is `mean` itself if it did not move.

    Raises:
        YoloAttnError: MPDIoU without `imgsz`.
    """
    with torch.autocast(pred.device.type, enabled=False):
        pred, target = at_least_float32(pred), at_least_float32(target)
        dtype = torch.promote_types(pred.dtype, target.dtype)
        p = Pair(pred.to(dtype), target.to(dtype))
        s = _overlap(spec, p)
        loss = _base(spec, p, s, stride, imgsz)
        if "focal" in spec:
            loss = modifiers.focal_factor(p, spec["focal"]) * loss
        if keeps_mean(spec):
            quality = (1 - s).detach()
            now = torch.as_tensor(mean, dtype=dtype, device=s.device)
            if train and torch.is_grad_enabled() and len(quality):
                mean = now = modifiers.running_mean(now, quality, spec["wise"]["momentum"])
            loss = modifiers.wise_factor(quality, now, spec["wise"]) * loss
        if "nwd" in spec:
            loss = (1 - spec["nwd"]) * loss + spec["nwd"] * _gaussian(spec, p, stride)
        return loss, mean


def _overlap(spec: dict[str, Any], p: Pair) -> Tensor:
    if "inner" in spec:
        return modifiers.inner(p, spec["inner"])
    if "focaler" in spec:
        return modifiers.focaler(p, *spec["focaler"])
    return p.iou


def _base(spec: dict[str, Any], p: Pair, s: Tensor, stride: Tensor | float, imgsz: Any) -> Tensor:
    name = spec["box"]
    if "alpha" in spec:
        return modifiers.alpha(p, name, spec["alpha"])
    if name in PLAIN:
        return PLAIN[name](p, s)
    if name == "siou":
        return box.siou(p, s, spec.get("theta", 4.0))
    if name == "shapeiou":
        return box.shapeiou(p, s, spec["scale"])
    if name == "piou2":
        return box.piou2(p, s, spec["lambda"])
    if name == "mpdiou":
        return box.mpdiou(p, s, _diagonal2(stride, imgsz, like=s))
    return _gaussian(spec, p, stride)


def _diagonal2(stride: Tensor | float, imgsz: Any, like: Tensor) -> Tensor:
    if imgsz is None:
        raise YoloAttnError("loss mpdiou: imgsz=None (accepted: (H, W) of the network's input)")
    size = torch.as_tensor(imgsz, dtype=like.dtype, device=like.device)
    pixels = torch.as_tensor(stride, dtype=like.dtype, device=like.device)
    return size.square().sum() / pixels.square()


def _gaussian(spec: dict[str, Any], p: Pair, stride: Tensor | float) -> Tensor:
    pixels = torch.as_tensor(stride, dtype=p.iou.dtype, device=p.iou.device)
    return box.nwd(p, spec["nwd_c"], pixels if spec["nwd_units"] == "pixel" else 1.0)
