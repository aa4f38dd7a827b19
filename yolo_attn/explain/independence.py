"""Does a block need the query? Distances between the attention maps of many queries.

Cao, Xu, Lin, Wei, Hu: GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond,
ICCVW 2019, arXiv 1904.11492: the maps of a Non-local block are almost the same for all queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
import numpy.typing as npt
import torch

from yolo_attn.errors import YoloAttnError
from yolo_attn.explain.hooks import Layer, Letterbox, Subject, letterbox, read_image, run
from yolo_attn.explain.query_maps import attention_rows, query_cells

SIDE = 8  # queries are the centres of SIDE x SIDE fields of the image
SAME = 0.02  # below: one map serves all queries
PARTLY = 0.2


@dataclass(frozen=True)
class Independence:
    """One block's mean pairwise cosine distance.

    Attributes:
        layer: Its name in the model.
        distances: ``(images,)`` mean of ``1 - cos(a_i, a_j)`` over all pairs of queries i != j; 0
            if all have the same map, 1 if no two overlap.
        queries: Queries an image (fewer on a small map: each cell asks once).
        shared: Whether the block has one map for all queries by construction.
        grid: Height and width of the map of the first image.
    """

    layer: str
    distances: npt.NDArray[np.float64]
    queries: int
    shared: bool
    grid: tuple[int, int]

    @property
    def mean(self) -> float:
        """Over the images."""
        return float(self.distances.mean())

    @property
    def verdict(self) -> str:
        """What the number means for the choice of the block."""
        if self.shared:
            return "one map for all queries by construction"
        if self.mean < SAME:
            return "the maps are the same: GlobalContext would do this job for less"
        if self.mean < PARTLY:
            return "the maps differ a little"
        return "each query has its own map"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "layer": self.layer,
            "distance": self.mean,
            "images": len(self.distances),
            "std_over_images": float(self.distances.std()),
            "queries": self.queries,
            "grid": list(self.grid),
            "shared": self.shared,
            "verdict": self.verdict,
        }


def query_independence(
    subject: Subject,
    images: Sequence[str | Path],
    layers: Sequence[Layer] | None = None,
    imgsz: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Independence], dict[str, str]]:
    """Measure every block that has attention maps.

    Args:
        subject: The model.
        images: Files.
        layers: Only these blocks.
        imgsz: Longer side of the model's input; what it was trained with by default.
        progress: Called with images done and in all.

    Returns:
        The blocks in order; and those without maps, with the reason.

    Raises:
        YoloAttnError: There is no image.
    """
    if not images:
        raise YoloAttnError("query independence needs at least one image")
    layers = subject.layers if layers is None else layers
    distances: dict[str, list[float]] = {}
    facts: dict[str, tuple[int, bool, tuple[int, int]]] = {}
    silent: dict[str, str] = {}
    for done, path in enumerate(images, 1):
        x, view = letterbox(read_image(path), imgsz or subject.imgsz, subject.stride)
        run(subject, x, layers)
        for layer in layers:
            if not hasattr(layer.block, "attention"):
                silent[layer.name] = f"{layer.info.name} has no attention maps"
                continue
            try:
                rows, shared = _maps(layer, view)
            except YoloAttnError as error:
                silent[layer.name] = str(error)
                continue
            distances.setdefault(layer.name, []).append(mean_distance(rows))
            facts.setdefault(layer.name, (len(rows), shared, layer.grid))
        if progress:
            progress(done, len(images))
    found = [
        Independence(name, np.array(values), *facts[name]) for name, values in distances.items()
    ]
    return found, silent


def _maps(layer: Layer, view: Letterbox) -> tuple[npt.NDArray[np.float64], bool]:
    """Maps of the queries ``(Q, h w)``."""
    at = (np.arange(SIDE) + 0.5) / SIDE
    points = np.stack(np.meshgrid(at * view.size[0], at * view.size[1]), -1).reshape(-1, 2)
    cells = np.unique(query_cells(points, view, layer.grid), axis=0)
    with torch.no_grad():
        rows, shared = attention_rows(layer, cells)
    return rows.flatten(1).double().cpu().numpy(), shared


def mean_distance(rows: npt.NDArray[np.float64]) -> float:
    """Mean of ``1 - cos`` over all pairs of different rows ``(Q, N)``; 0 for a single row."""
    if len(rows) < 2:
        return 0.0
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = torch.from_numpy(np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0))
    # |a - b|^2 / 2 of unit vectors is 1 - cos, and exactly 0 for equal ones.
    return float(torch.pdist(unit).square().mean() / 2)
