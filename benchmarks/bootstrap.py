"""1,000 bootstrap draws of a trial at the size of VisDrone-val, and of two trials compared.

Example: OMP_NUM_THREADS=1 python benchmarks/bootstrap.py
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
from evaluation import drawn_set

from yolo_attn.ablation.resampling import metric_draws, multinomial_weights
from yolo_attn.ablation.results import METRICS
from yolo_attn.evaluation import protocols


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    values = (("images", 548), ("objects", 70), ("detections", 300), ("draws", 1000))
    for name, value in values:
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    gt, dets = drawn_set(args.images, args.objects, args.detections)
    weights = multinomial_weights(args.images, args.draws)
    print(
        f"{args.images} images, {args.objects} objects and {args.detections} detections each; "
        f"{args.draws} draws; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n"
    )
    print("| protocol | metrics | wall s | CPU s | weights 1 minus evaluated |")
    print("|---|---|---|---|---|")
    for name, rules in protocols.PROTOCOLS.items():
        records = protocols.match_records(gt, dets, {name: rules})[name]
        evaluated = protocols.metrics_of(records)
        ones = metric_draws(records, np.ones((1, args.images)), METRICS[name])
        off = max(abs(ones[metric][0] - evaluated[metric]) for metric in METRICS[name])
        wall, cpu = time.perf_counter(), time.process_time()
        metric_draws(records, weights, METRICS[name])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"| {name} | {', '.join(METRICS[name])} | {wall:.1f} | {cpu:.1f} | {off:.1e} |")


if __name__ == "__main__":
    main()
