"""What the report draws, as data, and two ways to draw it: plotly (page), matplotlib (files)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from yolo_attn.ablation.results import Results
from yolo_attn.ablation.trial import results_rows

# Okabe and Ito's colours, which the colour-blind tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B6914")
SIZED = {"coco": "AP_small", "coco-500": "AP_small", "tiny": "AP_small", "visdrone": "AP"}
MAP_COLUMN = "metrics/mAP50-95(B)"


@dataclass(frozen=True)
class Series:
    """One arm of a figure; `low` and `high` are the ends of its error bars or band."""

    name: str
    colour: str
    x: list[Any]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Figure:
    """A figure: `kind` is points, lines or bars; `line` joins the points on the Pareto front."""

    key: str
    title: str
    kind: str
    x_label: str
    y_label: str
    series: list[Series]
    line: list[tuple[float, float]] = field(default_factory=list)


def figures_of(results: Results) -> list[Figure]:
    """All figures for which there are numbers."""
    made = (
        against_latency(results),
        learning_curves(results),
        by_size(results),
        by_class(results),
        by_error(results),
    )
    return [figure for figure in made if any(series.x for series in figure.series)]


def colours_of(results: Results) -> dict[str, str]:
    """Arm -> colour."""
    return {a.name: COLOURS[i % len(COLOURS)] for i, a in enumerate(results.study.arms)}


def against_latency(results: Results) -> Figure:
    """AP of small objects against latency; bars are one standard deviation over seeds."""
    protocol = results.study.protocols[0]
    metric = SIZED[protocol]
    series, points = [], []
    for arm, colour in colours_of(results).items():
        latency = results.arms[arm].get("latency_ms")
        values = _values(results, arm, protocol, metric)
        if latency is None or not values:
            series.append(Series(arm, colour, [], []))
            continue
        mean, spread = float(np.mean(values)), float(np.std(values, ddof=min(1, len(values) - 1)))
        points.append((latency, mean))
        series.append(Series(arm, colour, [latency], [mean], [mean - spread], [mean + spread]))
    return Figure(
        "latency",
        f"{protocol} {metric} against latency (bars: one standard deviation over seeds)",
        "points",
        "latency of one image, ms",
        f"{protocol} {metric}, %",
        series,
        pareto(points),
    )


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in both: faster and better, from fast to slow."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def learning_curves(results: Results) -> Figure:
    """Validation mAP by epoch: the mean over seeds, the band from the lowest to the highest."""
    series = []
    for arm, colour in colours_of(results).items():
        curves = [
            [100 * row[MAP_COLUMN] for row in results_rows(t.folder) if MAP_COLUMN in row]
            for t in results.trials[arm].values()
        ]
        length = min(map(len, curves), default=0)
        table = np.array([curve[:length] for curve in curves]).reshape(len(curves), length)
        x = list(range(1, length + 1))
        if not length:
            series.append(Series(arm, colour, [], []))
            continue
        ends = table.min(0).tolist(), table.max(0).tolist()
        series.append(Series(arm, colour, x, table.mean(0).tolist(), *ends))
    title = "Learning curves (band: lowest to highest seed)"
    return Figure("curves", title, "lines", "epoch", "mAP50-95 of yolo val, %", series)


def by_size(results: Results) -> Figure:
    """Differences in every metric with their 95 % intervals."""
    series = []
    for arm, colour in colours_of(results).items():
        drawn = Series(arm, colour, [], [])
        for protocol, c in results.comparisons:
            ends = c.interval or c.images
            if c.arm == arm and c.difference is not None and ends is not None:
                drawn.x.append(f"{protocol} {c.metric}")
                drawn.y.append(c.difference)
                drawn.low.append(ends[0])
                drawn.high.append(ends[1])
        series.append(drawn)
    title = f"Difference from {results.study.baseline} by size (bars: 95 % interval)"
    return Figure("sizes", title, "points", "", "difference, points", series)


def by_class(results: Results) -> Figure:
    """Differences of AP by class, means over seeds."""
    protocol, baseline = results.study.protocols[0], results.study.baseline
    series = []
    base = _class_means(results, baseline, protocol)
    for arm, colour in colours_of(results).items():
        if arm == baseline:
            continue
        own = _class_means(results, arm, protocol)
        names = [n for n in base if n in own]
        series.append(Series(arm, colour, names, [own[n] - base[n] for n in names]))
    title = f"{protocol} AP by class: difference from {baseline}"
    return Figure("classes", title, "bars", "", "difference, points", series)


def by_error(results: Results) -> Figure:
    """AP50 that each kind of error costs (TIDE), means over seeds."""
    series = []
    for arm, colour in colours_of(results).items():
        costs = [t.record["metrics"]["errors"]["all"]["dAP"] for t in results.trials[arm].values()]
        kinds = list(costs[0]) if costs else []
        means = [float(np.mean([cost[kind] for cost in costs])) for kind in kinds]
        series.append(Series(arm, colour, kinds, means))
    title = "What each kind of error costs (TIDE)"
    return Figure("errors", title, "bars", "", "AP50 lost, points", series)


def _values(results: Results, arm: str, protocol: str, metric: str) -> list[float]:
    found = [
        t.record["metrics"][protocol]["metrics"].get(metric) for t in results.trials[arm].values()
    ]
    return [v for v in found if v is not None and v >= 0]


def _class_means(results: Results, arm: str, protocol: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for trial in results.trials[arm].values():
        for row in trial.record["metrics"][protocol]["per_class"].values():
            if row["AP"] is not None and row["AP"] >= 0:
                values.setdefault(row["name"], []).append(row["AP"])
    return {name: float(np.mean(v)) for name, v in values.items()}


def as_plotly(figure: Figure, inline_library: bool) -> str:
    """The figure as an HTML fragment; one of a page brings the library."""
    import plotly.graph_objects as go

    drawn = go.Figure()
    named = len({x for s in figure.series for x in s.x if isinstance(x, str)})
    for s in figure.series:
        if not s.x:
            continue
        hover = f"{s.name}<br>%{{x}}: %{{y:.2f}}<extra></extra>"
        common = {"x": s.x, "y": s.y, "name": s.name, "hovertemplate": hover}
        if figure.kind == "bars":
            drawn.add_bar(**common, marker_color=s.colour)
            continue
        if figure.kind == "lines":
            if s.low and s.high:
                drawn.add_scatter(
                    x=[*s.x, *s.x[::-1]], y=[*s.high, *s.low[::-1]], fill="toself",
                    fillcolor=s.colour, opacity=0.15, line_width=0, hoverinfo="skip",
                    showlegend=False, name=s.name, mode="lines",
                )  # fmt: skip
            mode = "lines+markers" if len(s.x) < 2 else "lines"
            drawn.add_scatter(**common, mode=mode, line_color=s.colour)
            continue
        bars = None
        if s.low and s.high:
            up = [h - y for h, y in zip(s.high, s.y)]
            down = [y - low for low, y in zip(s.low, s.y)]
            bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
        drawn.add_scatter(**common, mode="markers", marker={"color": s.colour, "size": 10},
                          error_y=bars)  # fmt: skip
    if figure.line:
        x, y = zip(*figure.line)
        drawn.add_scatter(x=x, y=y, mode="lines", name="Pareto front", hoverinfo="skip",
                          line={"color": "#888", "dash": "dot"})  # fmt: skip
    drawn.update_layout(
        xaxis_title=figure.x_label, yaxis_title=figure.y_label, template="plotly_white",
        showlegend=True,
        height=420, margin={"l": 60, "r": 20, "t": 20, "b": 50}, barmode="group",
        # Beside each other at a name; on a number each point stays where it belongs.
        scattermode="group" if named else "overlay",
        bargap=max(0.2, 1 - 0.15 * named),  # one class alone is not a wall
    )  # fmt: skip
    return drawn.to_html(
        full_html=False, include_plotlyjs=inline_library, div_id=f"figure-{figure.key}",
        config={"displaylogo": False},
    )  # fmt: skip


def save_with_matplotlib(figure: Figure, folder: Path) -> None:
    """Write <key>.png and <key>.svg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    drawn = Canvas(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots()
    shown = [s for s in figure.series if s.x]
    names = list(dict.fromkeys(x for s in shown for x in s.x if isinstance(x, str)))
    for i, s in enumerate(shown):
        # Arms stand beside each other at a name, and at their own place on a number.
        shift = (i - (len(shown) - 1) / 2) * 0.8 / len(shown)
        x = [names.index(v) + shift if isinstance(v, str) else v for v in s.x]
        if figure.kind == "bars":
            axes.bar(x, s.y, 0.8 / len(shown), color=s.colour, label=s.name)
        elif figure.kind == "lines":
            axes.plot(x, s.y, color=s.colour, label=s.name, marker="o" if len(x) < 2 else None)
            axes.fill_between(x, s.low, s.high, color=s.colour, alpha=0.15, linewidth=0)
        else:
            ends = np.array([np.subtract(s.y, s.low), np.subtract(s.high, s.y)])
            axes.errorbar(x, s.y, ends.clip(0), fmt="o", color=s.colour, label=s.name, capsize=3)
    if figure.line:
        axes.plot(*zip(*figure.line), ":", color="#888", label="Pareto front", zorder=0)
    if names:
        axes.axhline(0, color="#888", linewidth=0.8)
        axes.set_xticks(range(len(names)), names, rotation=25 if len(names) > 4 else 0)
        spare = max(0.0, 2 - len(names) / 2)  # one class alone is not a wall
        axes.set_xlim(-0.6 - spare, len(names) - 0.4 + spare)
    axes.set(title=figure.title, xlabel=figure.x_label, ylabel=figure.y_label)
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    for suffix in ("png", "svg"):
        drawn.savefig(folder / f"{figure.key}.{suffix}", dpi=150)
