"""Write docs/slicing.md: one checkpoint on whole images and in slices, scores beside latencies.

Example: python scripts/slicing_table.py best.pt sirst.yaml whole 160 whole@640 --split test
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from yolo_attn.ablation.command import quiet_ultralytics
from yolo_attn.ablation.costs import measure_predictions, predictor
from yolo_attn.ablation.statistics import compare_arms
from yolo_attn.evaluation import protocols
from yolo_attn.evaluation.predict import Prediction, predict
from yolo_attn.evaluation.predict_sliced import predict_sliced
from yolo_attn.evaluation.slicing import OVERLAP, count_slices, require_sahi
from yolo_attn.paths import PACKAGE

# Column -> protocol and metric; COCO's small is below 32 px, AI-TOD's bins are 2-8 and 8-16 px.
METRICS = {
    "AP": ("coco", "AP"),
    "AP50": ("coco", "AP50"),
    "AP 2-8 px": ("tiny", "AP_verytiny"),
    "AP 8-16 px": ("tiny", "AP_tiny"),
    "VisDrone AP": ("visdrone", "AP"),
    "AR, 100": ("coco", "AR_100"),
}
SECONDS = 600.0  # at most, for the latencies


@dataclass(frozen=True)
class Arm:
    """Whole images or slices, at an input size; None: that of the training."""

    slice_size: int | None
    imgsz: int | None

    @classmethod
    def read(cls, word: str) -> Arm:
        """``whole``, ``whole@640``, ``160``, ``160@160``."""
        found = re.fullmatch(r"(whole|\d+)(?:@(\d+))?", word)
        if not found:
            raise argparse.ArgumentTypeError(f"{word!r} (accepted: whole, whole@640, 160, 160@320)")
        size = None if found[1] == "whole" else int(found[1])
        return cls(size, int(found[2]) if found[2] else None)

    def predict(self, args: argparse.Namespace) -> Prediction:
        """The detections on the whole split."""
        given = {"split": args.split, "device": args.device, "imgsz": self.imgsz}
        if self.slice_size is None:
            return predict(args.model, args.data, **given)
        return predict_sliced(args.model, args.data, self.slice_size, **given)

    def row(self, found: Prediction, side: int) -> tuple[str, str, str]:
        """Name, input and number of inputs an image."""
        sizes = found.truth.gt.sizes
        if self.slice_size is None:
            return "whole image", str(side), "1"
        cut = [count_slices(int(w), int(h), self.slice_size) for w, h in sizes]
        # SAHI sees the whole image, too, where there is more than one slice.
        inputs = np.mean([n + (n > 1) for n in cut])
        alone = inputs == 1
        name = "one slice: merging alone" if alone else f"slices of {self.slice_size} px"
        return name, str(side), f"{inputs:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a checkpoint")
    parser.add_argument("data", help="a dataset YAML")
    parser.add_argument(
        "arms", nargs="+", type=Arm.read, help="whole, whole@640, 160, 160@320 (SLICE@INPUT)"
    )
    parser.add_argument("--split", default="val")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=PACKAGE.parent / "docs" / "slicing.md")
    args = parser.parse_args()
    require_sahi()
    with quiet_ultralytics():
        write(args)


def write(args: argparse.Namespace) -> None:
    """Measure all arms and write the page."""
    from ultralytics import YOLO

    trained = int(YOLO(args.model).overrides.get("imgsz", 640))
    found = {arm: arm.predict(args) for arm in track(args.arms, "evaluating")}
    truth = found[args.arms[0]].truth
    places = {
        str(i): predictor(
            args.model, arm.imgsz or trained, args.device,
            (arm.slice_size, OVERLAP) if arm.slice_size else None,
        )
        for i, arm in enumerate(args.arms)
    }  # fmt: skip
    costs = measure_predictions(places, list(truth.image), args.device, SECONDS)
    changes = differences(found, args.arms)
    lines = [
        "| arm | input px | inputs an image | " + " | ".join(METRICS)
        + " | AP50 - first row (95 %) | ms an image | p95 ms |",
        "|---" * (len(METRICS) + 6) + "|",
    ]  # fmt: skip
    for i, arm in enumerate(args.arms):
        name, side, inputs = arm.row(found[arm], arm.imgsz or trained)
        scores = protocols.evaluate(truth.gt, found[arm].dets, protocols.pick(needed()))
        cells = [f"{scores[p]['metrics'][m]:.2f}" for p, m in METRICS.values()]
        cost = costs["arms"][str(i)]
        times = [f"{cost['latency_ms']:.0f}", f"{cost['latency_p95_ms']:.0f}"]
        lines.append("| " + " | ".join([name, side, inputs, *cells, changes[i], *times]) + " |")
    text = f"{introduction(args, trained, truth.gt, costs)}\n" + "\n".join(lines) + "\n"
    # What a person wrote below the table stays.
    old = args.out.read_text(encoding="utf-8") if args.out.is_file() else ""
    remarks = old[old.index(REMARKS) :] if REMARKS in old else ""
    args.out.write_text(text + (f"\n{remarks}" if remarks else ""), encoding="utf-8")
    print("\n".join(lines))


REMARKS = "## What it says"


def introduction(args: argparse.Namespace, trained: int, gt: object, costs: dict) -> str:
    """Everything above the table."""
    words = ["python", "scripts/slicing_table.py", *map(short, sys.argv[1:])]
    low, high = gt.sizes.min(0).astype(int), gt.sizes.max(0).astype(int)
    lines = [
        "# Slicing beside the whole image\n",
        f"Printed by `{shlex.join(words)}`.",
        f"{len(gt.names)} images of {low[0]}-{high[0]} x {low[1]}-{high[1]} px, {len(gt.boxes)} "
        f"objects, a model trained at {trained} px. Slices overlap by {OVERLAP:g} and are",
        "scaled to the input size; SAHI adds the whole image where there is more than one slice,",
        "and merges all by NMS (`yolo_attn/evaluation/slicing.py`). Scores in percent on the same",
        "ground truth; the interval is a bootstrap over images (1,000 draws). Latency: from the",
        f"image file to its boxes at confidence {costs['conf']}, all slices and merging counted,",
        f"{costs['rounds']} images with the arms interleaved, float32, {costs['device']}, "
        f"{costs['threads']} thread(s).",
    ]
    return "\n".join(lines) + "\n"


def short(word: str) -> str:
    """A file without its folder, but for data.yaml, which all sets are called."""
    path = Path(word)
    return f"{path.parent.name}/{path.name}" if path.name == "data.yaml" else path.name


def needed() -> list[str]:
    """The protocols of the columns."""
    return list(dict.fromkeys(protocol for protocol, _ in METRICS.values()))


def differences(found: dict[Arm, Prediction], arms: list[Arm]) -> list[str]:
    """AP50 less that of the first arm, with its interval over images."""
    chosen = protocols.pick(["coco"])
    records = {
        str(i): {0: protocols.match_records(found[a].truth.gt, found[a].dets, chosen)["coco"]}
        for i, a in enumerate(arms)
    }
    by_arm = {c.arm: c for c in compare_arms(records, "0", ["AP50"])}
    out = ["-"]
    for i in range(1, len(arms)):
        c = by_arm[str(i)]
        out.append(f"{c.difference:+.2f} [{c.images[0]:+.2f}, {c.images[1]:+.2f}]")
    return out


if __name__ == "__main__":
    main()
