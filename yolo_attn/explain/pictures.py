"""The pictures of `yolo-attn explain`: maps over the image, bars, independence, fields."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from yolo_attn.errors import YoloAttnError
from yolo_attn.explain.independence import PARTLY, SAME, Independence
from yolo_attn.explain.query_maps import (
    BARS,
    MAP,
    MATRIX,
    ROWS,
    ImageLooks,
    Look,
    weight_inside,
)
from yolo_attn.explain.receptive_field import Field

COLUMNS = 4
PANEL = 3.4  # inches
# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
QUERY = "#00E5FF"


def draw_query(
    file: Path,
    result: ImageLooks,
    image: npt.NDArray[np.uint8],
    number: int,
    title: str,
    boxes: npt.NDArray[np.float64] | None = None,
) -> bool:
    """Where each spatial-attention block looks for one query; False if none does.

    Args:
        file: PNG to write.
        result: From :func:`~yolo_attn.explain.query_maps.explain_image`.
        image: ``(H, W, 3)`` uint8, blue first.
        number: Which query.
        title: Above the picture.
        boxes: ``(m, 4)`` x1 y1 x2 y2 of the detections.
    """
    looks = [look for look in result.looks if look.kind == ROWS]
    if not looks:
        return False
    figure, panels = _panels(1 + len(looks), result.view.size)
    first, *rest = panels
    _show_image(first, image)
    first.set_title(f"image, query {_point(result.queries[number])}", fontsize=9)
    for x1, y1, x2, y2 in [] if boxes is None else boxes:
        first.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=COLOURS[1], linewidth=0.8)
    _mark(first, result.queries[number])
    for axes, look in zip(rest, looks):
        values = look.values[number]
        _show_map(figure, axes, image, values, look)
        _mark(axes, result.queries[number])
        axes.set_title(f"{look.layer}, {_grid(look)}\n{_numbers(values, look, result)}", fontsize=8)
    _save(figure, file, title)
    return True


def draw_gates(file: Path, result: ImageLooks, image: npt.NDArray[np.uint8], title: str) -> bool:
    """What no query decides: gate maps, level weights, channel weights; False if there is none."""
    drawn: list[tuple[Look, int]] = []
    for look in result.looks:
        if look.kind == MAP:
            drawn += [(look, i) for i in range(len(look.values))]
        elif look.kind != ROWS:
            drawn.append((look, 0))
    if not drawn:
        return False
    figure, panels = _panels(len(drawn), result.view.size)
    for axes, (look, i) in zip(panels, drawn):
        label = look.series[i] if len(look.series) > 1 and look.kind == MAP else ""
        if look.kind == MAP:
            _show_map(figure, axes, image, look.values[i], look)
        elif look.kind == BARS:
            _show_bars(axes, look)
        elif look.kind == MATRIX:
            shown = axes.imshow(look.values, cmap="magma", vmin=0, aspect="auto")
            figure.colorbar(shown, ax=axes, shrink=0.8)
            axes.set(xlabel="channel", ylabel="channel")
        axes.set_title(f"{look.layer}\n{look.title}{f': {label}' if label else ''}", fontsize=8)
    _save(figure, file, title)
    return True


def _panels(count: int, size: tuple[int, int]) -> tuple[Any, list[Any]]:
    columns = min(count, COLUMNS)
    rows = math.ceil(count / columns)
    height = PANEL * min(max(size[1] / size[0], 0.5), 2.0)
    figure = _figure((columns * (PANEL + 0.6), rows * (height + 0.7) + 0.4))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, list(panels[:count])


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise YoloAttnError("pictures need matplotlib: pip install 'yolo-attn[report]'") from error
    return Figure(figsize=size, layout="constrained")


def _show_image(axes: Any, image: npt.NDArray[np.uint8], grey: bool = False) -> None:
    height, width = image.shape[:2]
    shown = image[..., ::-1]
    if grey:
        shown = np.repeat(shown.mean(2, keepdims=True), 3, axis=2).astype(np.uint8)
    axes.imshow(shown, extent=(0, width, height, 0), interpolation="nearest")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def _show_map(
    figure: Any, axes: Any, image: npt.NDArray[np.uint8], values: npt.NDArray, look: Look
) -> None:
    _show_image(axes, image, grey=True)
    top = float(np.abs(values).max()) or 1.0
    # A map with both signs says so by its colours.
    signed = bool((values < 0).any())
    shown = axes.imshow(
        values,
        extent=look.extent,
        cmap="RdBu_r" if signed else "inferno",
        vmin=-top if signed else 0,
        vmax=top,
        alpha=0.65,
        interpolation="nearest",
        zorder=2,
    )
    height, width = image.shape[:2]
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    bar = figure.colorbar(shown, ax=axes, shrink=0.8)
    bar.ax.tick_params(labelsize=7)


def _show_bars(axes: Any, look: Look) -> None:
    width = 1 / len(look.values)
    for i, (values, name) in enumerate(zip(look.values, look.series)):
        at = np.arange(len(values)) + (i + 0.5) * width
        label = name if len(look.values) > 1 else None
        axes.bar(at, values, width, color=COLOURS[i % len(COLOURS)], label=label)
    axes.set(xlabel="channel", xlim=(0, look.values.shape[1]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    if len(look.values) > 1:
        axes.legend(fontsize=7)


def _mark(axes: Any, point: npt.NDArray[np.float64]) -> None:
    axes.plot(*point, "+", color=QUERY, markersize=13, markeredgewidth=1.6, zorder=4)
    axes.plot(*point, "o", color=QUERY, markersize=9, fillstyle="none", zorder=4)


def _numbers(values: npt.NDArray, look: Look, result: ImageLooks) -> str:
    total = values.sum()
    if look.shared and not np.isclose(total, 1, atol=1e-3):
        return f"one for all queries, {values.min():.2g} to {values.max():.2g}"
    parts = ["one for all queries"] if look.shared else []
    if np.isclose(total, 1, atol=1e-3):
        parts.append(f"peak {values.max() * values.size:.3g} x uniform")
    else:
        parts.append(f"sum {total:.3g}")
    inside = weight_inside(values, look.extent, result.view.size) if look.extent else 1.0
    if inside < 0.995:
        parts.append(f"{1 - inside:.0%} on the border")
    return ", ".join(parts)


def _grid(look: Look) -> str:
    keys = tuple(look.values.shape[1:])
    asked = f"{look.grid[0]} x {look.grid[1]}"
    return asked if keys == look.grid else f"{asked} asks {keys[0]} x {keys[1]}"


def _point(point: npt.NDArray[np.float64]) -> str:
    return f"({point[0]:.0f}, {point[1]:.0f})"


def draw_independence(file: Path, found: Sequence[Independence], title: str) -> None:
    """Mean distance of each block, a point an image."""
    figure = _figure((8, 1.6 + 0.5 * len(found)))
    axes = figure.subplots()
    at = np.arange(len(found))[::-1]
    axes.barh(at, [f.mean for f in found], height=0.6, color=COLOURS[0], alpha=0.45)
    for y, f in zip(at, found):
        spread = np.linspace(-0.2, 0.2, len(f.distances)) if len(f.distances) > 1 else [0.0]
        axes.plot(f.distances, y + np.asarray(spread), ".", color=COLOURS[0], markersize=3)
        axes.annotate(
            f"{f.mean:.3f}", (f.mean, y), xytext=(4, 0), textcoords="offset points", va="center"
        )
    for edge in (SAME, PARTLY):
        axes.axvline(edge, color="0.5", linewidth=0.8, linestyle=":")
    axes.set_yticks(at, [f"{f.layer} ({f.grid[0]} x {f.grid[1]})" for f in found])
    most = max([PARTLY, *(float(f.distances.max()) for f in found)])
    axes.set(
        xlim=(0, 1.15 * most),
        ylim=(-0.6, len(found) - 0.4),
        xlabel="mean of 1 - cos over pairs of queries; 0: one map serves all (dotted: "
        f"{SAME:g} and {PARTLY:g})",
    )
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, file, title)


def draw_fields(file: Path, columns: Mapping[str, Sequence[Field]], title: str) -> None:
    """Gradients with their radii: a column a model, a row a map."""
    rows = max(len(fields) for fields in columns.values())
    figure = _figure((4.2 * len(columns) + 0.6, 3.9 * rows + 0.4))
    panels = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, fields) in enumerate(columns.items()):
        for row in range(rows):
            axes = panels[row][column]
            if row >= len(fields):
                axes.set_axis_off()
                continue
            f = fields[row]
            # Four decades below the peak: the tails are what differs.
            top = f.gradient.max()
            shown = axes.imshow(
                np.log10(np.maximum(f.gradient / top, 1e-4)), cmap="inferno", vmin=-4, vmax=0
            )
            _circles(axes, f)
            axes.set(xticks=[], yticks=[])
            held = ", ".join(f"r{100 * s:.0f} {r:.0f}" for s, r in f.radii.items())
            axes.set_title(f"{name}, {f.name} ({f.grid[0]} x {f.grid[1]})\n{held} px", fontsize=8)
            bar = figure.colorbar(shown, ax=axes, shrink=0.8)
            bar.set_label("log10 of the gradient, peak = 0", fontsize=7)
            bar.ax.tick_params(labelsize=7)
    _save(figure, file, title)


def _circles(axes: Any, f: Field) -> None:
    from matplotlib.patches import Circle

    from yolo_attn.explain.receptive_field import centre_pixel

    y, x = centre_pixel(f.gradient.shape, f.grid)
    for radius, colour in zip(f.radii.values(), COLOURS):
        axes.add_patch(Circle((x, y), radius, fill=False, color=colour, linewidth=1.2))


def draw_overlay(file: Path, image: npt.NDArray[np.uint8], values: npt.NDArray, title: str) -> None:
    """One map ``(H, W)`` of the image's size over it."""
    height, width = image.shape[:2]
    look = Look("", MAP, title, values[None], ("",), (0.0, float(width), float(height), 0.0))
    figure, (axes,) = _panels(1, (width, height))
    _show_map(figure, axes, image, values, look)
    _save(figure, file, title)


def _save(figure: Any, file: Path, title: str) -> None:
    # matplotlib reads $...$ as a formula.
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    try:
        figure.savefig(file, dpi=110, format="png")
    except OSError as error:
        raise YoloAttnError(f"{file}: cannot be written ({error}); choose another --out") from error
