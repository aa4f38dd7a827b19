"""Score a checkpoint under every protocol: `yolo-attn evaluate` in short, to read and edit.

python scripts/evaluate.py best.pt datasets/VisDrone.yaml
"""

from __future__ import annotations

import sys

from rich.console import Console

from yolo_attn.evaluation import protocols, tables
from yolo_attn.evaluation.predict import predict


def main(model: str, data: str) -> None:
    found = predict(model, data, split="val", max_det=500)
    results = protocols.evaluate(found.truth.gt, found.dets)
    console = Console(width=200)
    console.print(tables.overall({**results, "Ultralytics": found.ultralytics}))
    for line in [*found.notes, *tables.notes(results), *found.warnings.lines()]:
        console.print(f"note: {line}", markup=False)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/evaluate.py MODEL DATA.yaml")
    main(*sys.argv[1:])
