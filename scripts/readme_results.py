"""Write the results section of README.md from the folders of finished studies.

Every line is computed from the trials' records, as `yolo-attn ablate` does at the end of a study:
nothing is typed by hand, and what is not significant says so.

Example: python scripts/readme_results.py runs/ablation/sirst runs/controls/context
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from yolo_attn.ablation.results import METRICS, Results, collect
from yolo_attn.ablation.tables import Row, interval, number, rows_of

REPO = Path(__file__).resolve().parents[1]
SECTION = re.compile(r"(<!-- results: [^\n]* -->\n).*?(<!-- end -->)", re.DOTALL)
HEAD = ["study", "arm", "seeds", "metric", "baseline", "arm's", "difference", "95 %", "verdict"]


def description(results: Results) -> str:
    """``sirst (10 epochs, 256 px)``."""
    train = results.study.train
    return f"{results.study.name} ({train.get('epochs', 100)} epochs, {train.get('imgsz', 640)} px)"


def lines(results: Results, metrics: list[str]) -> list[str]:
    """Markdown rows of the metrics ``protocol:metric``, arms beside the study's baseline."""
    rows = [r for r in rows_of(results) if f"{r.protocol}:{r.metric}" in metrics]
    baseline = {(r.protocol, r.metric): r for r in rows if r.arm == results.study.baseline}
    out = []
    for row in rows:
        if row.comparison is None:
            continue
        base: Row = baseline[row.protocol, row.metric]
        c = row.comparison
        cells = [
            description(results),
            f"{row.arm} beside {base.arm}",
            f"{row.trials}",
            row.metric if row.protocol == "coco" else f"{row.metric} ({row.protocol})",
            number(base.mean),
            number(row.mean),
            number(c.difference, sign=True),
            interval(c.interval),
            row.verdict.replace(c.verdict, f"**{c.verdict}**", 1),
        ]
        out.append("| " + " | ".join(cells) + " |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", type=Path, nargs="+", help="folders that `ablate` wrote")
    parser.add_argument("--metrics", default="coco:AP,coco:AP_small", help="protocol:metric, ...")
    parser.add_argument("--readme", type=Path, default=REPO / "README.md")
    args = parser.parse_args()
    known = {f"{protocol}:{metric}" for protocol, names in METRICS.items() for metric in names}
    metrics = args.metrics.split(",")
    if unknown := [m for m in metrics if m not in known]:
        parser.error(f"--metrics {unknown[0]!r} (accepted: {', '.join(sorted(known))})")
    table = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for folder in args.studies:
        table += lines(collect(folder), metrics)
    text = args.readme.read_text(encoding="utf-8")
    written, count = SECTION.subn(lambda found: found[1] + "\n".join(table) + "\n" + found[2], text)
    if count != 1:
        parser.error(f"{args.readme}: {count} sections <!-- results: ... --> to <!-- end -->")
    args.readme.write_text(written, encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
