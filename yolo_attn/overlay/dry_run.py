"""A model built and run without storage: shapes of every layer, and errors before any training."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.location import Location
from yolo_attn.overlay.model_checks import check_model
from yolo_attn.overlay.modules import check_modules

# Rows of YOLO-World (v1 and v2), which reads class names besides an image.
GUIDED_BY_TEXT = {"C2fAttn"}
CHANGES_TEXT = {"ImagePoolingAttn"}
TEXT_WIDTH = 512
HEADS_WITHOUT_TASK = {"RTDETRDecoder"}
SIDE = 256  # of the square image that is run; every stride up to 128 divides it


def load_model_yaml(name: str) -> dict[str, Any]:
    """Load a model YAML as the ``yolo`` command does (overlays expanded, zoo names found).

    Raises:
        YoloAttnError: It does not exist or is at fault.
    """
    from ultralytics.nn import tasks

    try:
        d = tasks.yaml_model_load(name)
    except FileNotFoundError:
        from yolo_attn.errors import did_you_mean
        from yolo_attn.overlay.model_files import model_names

        raise YoloAttnError(
            f"{name}: no such file{did_you_mean(Path(name).name, model_names()) or ','} neither "
            "here nor in "
            "the zoo (`yolo-attn zoo`) nor among Ultralytics' models"
        ) from None
    except YoloAttnError:
        raise
    except Exception as error:
        raise YoloAttnError(f"{name}: cannot be read as a model YAML ({one_line(error)})") from None
    if not isinstance(d, dict) or not all(
        isinstance(d.get(k), list) and d[k] for k in ("backbone", "head")
    ):
        raise YoloAttnError(f"{name}: not a model YAML (it has no backbone and head lists)")
    return d


def scales_of(d: dict[str, Any]) -> list[str]:
    """Scale letters that a model has; [""] if it is not scaled."""
    scales = d.get("scales")
    return [str(s) for s in scales] if isinstance(scales, dict) and scales else [""]


def run(
    d: dict[str, Any], scale: str | None = None, side: int = SIDE
) -> tuple[torch.nn.Sequential, list[Any]]:
    """Build a model on the meta device and run every layer but the head.

    Args:
        d: A plain model dictionary.
        scale: Scale letter; by default the dictionary's own, else the first.
        side: Side of the image.

    Returns:
        The layers, and the output of each but the last (maps of that image, without data).

    Raises:
        YoloAttnError: A row cannot be built, or does not fit what it reads; names file and row.
    """
    from ultralytics.nn import tasks

    where = Location(d)
    check_model(d, where)
    check_modules(d, where)
    if not _is_head(d["head"][-1][2], tasks.guess_model_task(d)):
        last = len(d["backbone"]) + len(d["head"]) - 1
        raise YoloAttnError(
            f"{where.of_layer(last)}: the last row is {d['head'][-1][2]}, which is no head "
            "(accepted: Detect, Segment, Pose, OBB, Classify, RTDETRDecoder ...)"
        )
    d = deepcopy(d)
    if isinstance(d.get("scales"), dict) and d["scales"]:
        if scale or d.get("scale") not in d["scales"]:
            d["scale"] = scale or next(iter(d["scales"]))
    channels = d.get("channels", d.get("ch", 3))
    # No storage and no random numbers: a model that is built afterwards starts as if this had not
    # run.
    with torch.device("meta"), torch.no_grad():
        try:
            model, _ = tasks.parse_model(d, channels, False)
        except YoloAttnError:
            raise
        except Exception as error:
            raise YoloAttnError(f"{where.file}: cannot be built ({one_line(error)})") from error
        model.eval()
        for module in model.modules():
            if type(module) is torch.nn.BatchNorm2d:
                # Without data it costs more than all else together, and it changes no shape.
                module.forward = _unchanged  # type: ignore[method-assign, assignment]  # an instance's own
        x: Any = torch.empty(1, channels, side, side)
        text = torch.empty(1, int(d.get("nc") or 80), TEXT_WIDTH)
        outputs: list[Any] = []
        for layer in list(model)[:-1]:
            if layer.f != -1:
                f = layer.f
                x = outputs[f] if isinstance(f, int) else [x if j == -1 else outputs[j] for j in f]
            try:
                x, text = _through(layer, x, text)
            except Exception as error:
                name = str(layer.type).rsplit(".", 1)[-1]
                raise YoloAttnError(
                    f"{where.of_layer(layer.i)}: {name} does not fit what it reads from {layer.f} "
                    f"({one_line(error)})"
                ) from error
            for part in x if isinstance(x, (list, tuple)) else [x]:
                # On the meta device that passes; in the real model convolutions refuse it.
                if isinstance(part, torch.Tensor) and not part.numel():
                    raise YoloAttnError(
                        f"{where.of_layer(layer.i)}: gives an empty map {tuple(part.shape)} for an "
                        f"image of {side} x {side} (accepted: at least one channel and position)"
                    )
            outputs.append(x)
    return model, outputs


def _is_head(name: str, task: str | None) -> bool:
    """Whether a model may end in this row; Ultralytics guesses no task of an RT-DETR's."""
    return task is not None or name in HEADS_WITHOUT_TASK


def _through(layer: Any, x: Any, text: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """One layer's output, and the text features after it, as YOLO-World's own forward pass has it.

    Args:
        layer: A row of a model.
        x: What it reads.
        text: Features of the classes' names: (1, classes, 512).
    """
    kind = type(layer).__name__
    if kind in GUIDED_BY_TEXT:
        return layer(x, text), text
    if kind in CHANGES_TEXT:
        return x, layer(x, text)
    return layer(x), text


def _unchanged(x: torch.Tensor) -> torch.Tensor:
    return x


def one_line(error: BaseException) -> str:
    """``TypeError: what it says``, without line breaks and not too long."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
