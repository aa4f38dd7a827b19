"""How long the protocols take on a set of the size of VisDrone-val, interleaved.

The set is drawn: 548 images, 70 objects and 300 detections each, ten classes, ignored regions. Each
time is that of a whole evaluation from arrays in memory (for pycocotools: from its own dicts).

Example: python benchmarks/evaluation.py --runs 3
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from yolo_attn.evaluation import coco, visdrone
from yolo_attn.evaluation.boxes import Detections, GroundTruth, box_area

COLUMNS = ("AP", "AP_small")
SIZE = (1360, 765)
# Share of the classes in VisDrone-val, in the order of their numbers.
SHARE = np.array([0.23, 0.13, 0.03, 0.36, 0.05, 0.02, 0.03, 0.01, 0.01, 0.13])


def drawn_set(
    images: int, objects: int, detections: int, seed: int = 0
) -> tuple[GroundTruth, Detections]:
    """Objects of VisDrone's sizes; half of the detections lie near an object."""
    rng = np.random.default_rng(seed)
    n, d = images * objects, images * detections
    side = np.exp(rng.normal(3.2, 0.7, n))
    wide = np.exp(rng.normal(0, 0.4, n))
    wh = np.stack([side * wide, side / wide], 1)
    boxes = np.round(np.concatenate([rng.random((n, 2)) * (SIZE - wh).clip(1), wh.clip(2)], 1))
    image = np.repeat(np.arange(images), objects)
    category = rng.choice(np.arange(1, 11), n, p=SHARE)
    image_of = np.repeat(np.arange(images), detections)
    source = image_of * objects + rng.integers(0, objects, d)
    near = rng.random(d) < 0.5
    found = boxes[source]
    found[:, :2] += rng.normal(0, 0.08, (d, 2)) * found[:, 2:]
    found[:, 2:] *= np.exp(rng.normal(0, 0.1, (d, 2)))
    found[~near, :2] = rng.random((int((~near).sum()), 2)) * SIZE
    found_category = np.where(
        rng.random(d) < 0.85, category[source], rng.choice(np.arange(1, 11), d, p=SHARE)
    )
    score = rng.beta(1 + 2 * near, 4, d)
    order = np.lexsort((-score, image_of))
    regions = np.repeat(np.arange(images), 3)
    corners = rng.integers(0, 600, (len(regions), 2))
    gt = GroundTruth(
        [f"{i:07d}" for i in range(images)],
        visdrone.CLASSES,
        image,
        boxes,
        category,
        rng.random(n) < 0.03,
        region_image=regions,
        region_boxes=np.concatenate([corners, rng.integers(20, 150, corners.shape)], 1),
        sizes=np.tile(SIZE, (images, 1)),
    )
    dets = Detections(
        image_of[order], found[order].round(2), found_category[order], score[order].round(5)
    )
    return gt, dets


def with_pycocotools(gt: GroundTruth, dets: Detections) -> Callable[[], Any] | None:
    """The same evaluation by pycocotools, if it is installed."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        return None
    gt, dets, _ = coco._outside_regions(gt, dets)

    def rows(part: Any, **more: np.ndarray) -> list[dict[str, Any]]:
        columns = {
            "image_id": part.image + 1,
            "category_id": part.category,
            "bbox": part.boxes,
            "area": box_area(part.boxes),
            **more,
        }
        values = zip(*(column.tolist() for column in columns.values()))
        return [{"id": i, **dict(zip(columns, row))} for i, row in enumerate(values, 1)]

    def evaluate() -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = {
                "images": [{"id": i} for i in range(1, len(gt.names) + 1)],
                "categories": [{"id": k, "name": v} for k, v in gt.classes.items()],
                "annotations": rows(gt, iscrowd=gt.ignored.astype(int)),
            }
            truth.createIndex()
            judge = COCOeval(truth, truth.loadRes(rows(dets, score=dets.score)), "bbox")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        return {"AP": judge.stats[0] * 100, "AP_small": judge.stats[3] * 100}

    return evaluate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("images", 548), ("objects", 70), ("detections", 300), ("runs", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    gt, dets = drawn_set(args.images, args.objects, args.detections)
    records, coco_records = visdrone.match_records(gt, dets), coco.match_records(gt, dets)
    weights = np.random.default_rng(0).multinomial(
        args.images, np.full(args.images, 1 / args.images)
    )
    cases: dict[str, Callable[[], Any] | None] = {
        "VisDrone, official protocol": lambda: visdrone.evaluate(gt, dets)["metrics"],
        "COCO, faster-coco-eval": lambda: coco.evaluate(gt, dets)["metrics"],
        "COCO, pycocotools": with_pycocotools(gt, dets),
        "COCO, match records": lambda: coco.metrics_of(coco.match_records(gt, dets)),
        "VisDrone, one bootstrap draw": lambda: visdrone.metrics_of(records, weights),
        "COCO, one bootstrap draw": lambda: coco.metrics_of(coco_records, weights),
    }
    times: dict[str, list[float]] = {name: [] for name, run in cases.items() if run}
    found: dict[str, dict[str, float]] = {}
    for _ in range(args.runs):
        for name in times:
            begin = time.perf_counter()
            found[name] = cases[name]()
            times[name].append(time.perf_counter() - begin)
    print(
        f"{args.images} images, {args.objects} objects and {args.detections} detections each; "
        f"{args.runs} interleaved runs\n"
    )
    print("| evaluation | median s | range | AP | AP_small |\n|---|---|---|---|---|")
    for name, seconds in times.items():
        shown = [f"{found[name][key]:.9f}" if key in found[name] else "" for key in COLUMNS]
        median, low, high = statistics.median(seconds), min(seconds), max(seconds)
        print(f"| {name} | {median:.2f} | {low:.2f}-{high:.2f} | {' | '.join(shown)} |")
    if cases["COCO, pycocotools"] is None:
        print("\npycocotools is not installed: its row is left out")


if __name__ == "__main__":
    main()
