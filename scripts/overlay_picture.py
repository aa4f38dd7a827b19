"""Draw docs/images/overlay.png: a base's rows beside those that an overlay makes of them.

Example: python scripts/overlay_picture.py yolov8n-nonlocal.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from yolo_attn.overlay.dry_run import load_model_yaml
from yolo_attn.overlay.model_files import without_scale
from yolo_attn.overlay.taps import find_taps
from yolo_attn.paths import zoo_dir
from yolo_attn.zoo import with_scale

REPO = Path(__file__).resolve().parents[1]
PLAIN, NEW, EDGE = "#e8edf3", "#f6b26b", "#5b6b7d"


def column(
    ax: Any, d: dict[str, Any], x: float, title: str, taps: dict[str, int], new: set[int]
) -> list[float]:
    """Draw one model's rows from top to bottom; return the y of each."""
    rows = [*d["backbone"], *d["head"]]
    ax.text(x + 1.5, 1.2, title, ha="center", va="bottom", fontsize=11, weight="bold")
    ys = []
    for i, (f, _n, module, _args) in enumerate(rows):
        y = -i - (0.5 if i >= len(d["backbone"]) else 0)
        ys.append(y)
        color = NEW if i in new else PLAIN
        ax.add_patch(
            plt.Rectangle((x, y - 0.4), 3, 0.8, facecolor=color, edgecolor=EDGE, linewidth=0.8)
        )
        weight = "bold" if i in new else "normal"
        ax.text(x + 0.12, y, f"{i}", va="center", fontsize=7, color=EDGE)
        ax.text(x + 0.55, y, module.replace("nn.", ""), va="center", fontsize=8.5, weight=weight)
        if f != -1:
            ax.text(
                x + 2.92,
                y,
                f"from {f}".replace("'", ""),
                va="center",
                ha="right",
                fontsize=6.5,
                color=EDGE,
            )
    for tap, i in taps.items():
        ax.text(
            x - 0.15,
            ys[i],
            tap,
            va="center",
            ha="right",
            fontsize=8.5,
            color="#c0392b",
            weight="bold",
        )
    return ys


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cfg", nargs="?", default="yolov8n-nonlocal.yaml")
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "images" / "overlay.png")
    args = parser.parse_args()
    d = load_model_yaml(args.cfg)
    origin = d["yolo_attn"]["rows"]
    base = load_model_yaml(with_scale(d["yolo_attn"]["base"], d["scale"]))
    source = zoo_dir() / Path(without_scale(args.cfg)).name

    figure, ax = plt.subplots(figsize=(10, 6.6), dpi=130)
    left = column(ax, base, 0, d["yolo_attn"]["base"], find_taps(base), set())
    new = {i for i, r in enumerate(origin) if r < 0}
    right = column(ax, d, 8.6, args.cfg, {}, new)
    for i, r in enumerate(origin):
        if r >= 0:
            ax.plot([3, 8.6], [left[r], right[i]], color="#b8c4d0", linewidth=0.6, zorder=0)
    text = "\n".join(
        t for t in source.read_text(encoding="utf-8").splitlines() if not t.startswith("#")
    )
    box = {"boxstyle": "round,pad=0.6", "facecolor": "#fffdf5", "edgecolor": NEW, "linewidth": 1.5}
    ax.text(
        5.8,
        1.2,
        f"{source.name} (the overlay)",
        ha="center",
        va="bottom",
        fontsize=11,
        weight="bold",
    )
    ax.text(5.8, -0.4, text, ha="center", va="center", fontsize=8, family="monospace", bbox=box)
    ax.set_xlim(-0.8, 12)
    ax.set_ylim(min(right) - 0.8, 2.2)
    ax.axis("off")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, bbox_inches="tight", facecolor="white")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
