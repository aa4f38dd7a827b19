"""The table of a study as rows, for the console, CSV, LaTeX and HTML alike."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from yolo_attn.ablation.block_use import largest_change
from yolo_attn.ablation.results import METRICS, Results
from yolo_attn.ablation.statistics import Comparison, Interval
from yolo_attn.explain import use_table

COST_COLUMNS = {
    "parameters": "parameters",
    "gflops": "GFLOPs",
    "latency_ms": "latency ms",
    "latency_p95_ms": "p95 ms",
    "peak_memory": "peak memory MB",
    "epoch_seconds": "s per epoch",
}


@dataclass(frozen=True)
class Row:
    """An arm in one metric; `comparison` is None for the baseline.

    `verdict` is the comparison's in a sentence, `change` the largest of the arm's blocks.
    """

    protocol: str
    metric: str
    arm: str
    trials: int
    mean: float | None
    comparison: Comparison | None
    verdict: str
    change: float | None


def rows_of(results: Results) -> list[Row]:
    """All metrics, each with the baseline first."""
    found = {(p, c.metric, c.arm): c for p, c in results.comparisons}
    baseline = results.study.baseline
    arms = [baseline, *(a.name for a in results.study.arms if a.name != baseline)]
    rows = []
    for protocol in results.study.protocols:
        for metric in METRICS[protocol]:
            for arm in arms:
                c = found.get((protocol, metric, arm))
                trials, mean = len(results.trials[arm]), results.mean(arm, protocol, metric)
                verdict = results.verdict(c) if c else ""
                change = largest_change(results.use.get(arm, []))
                rows.append(Row(protocol, metric, arm, trials, mean, c, verdict, change))
    return rows


def headers() -> list[str]:
    """Titles of the columns of `cells`."""
    return [
        "protocol", "metric", "arm", "seeds", "mean", "difference", "95 % interval",
        "P(better)", "p (Holm)", "verdict", "block change", "detectable",
    ]  # fmt: skip


def cells(row: Row) -> list[str]:
    """A row as text; differences in percent points."""
    c = row.comparison
    start = [row.protocol, row.metric, row.arm, str(row.trials), number(row.mean)]
    change = use_table.percent(row.change)
    if c is None:
        return [*start, "baseline" if row.trials else "-", "", "", "", "", change, ""]
    return [
        *start,
        number(c.difference, sign=True),
        interval(c.interval) if c.interval else f"{interval(c.images)} (images alone)",
        number(c.p_better, 3),
        number(c.p_holm, 3),
        row.verdict,
        change,
        number(c.detectable),
    ]


def use_headers() -> list[str]:
    """Titles of the columns of `use_cells`."""
    return ["arm", "layer", "block", "where", "|g|", "|gamma|", "change of its input"]


def use_cells(results: Results) -> list[list[str]]:
    """One row for each block of each arm, means over the seeds; empty if nothing was measured."""
    return [
        [arm, str(b.layer), b.block, b.where]
        + [use_table.number(b.gate), use_table.number(b.gamma), use_table.percent(b.change)]
        for arm, blocks in results.use.items()
        for b in blocks
    ]


def cost_cells(results: Results) -> list[list[str]]:
    """One row an arm under the titles arm and `COST_COLUMNS`."""
    return [
        [arm, *(_cost(cost, key) for key in COST_COLUMNS)] for arm, cost in results.arms.items()
    ]


def _cost(cost: dict[str, Any], key: str) -> str:
    value = cost.get(key)
    if value is None:
        return "-"
    if key == "parameters":
        return f"{value:,}"
    return f"{value / 1e6:.0f}" if key == "peak_memory" else f"{value:.2f}"


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A number, or "-" for None."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def interval(value: Interval | None) -> str:
    """``[-0.31, +1.20]``."""
    return "-" if value is None else f"[{value[0]:+.2f}, {value[1]:+.2f}]"


def as_csv(results: Results) -> str:
    """Unrounded, one line an arm and metric, costs of the arm behind."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n")
    statistics = [
        "difference", "low", "high", "images_low", "images_high", "seeds_low", "seeds_high",
        "p_better", "p", "p_holm", "verdict", "detectable",
    ]  # fmt: skip
    write.writerow(
        ["protocol", "metric", "arm", "trials", "mean", *statistics, "block_change", *COST_COLUMNS],
    )
    for row in rows_of(results):
        values: list[Any] = [""] * len(statistics)
        if c := row.comparison:
            pairs = [v or ("", "") for v in (c.interval, c.images, c.over_seeds)]
            edges = [edge for pair in pairs for edge in pair]
            values = [c.difference, *edges, c.p_better, c.p, c.p_holm, c.verdict, c.detectable]
        cost = [results.arms[row.arm].get(key) for key in COST_COLUMNS]
        start = [row.protocol, row.metric, row.arm, row.trials, row.mean]
        write.writerow(["" if v is None else v for v in (*start, *values, row.change, *cost)])
    return out.getvalue()


def use_as_csv(results: Results) -> str:
    """Unrounded, one line for each block of each arm; `change` is a share of its input."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n")
    write.writerow(["arm", "layer", "block", "where", "gate", "gamma", "change"])
    for arm, blocks in results.use.items():
        for b in blocks:
            values = ("" if v is None else v for v in (b.gate, b.gamma, b.change))
            write.writerow([arm, b.layer, b.block, b.where, *values])
    return out.getvalue()


def as_latex(results: Results) -> str:
    """A booktabs table: one row an arm, one column a metric, differences with intervals."""
    columns = [(p, m) for p in results.study.protocols for m in METRICS[p]]
    by_key = {(r.protocol, r.metric, r.arm): r for r in rows_of(results)}
    arms = list(dict.fromkeys(r.arm for r in rows_of(results)))
    lines = [
        "% Needs booktabs. Mean over seeds; below, the difference from the baseline with its 95 %",
        f"% interval over images and seeds. Study {results.study.name}.",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["arm", *(_tex(f"{p} {m}") for p, m in columns)]) + r" \\",
        r"\midrule",
    ]
    for arm in arms:
        rows = [by_key[protocol, metric, arm] for protocol, metric in columns]
        lines.append(" & ".join([_tex(arm), *(number(r.mean) for r in rows)]) + r" \\")
        if any(r.comparison for r in rows):
            below = [_tex_difference(r.comparison) for r in rows]
            lines.append(" & ".join(["", *below]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def use_as_latex(results: Results) -> str:
    """`use_cells` as a booktabs table."""
    titles = [title.replace("|", "$|$") for title in map(_tex, use_headers())]
    lines = [
        "% Needs booktabs. Are the blocks used? Means over seeds; change: L2 of what the block",
        f"% changes over L2 of its input. Study {results.study.name}.",
        r"\begin{tabular}{lrllrrr}",
        r"\toprule",
        " & ".join(titles) + r" \\",
        r"\midrule",
        *(" & ".join(map(_tex, cells)) + r" \\" for cells in use_cells(results)),
    ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex_difference(c: Comparison | None) -> str:
    if c is None or c.difference is None:
        return "--"
    shown = f"${c.difference:+.2f}$"
    if c.interval:
        shown += f" $[{c.interval[0]:+.2f}, {c.interval[1]:+.2f}]$"
    return rf"\scriptsize {shown}"


def _tex(text: str) -> str:
    for letter in "&%$#_{}":
        text = text.replace(letter, "\\" + letter)
    return text
