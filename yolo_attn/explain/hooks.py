"""Run a model on one letterboxed image and catch what each of our blocks reads and writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.registry import BlockInfo, find_block

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SEED = 0  # of the weights of a model that is given as YAML


@dataclass(frozen=True)
class Letterbox:
    """How an image was scaled and padded; points are (x, y), pixel i covers i to i + 1.

    Attributes:
        size: Width and height of the image in pixels.
        input_size: Width and height of what the model reads.
        scale: Input pixels for one image pixel, in x and in y (rounding makes them differ a bit).
        offset: Left and top border in input pixels.
    """

    size: tuple[int, int]
    input_size: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[int, int]

    def to_input(self, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Image points ``(n, 2)`` as points of the model's input."""
        return np.asarray(points, np.float64) * self.scale + self.offset

    def to_image(self, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Input points ``(n, 2)`` as points of the image."""
        return (np.asarray(points, np.float64) - self.offset) / self.scale


def letterbox(image: npt.NDArray, imgsz: int, stride: int = 32) -> tuple[Tensor, Letterbox]:
    """Scale and pad an image as ``yolo predict`` does.

    Args:
        image: ``(H, W, 3)`` uint8, blue first (as OpenCV reads it).
        imgsz: Longer side of the input.
        stride: Sides of the input are multiples of this.

    Returns:
        ``(1, 3, H', W')`` float32 from 0 to 1, red first; and how to get from one to the other.
    """
    from ultralytics.data.augment import LetterBox

    boxed: Any = LetterBox((imgsz, imgsz), auto=True, stride=stride)(image=image)
    height, width = image.shape[:2]
    ratio = min(imgsz / height, imgsz / width)
    inner = max(round(width * ratio), 1), max(round(height * ratio), 1)
    full = boxed.shape[1], boxed.shape[0]
    # Ultralytics' rounding: of an odd border, the smaller half is left and on top.
    left, top = (round((outside - inside) / 2 - 0.1) for outside, inside in zip(full, inner))
    x = torch.from_numpy(np.ascontiguousarray(boxed[..., ::-1])).permute(2, 0, 1)[None]
    view = Letterbox((width, height), full, (inner[0] / width, inner[1] / height), (left, top))
    return x.float() / 255, view


@dataclass
class Layer:
    """One of our blocks in a model, and what it read in the last run.

    Attributes:
        name: Its place and class, e.g. ``"5 NonLocal"``; ``"5.0 NonLocal"`` where a row repeats.
        block: The block; what `identity_start` wraps is taken out of the wrapper.
        info: What the registry knows of it.
        inputs: Input map ``(B, C, H, W)``, or a list of them.
        output: What it returned.
    """

    name: str
    block: Any
    info: BlockInfo
    inputs: Any = None
    output: Any = None

    @property
    def first(self) -> Tensor:
        """The (first) input map, on whose grid the queries are."""
        return self.inputs[0] if isinstance(self.inputs, (list, tuple)) else self.inputs

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of that map."""
        height, width = self.first.shape[2:]
        return height, width


@dataclass
class Subject:
    """A model to look into.

    Attributes:
        name: File that it comes from.
        model: The ``DetectionModel``, in eval mode, float32, without gradients for its weights.
        layers: Its blocks, in order.
        imgsz: Image size that it was trained with, 640 for an untrained one.
        stride: Its largest stride, at least 32.
    """

    name: str
    model: Any
    layers: list[Layer] = field(default_factory=list)
    imgsz: int = 640
    stride: int = 32


def load(path: str | Path) -> Subject:
    """Load a checkpoint, or build a YAML's model with the weights of seed 0.

    Raises:
        YoloAttnError: There is no such model, or it is none for detection in colour.
    """
    from ultralytics import YOLO

    name = str(path)
    if not name.endswith((".pt", ".yaml", ".yml")):
        raise YoloAttnError(f"{name}: expected a checkpoint (.pt) or a model YAML")
    if name.endswith(".pt") and not Path(name).is_file():
        raise YoloAttnError(f"{name}: no such checkpoint")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            model: Any = YOLO(name, verbose=False).model
        except FileNotFoundError as error:
            raise YoloAttnError(f"{name}: no such model, neither here nor in the zoo") from error
    return subject(model, name)


def subject(model: Any, name: str = "model") -> Subject:
    """Prepare a model that is already in memory; it is switched to eval mode and float32.

    Raises:
        YoloAttnError: It does not read images with three channels.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "stride"):
        raise YoloAttnError(f"{name}: no detection model of Ultralytics")
    channels = getattr(model, "yaml", {}).get("channels", getattr(model, "yaml", {}).get("ch", 3))
    if channels != 3:
        raise YoloAttnError(f"{name}: reads {channels} channels; only images with three are shown")
    model = model.float().eval().requires_grad_(False)
    args = getattr(model, "args", None) or {}
    imgsz = args.get("imgsz", 640) if isinstance(args, dict) else getattr(args, "imgsz", 640)
    imgsz = max(imgsz) if isinstance(imgsz, (list, tuple)) else int(imgsz)
    return Subject(name, model, find_layers(model), imgsz, max(int(model.stride.max()), 32))


def find_layers(model: nn.Module) -> list[Layer]:
    """Our blocks in a model (and a user's own registered ones) that are not inside another one."""
    found: dict[str, Layer] = {}
    for name, module in model.named_modules():
        info = find_block(type(module).__name__)
        if info is None or info.cls is not type(module) or info.layer:
            continue
        if not any(name.startswith(f"{outer}.") for outer in found):
            place = name.replace("model.", "", 1).replace(".block", "")
            found[name] = Layer(f"{place} {info.name}".strip(), module, info)
    return list(found.values())


def pick(layers: Sequence[Layer], wanted: str | None) -> list[Layer]:
    """The layers whose row, class or full name is `wanted`; all without it.

    Raises:
        YoloAttnError: None is.
    """
    if not layers:
        raise YoloAttnError("the model has none of the registered blocks (`yolo-attn blocks`)")
    if wanted is None:
        return list(layers)
    info = find_block(wanted)
    key = info.name if info else wanted
    chosen = [la for la in layers if key in (la.name, la.info.name, la.name.split()[0])]
    if not chosen:
        names = [la.name for la in layers]
        raise YoloAttnError(
            f"--layer {wanted!r}: no such block in the model{did_you_mean(wanted, names)} (it has "
            f"{', '.join(names)})"
        )
    return chosen


@contextmanager
def catching(layers: Sequence[Layer]) -> Iterator[None]:
    """Within it, a run of the model leaves each layer's inputs and output in it."""

    def keep(layer: Layer) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            layer.inputs, layer.output = args[0], output

        return hook

    handles = [layer.block.register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(subject: Subject, x: Tensor, layers: Sequence[Layer] | None = None) -> None:
    """Run the model on ``(B, 3, H, W)`` and catch what its blocks read."""
    with catching(subject.layers if layers is None else layers), torch.no_grad():
        subject.model(x)


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """``(H, W, 3)``, blue first.

    Raises:
        YoloAttnError: There is no such file, or it is no image.
    """
    import cv2

    path = Path(path)
    if not path.is_file():
        raise YoloAttnError(f"{path}: no such image")
    data = np.fromfile(path, np.uint8)
    image: Any = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if image is None:
        raise YoloAttnError(f"{path}: cannot be read as an image")
    return image


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """The images of files and folders, folders in order of name.

    Raises:
        YoloAttnError: A path does not exist, or a folder has no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise YoloAttnError(f"{path}: a folder without images")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise YoloAttnError(f"{path}: no such image or folder")
    return found
