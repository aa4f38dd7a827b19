"""What each block shows for points of an image: affinity rows, gates, channel and level weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from yolo_attn.errors import YoloAttnError
from yolo_attn.explain.hooks import Layer, Letterbox, Subject, letterbox, run

Extent = tuple[float, float, float, float]
Floats = npt.NDArray[np.float64]
Points = Sequence[Sequence[float]]

ROWS, MAP, BARS, MATRIX = "rows", "map", "bars", "matrix"
# What a block may offer besides `attention`: method -> how it is drawn, title, names of the series.
OTHERS = {
    "gate_map": (MAP, "gate, mean of the channels", ("gate",)),
    "selection": (MAP, "share of the two fields", ("small field", "large field")),
    "level_weights": (MAP, "weight of the input", ()),
    "channel_weights": (BARS, "gate of each channel", ("gate",)),
    "branch_weights": (BARS, "weight of each branch by channel", ()),
    "affinity": (MATRIX, "weight of each channel (row) on each channel", ("weight",)),
}


@dataclass(frozen=True)
class Look:
    """What one block shows for one image.

    Attributes:
        layer: The block's name in the model.
        kind: ``rows`` (a map for each query), ``map`` (maps that no query decides), ``bars``
            (numbers of channels) or ``matrix`` (channels by channels).
        title: What the values are.
        values: ``(Q, h, w)`` rows, ``(n, h, w)`` maps, ``(n, C)`` bars, or ``(C, C)``.
        series: A name for each of the n maps or bars.
        extent: Left, right, bottom and top of the maps in image pixels; the borders of the
            letterbox lie outside of the image. None for bars and matrices.
        cells: ``(Q, 2)`` row and column of each query on the grid that asks.
        grid: Height and width of that grid.
        shared: Whether the block gives every query the same map.
    """

    layer: str
    kind: str
    title: str
    values: Floats
    series: tuple[str, ...] = ()
    extent: Extent | None = None
    cells: npt.NDArray[np.int64] | None = None
    grid: tuple[int, int] = (0, 0)
    shared: bool = False


@dataclass(frozen=True)
class ImageLooks:
    """What all blocks show for one image.

    Attributes:
        view: How the image was letterboxed.
        queries: ``(Q, 2)`` points (x, y) of the image.
        looks: In the order of the model.
        silent: Block -> why it has nothing (or less) to show.
    """

    view: Letterbox
    queries: Floats
    looks: list[Look]
    silent: dict[str, str]


def explain_image(
    subject: Subject,
    image: npt.NDArray[np.uint8],
    queries: Points,
    layers: Sequence[Layer] | None = None,
    imgsz: int | None = None,
) -> ImageLooks:
    """Run the model on an image and ask its blocks where they look.

    Args:
        subject: The model.
        image: ``(H, W, 3)`` uint8, blue first.
        queries: ``(Q, 2)`` points (x, y) in pixels of the image.
        layers: Only these blocks of it.
        imgsz: Longer side of the model's input; what it was trained with by default.

    Returns:
        Maps with their place in the image, and the blocks that have none.

    Raises:
        YoloAttnError: A point lies outside of the image.
    """
    layers = subject.layers if layers is None else layers
    x, view = letterbox(image, imgsz or subject.imgsz, subject.stride)
    points = check_points(queries, view)
    run(subject, x, layers)
    looks, silent = [], {}
    for layer in layers:
        shown, reason = look_at(layer, view, points)
        looks += shown
        if reason:
            silent[layer.name] = reason
    return ImageLooks(view, points, looks, silent)


def check_points(queries: Points, view: Letterbox) -> Floats:
    """The queries as ``(Q, 2)``.

    Raises:
        YoloAttnError: One lies outside of the image.
    """
    points = np.asarray(queries, np.float64).reshape(-1, 2)
    outside = ((points < 0) | (points >= view.size) | np.isnan(points)).any(1)
    if outside.any():
        x, y = points[outside.argmax()]
        raise YoloAttnError(
            f"query {x:g},{y:g} lies outside of the image, which is {view.size[0]} wide and "
            f"{view.size[1]} high"
        )
    return points


def look_at(layer: Layer, view: Letterbox, points: Floats) -> tuple[list[Look], str]:
    """Ask a block that has run; also the reason if it shows nothing, or less than it might."""
    looks: list[Look] = []
    reasons: list[str] = []
    offered = [name for name in OTHERS if hasattr(layer.block, name)]
    with torch.no_grad():
        if hasattr(layer.block, "attention"):
            try:
                looks.append(_rows(layer, view, points))
            except YoloAttnError as error:
                reasons.append(str(error))
            else:
                # The rows are that gate already.
                offered = [name for name in offered if name != "gate_map"]
        for name in offered:
            try:
                looks.append(_other(layer, name, view))
            except YoloAttnError as error:
                reasons.append(str(error))
    if not looks and not reasons:
        reasons.append(f"{layer.info.name} has no attention map and no gate to show")
    return looks, "; ".join(reasons)


def _rows(layer: Layer, view: Letterbox, points: Floats) -> Look:
    cells = query_cells(points, view, layer.grid)
    rows, shared = attention_rows(layer, cells)
    values = _numpy(rows)
    return Look(
        layer.name,
        ROWS,
        "attention, the same for every query" if shared else "attention of the query",
        values,
        extent=extent(view, layer.grid, _sides(values)),
        cells=cells,
        grid=layer.grid,
        shared=shared,
    )


def attention_rows(layer: Layer, cells: npt.NDArray[np.int64]) -> tuple[Tensor, bool]:
    """Rows ``(Q, h, w)`` of the last run for cells ``(Q, 2)``; whether all have one map.

    Raises:
        YoloAttnError: The block has no map with its options.
    """
    # The last query twice: blocks expand a map that no query decides, which shows from two on.
    index = torch.from_numpy(np.concatenate([cells, cells[-1:]])).to(layer.first.device)
    rows = layer.block.attention(layer.inputs, index)[0]
    return rows[: len(cells)], rows.stride(0) == 0


def _other(layer: Layer, name: str, view: Letterbox) -> Look:
    kind, title, series = OTHERS[name]
    values = _numpy(getattr(layer.block, name)(layer.inputs)[0])
    if name == "gate_map":
        values = values.mean(0, keepdims=True)
    if kind == MATRIX:
        return Look(layer.name, kind, title, values, series)
    values = values.reshape(-1, *values.shape[-2:]) if kind == MAP else np.atleast_2d(values)
    what = "input" if name == "level_weights" else "branch"
    series = series or tuple(f"{what} {i + 1}" for i in range(len(values)))
    place = extent(view, layer.grid, _sides(values)) if kind == MAP else None
    return Look(layer.name, kind, title, values, series, place)


def _sides(maps: Floats) -> tuple[int, int]:
    _, height, width = maps.shape
    return height, width


def _numpy(x: Tensor) -> Floats:
    return x.detach().double().cpu().numpy()


def query_cells(points: Floats, view: Letterbox, grid: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Row and column ``(Q, 2)`` of the cells of a map that hold points (x, y) of the image."""
    share = view.to_input(points) / view.input_size
    cells = np.floor(share[:, ::-1] * grid).astype(np.int64)
    return np.clip(cells, 0, np.array(grid) - 1)


def extent(view: Letterbox, grid: tuple[int, int], keys: tuple[int, int]) -> Extent:
    """Left, right, bottom, top of a map of keys in image pixels.

    Args:
        view: How the image was letterboxed.
        grid: Height and width of the block's (first) input, which spans the model's input.
        keys: Height and width of the map, which may be pooled or another level's.
    """
    width, height = view.input_size
    right = _span(grid[1], keys[1]) * width
    bottom = _span(grid[0], keys[0]) * height
    corners = view.to_image([[0.0, 0.0], [right, bottom]])
    return corners[0, 0], corners[1, 0], corners[1, 1], corners[0, 1]


def _span(side: int, keys: int) -> float:
    """Share of a side that `keys` cells cover: pooling an odd side leaves its last cells out."""
    factor = side // keys
    return factor * keys / side if factor and side // factor == keys else 1.0


def to_image(values: Floats, place: Extent, size: tuple[int, int]) -> Floats:
    """A map ``(h, w)`` as the image sees it ``(H, W)``: each pixel has its cell's value.

    Args:
        values: The map.
        place: Its extent in image pixels.
        size: Width and height of the image.

    Returns:
        NaN where the map has no cell.
    """
    left, right, bottom, top = place
    height, width = values.shape
    columns = np.floor((np.arange(size[0]) + 0.5 - left) / (right - left) * width).astype(int)
    rows = np.floor((np.arange(size[1]) + 0.5 - top) / (bottom - top) * height).astype(int)
    padded = np.pad(values, 1, constant_values=np.nan)
    rows, columns = np.clip(rows, -1, height) + 1, np.clip(columns, -1, width) + 1
    return padded[rows[:, None], columns]


def weight_inside(values: Floats, place: Extent, size: tuple[int, int]) -> float:
    """Share of a map's weight that lies in the image, not on the borders of the letterbox."""
    left, right, bottom, top = place

    def share(low: float, high: float, cells: int, side: int) -> Floats:
        edges = np.linspace(low, high, cells + 1)
        inside = np.clip(edges, 0, side)
        return np.diff(inside) / np.diff(edges)

    height, width = values.shape
    cover = np.outer(share(top, bottom, height, size[1]), share(left, right, width, size[0]))
    total = np.abs(values).sum()
    return float((np.abs(values) * cover).sum() / total) if total else 1.0


def smallest_detections(
    path: str | Path, image: npt.NDArray[np.uint8], imgsz: int, most: int = 3, conf: float = 0.1
) -> tuple[Floats, Floats]:
    """Centres ``(n, 2)`` of the smallest detections, and the boxes ``(m, 4)`` x1 y1 x2 y2 of all.

    Args:
        path: The model; it is loaded anew, because predicting fuses its layers.
        image: ``(H, W, 3)`` uint8, blue first.
        imgsz: Longer side of the model's input.
        most: Number of centres.
        conf: Lowest confidence.
    """
    from ultralytics import YOLO

    model = YOLO(str(path), verbose=False)
    results: Any = model.predict(image, imgsz=imgsz, conf=conf, verbose=False, save=False)
    boxes = results[0].boxes.xyxy.cpu().numpy().astype(np.float64)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    last = np.array([image.shape[1], image.shape[0]]) - 1e-3
    return np.clip(centres[np.argsort(areas)[:most]], 0, last), boxes


def save_looks(file: Path, result: ImageLooks) -> None:
    """Write the values as ``.npz``: arrays ``<layer>/<title>`` and where they lie.

    Arrays: ``queries`` (Q, 2) x, y in image pixels; ``size`` width and height of the image; for
    each block ``values``, and for maps ``extent`` (left, right, bottom, top in image pixels), for
    rows also ``cells`` (Q, 2) row and column of the queries.
    """
    arrays: dict[str, Any] = {"queries": result.queries, "size": result.view.size}
    for look in result.looks:
        key = f"{look.layer.replace(' ', '_')}/{look.title.split(',')[0].replace(' ', '_')}"
        arrays[f"{key}/values"] = look.values
        if look.extent is not None:
            arrays[f"{key}/extent"] = np.array(look.extent)
        if look.cells is not None:
            arrays[f"{key}/cells"] = look.cells
    with open(file, "wb") as stream:
        np.savez_compressed(stream, **arrays)
