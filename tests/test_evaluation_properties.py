"""The fast functions against slow loops written from the texts, and what must not matter."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from yolo_attn.ablation.resampling import metric_draws
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation import coco, protocols, visdrone
from yolo_attn.evaluation.boxes import Detections, GroundTruth
from yolo_attn.evaluation.coco import CocoRules
from yolo_attn.evaluation.errors import KINDS, error_analysis
from yolo_attn.evaluation.records import load_records, save_records, summable
from yolo_attn.evaluation.regions import coverage

SEEDS = range(12)
NUMBERS = {1: "a", 2: "b", 4: "c"}
RULES = CocoRules("small set", (1, 3, 20), (0, 8, 16, 40), drop_covered=True)


def scene(seed: int, *, ties: bool = True, whole: bool = True, images: int = 5):
    """A small set with regions, ignored boxes, others, duplicates and (if asked) equal scores."""
    rng = np.random.default_rng(seed)
    n, d = 60, 150
    image = rng.integers(0, images - 1, n)  # the last image is without objects
    boxes = np.c_[rng.uniform(-5, 80, (n, 2)), rng.uniform(0, 25, (n, 2))]
    category = rng.choice([1, 2, 4, 11], n)
    twin = rng.integers(0, n, 8)
    boxes[rng.integers(0, n, 8)] = boxes[twin]
    source = rng.integers(0, n, d)
    found = boxes[source] + rng.normal(0, 2, (d, 4)) * (rng.random((d, 1)) < 0.7)
    wrong = rng.random(d) < 0.2
    sizes = rng.integers(60, 100, (images, 2))
    regions = np.c_[rng.integers(-3, 90, (6, 2)), rng.integers(0, 40, (6, 2))]
    if whole:
        boxes, found = np.round(boxes), np.round(found * 2) / 2
    return (
        GroundTruth(
            [f"{i}" for i in range(images)],
            NUMBERS,
            image,
            boxes,
            category,
            rng.random(n) < 0.15,
            region_image=rng.integers(0, images, 6),
            region_boxes=regions,
            sizes=sizes,
        ),
        Detections(
            np.where(rng.random(d) < 0.1, rng.integers(0, images, d), image[source]),
            found,
            np.where(wrong, rng.choice([0, 1, 2, 4, 12], d), category[source]),
            rng.choice(np.linspace(0.1, 1, 25), d) if ties else rng.permutation(d) / d,
        ),
    )


# The VisDrone protocol as its text tells it, one loop a sentence.


def slow_keep(box, regions, size) -> bool:
    if not len(regions):
        return True
    mask = np.zeros((int(size[1]) + 2, int(size[0]) + 2), bool)
    for region in regions:
        x, y, w, h = (max(1, int(v)) for v in region)
        mask[y : min(int(size[1]), y + h) + 1, x : min(int(size[0]), x + w) + 1] |= (
            x <= size[0] and y <= size[1]
        )
    mask[size[1] + 1 :] = mask[:, size[0] + 1 :] = False
    a, b, w, h = (max(1, int(np.sign(v) * np.floor(abs(v) + 0.5))) for v in box)
    x, y = min(size[0], a), min(size[1], b)
    x2, y2 = min(size[0], x + w), min(size[1], y + h)
    return mask[y + 1 : y2 + 1, x + 1 : x2 + 1].sum() / (w * h) < 0.5


def slow_overlap(d, g, ignored) -> float:
    iw = min(d[0] + d[2], g[0] + g[2]) - max(d[0], g[0])
    ih = min(d[1] + d[3], g[1] + g[3]) - max(d[1], g[1])
    if iw <= 0 or ih <= 0:
        return 0.0
    return iw * ih / (d[2] * d[3] if ignored else d[2] * d[3] + g[2] * g[3] - iw * ih)


def slow_visdrone(gt: GroundTruth, dets: Detections):
    """AP[K][T] and recall[K][T][M] in percent, objects and images of each class."""
    sizes = gt.sizes.astype(int)
    kept_gt, kept_det = (
        [
            i
            for i in range(len(rows.image))
            if slow_keep(
                rows.boxes[i],
                gt.region_boxes[gt.region_image == rows.image[i]],
                sizes[rows.image[i]],
            )
        ]
        for rows in (gt, dets)
    )
    ap, recall, objects, images = [], [], [], []
    for number in gt.classes:
        mine = [i for i in kept_gt if gt.category[i] == number]
        objects.append(len(mine))
        images.append(len({gt.image[i] for i in mine}))
        ap.append([])
        recall.append([])
        for k in range(10):
            recall[-1].append([])
            for cap in (1, 10, 100, 500):
                score, hits = [], []
                for image in range(len(gt.names)):
                    rows = [i for i in kept_det if dets.image[i] == image][:cap]
                    rows = [i for i in rows if dets.category[i] == number]
                    rows.sort(key=lambda i: -dets.score[i])
                    boxes = [i for i in mine if gt.image[i] == image]
                    boxes.sort(key=lambda i: gt.ignored[i])
                    taken = set()
                    for i in rows:
                        best, held = 0.5 + k * 0.05, None
                        for g in boxes:
                            if g in taken:
                                continue
                            if gt.ignored[g] and held is not None:
                                break
                            rate = slow_overlap(dets.boxes[i], gt.boxes[g], gt.ignored[g])
                            if rate >= best:
                                best, held = rate, g
                        score.append(dets.score[i])
                        if held is None:
                            hits.append((0, 1))
                        elif gt.ignored[held]:
                            hits.append((0, 0))
                        else:
                            taken.add(held)
                            hits.append((1, 0))
                order = sorted(range(len(score)), key=lambda i: -score[i])
                curve, tp, fp = [(0.0, 0.0)], 0, 0
                for i in order:
                    tp, fp = tp + hits[i][0], fp + hits[i][1]
                    curve.append((tp / max(1, len(mine)), tp / max(1, tp + fp)))
                recall[-1][-1].append(100 * curve[-1][0])
                if cap == 500:
                    curve.append((1.0, 0.0))
                    area = 0.0
                    for i in range(1, len(curve)):
                        area += (curve[i][0] - curve[i - 1][0]) * max(p for _, p in curve[i:])
                    ap[-1].append(100 * area)
    return np.array(ap), np.array(recall), objects, images


@pytest.mark.parametrize("seed", SEEDS)
def test_visdrone_equals_a_slow_loop(seed):
    gt, dets = scene(seed, whole=seed % 3 > 0)
    ap, recall, objects, images = slow_visdrone(gt, dets)
    found = visdrone.evaluate(gt, dets)
    assert 0 < ap.max() < 100 and len(set(recall[0, 0])) > 1  # the scene tests something
    np.testing.assert_allclose(found["AP_matrix"], ap, atol=1e-9)
    np.testing.assert_allclose(found["AR_matrix"], recall, atol=1e-9)
    assert [c["n_gt"] for c in found["per_class"].values()] == objects
    assert [c["n_images"] for c in found["per_class"].values()] == images
    share = np.array(images) / sum(images)
    assert found["metrics"]["AP"] == pytest.approx(share @ ap.mean(1), abs=1e-9)
    assert found["metrics"]["AR10"] == pytest.approx(share @ recall[..., 1].mean(1), abs=1e-9)


def test_coverage_equals_counting_pixels():
    rng = np.random.default_rng(0)
    size = np.array([50, 40])
    for _ in range(300):
        regions = np.c_[rng.integers(-5, 60, (3, 2)), rng.integers(-2, 30, (3, 2))]
        boxes = np.round(np.c_[rng.uniform(-9, 60, (20, 2)), rng.uniform(-2, 30, (20, 2))] * 2) / 2
        keep = [slow_keep(box, regions, size) for box in boxes]
        assert np.array_equal(coverage(boxes, regions, size) < 0.5, keep)


@pytest.mark.parametrize("seed", SEEDS)
def test_coco_records_equal_faster_coco_eval(seed):
    gt, dets = scene(seed)
    found = coco.evaluate(gt, dets, RULES)["metrics"]
    again = coco.metrics_of(coco.match_records(gt, dets, RULES))
    assert found.keys() == again.keys() and found["AP"] > 0
    for name, value in found.items():
        assert again[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("seed", SEEDS)
def test_the_order_of_images_does_not_matter_when_scores_differ(seed):
    gt, dets = scene(seed, ties=False)
    order = np.random.default_rng(seed + 100).permutation(len(gt.names))
    new = np.argsort(order)  # old index -> new index
    moved = replace(
        gt,
        names=[gt.names[i] for i in order],
        image=new[gt.image],
        region_image=new[gt.region_image],
        sizes=gt.sizes[order],
    )
    moved_dets = replace(dets, image=new[dets.image])
    for name, result in protocols.evaluate(gt, dets).items():
        other = protocols.evaluate(moved, moved_dets, protocols.pick([name]))[name]
        assert other["metrics"] == pytest.approx(result["metrics"], abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_image_without_boxes_changes_nothing(seed):
    gt, dets = scene(seed)
    more = replace(gt, names=[*gt.names, "empty"], sizes=np.vstack([gt.sizes, [64, 64]]))
    for name, result in protocols.evaluate(gt, dets).items():
        other = protocols.evaluate(more, dets, protocols.pick([name]))[name]
        assert other["metrics"] == pytest.approx(result["metrics"], abs=1e-12)


def repeated(gt: GroundTruth, dets: Detections, copies) -> tuple[GroundTruth, Detections]:
    """Image i there `copies[i]` times, side by side."""
    source = np.repeat(np.arange(len(gt.names)), copies)
    parts = []
    for image in (gt.image, dets.image, gt.region_image):
        index = [np.flatnonzero(image == i) for i in source]
        picked = np.concatenate([*index, np.zeros(0, int)]).astype(int)
        parts.append((picked, np.repeat(np.arange(len(source)), [len(i) for i in index])))
    (g, gi), (d, di), (r, ri) = parts
    return (
        GroundTruth(
            [f"{n}" for n in range(len(source))],
            gt.classes,
            gi,
            gt.boxes[g],
            gt.category[g],
            gt.ignored[g],
            gt.area[g],
            ri,
            gt.region_boxes[r],
            gt.sizes[source],
        ),
        Detections(di, dets.boxes[d], dets.category[d], dets.score[d]),
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ties", [True, False])
def test_integer_weights_equal_repeated_images(seed, ties, tmp_path):
    gt, dets = scene(seed, ties=ties)
    chosen = {"coco": RULES, "visdrone": None}
    save_records(tmp_path / "r.npz", protocols.match_records(gt, dets, chosen))
    records = load_records(tmp_path / "r.npz")
    rng = np.random.default_rng(seed)
    ones = np.ones(len(gt.names))
    plain = protocols.evaluate(gt, dets, chosen)
    for name, record in records.items():
        again = protocols.metrics_of(record, ones)
        assert again == pytest.approx(plain[name]["metrics"], abs=1e-10)
    # The cap of an image counts rows, so it stays the cap of each copy.
    for copies in (rng.integers(0, 4, len(gt.names)), rng.permutation([0, 0, 1, 3, 9])):
        copied = protocols.evaluate(*repeated(gt, dets, copies), chosen)
        for name, record in records.items():
            again = protocols.metrics_of(record, copies)
            wanted = copied[name]["metrics"]
            if wanted["AP"] is not None:
                assert again == pytest.approx(wanted, abs=1e-10), (name, copies)
                assert again["AP"] != plain[name]["metrics"]["AP"]


def test_fractional_weights_scale_freely():
    gt, dets = scene(3, ties=False)
    weights = np.random.default_rng(0).random(len(gt.names))
    for record in protocols.match_records(gt, dets).values():
        one, other = (protocols.metrics_of(record, w) for w in (weights, weights * 0.01))
        assert one == pytest.approx(other, abs=1e-9)
        assert one["AP"] != pytest.approx(protocols.metrics_of(record)["AP"], abs=1e-3)


@pytest.mark.parametrize("weight", [0.1, 1 / 3, 0.7])
@pytest.mark.parametrize("seed", SEEDS)
def test_one_fraction_for_all_images_changes_nothing(seed, weight):
    """Recalls that lie on one of COCO's points stay on their side of it."""
    gt, dets = scene(seed, ties=False)
    for name, record in protocols.match_records(gt, dets).items():
        plain = protocols.metrics_of(record)
        weights = np.full(len(gt.names), weight)
        assert protocols.metrics_of(record, weights) == pytest.approx(plain, abs=1e-9), name
        drawn = metric_draws(record, weights[None])
        assert {k: v[0] for k, v in drawn.items()} == pytest.approx(
            {k: plain[k] if plain[k] not in (-1, None) else np.nan for k in drawn},
            abs=1e-9, nan_ok=True,
        ), name  # fmt: skip


def test_sums_of_weights_are_exact_in_any_order():
    gt, dets = scene(3, ties=False)
    record = protocols.match_records(gt, dets)["coco"]
    rng = np.random.default_rng(0)
    given = rng.random((6, len(gt.names))) * [[1], [1], [1e-9], [1e-9], [1e9], [1e-300]]
    weights = summable(record, given)
    assert (np.abs(weights - given).max(1) <= 1e-12 * given.max(1)).all()
    taken = weights[:, record.image]
    exact = [math.fsum(row) for row in taken]
    for _ in range(5):
        order = rng.permutation(taken.shape[1])
        assert np.cumsum(taken[:, order], axis=1)[:, -1].tolist() == exact
    whole = rng.integers(0, 1000, len(gt.names)).astype(float)
    assert summable(record, whole).tolist() == whole.tolist()
    assert not summable(record, np.zeros(len(gt.names))).any()


@pytest.mark.parametrize(
    "weights", [np.ones(3), [1, 1, 1, 1, -1], [1, 1, 1, 1, np.nan]], ids=["few", "below 0", "nan"]
)
def test_wrong_weights_are_said(weights):
    record = visdrone.match_records(*scene(0))
    with pytest.raises(YoloAttnError, match="weights"):
        visdrone.metrics_of(record, weights)


@pytest.mark.parametrize("seed", SEEDS)
def test_errors_of_the_bins_are_all_there(seed):
    gt, dets = scene(seed)
    # The same rules as records have, at IoU 0.5, must give the same AP50.
    result = error_analysis(gt, dets, edges=RULES.edges, max_det=RULES.max_dets[-1])
    wanted = coco.evaluate(gt, dets, RULES)["AP50_by_area"]
    assert {name: row["AP50"] for name, row in result.items()} == pytest.approx(wanted, abs=1e-9)
    record = coco.match_records(gt, dets, RULES)
    for view, name in enumerate(record.views):
        false = int((record.outcome[view, 0] == 0).sum())
        assert sum(result[name]["count"][kind] for kind in KINDS[:-1]) == false
        assert all(gain >= -1e-9 for kind, gain in result[name]["dAP"].items() if kind != "missed")


def one_error(boxes, category, own=(10, 10, 20, 20)):
    """One true detection in a first image; what the test asks for in a second."""
    gt = GroundTruth(["a", "b"], {1: "x", 2: "y"}, [0, 0, 1], [own, own, own], [1, 2, 1])
    found = Detections(
        [0, 0, *[1] * len(boxes)],
        [own, own, *boxes],
        [1, 2, *category],
        [0.9, 0.3, *np.linspace(0.5, 0.4, len(boxes))],
    )
    return error_analysis(gt, found, (0, 100, 1000))["all"]


@pytest.mark.parametrize(
    ("kind", "boxes", "category", "counts"),
    [
        ("classification", [(10, 10, 20, 20)], [2], {"classification": 1}),
        ("localisation", [(20, 10, 20, 20)], [1], {"localisation": 1}),
        ("both", [(20, 10, 20, 20)], [2], {"both": 1, "missed": 1}),
        ("duplicate", [(10, 10, 20, 20), (11, 10, 20, 20)], [1, 1], {"duplicate": 1}),
        ("background", [(90, 90, 20, 20)], [1], {"background": 1, "missed": 1}),
        ("missed", [], [], {"missed": 1}),
    ],
)
def test_each_kind_of_error_is_told_from_the_others(kind, boxes, category, counts):
    row = one_error(boxes, category)
    assert {k: n for k, n in row["count"].items() if n} == counts
    if kind in ("classification", "localisation"):
        assert row["AP50"] + row["dAP"][kind] == pytest.approx(100)
    if kind == "missed":
        assert row["dAP"] == {
            **dict.fromkeys(KINDS, 0.0),
            "missed": pytest.approx(100 - row["AP50"]),
        }
    if kind in ("classification", "both"):
        assert row["dAP"][kind] > 0


def test_empty_inputs_score_nothing():
    gt, dets = scene(0)
    none = Detections([], [], [], [])
    for result in protocols.evaluate(gt, none).values():
        assert result["metrics"]["AP"] == 0
    nothing = GroundTruth(["a"], NUMBERS, [], [], [])
    for name, result in protocols.evaluate(nothing, none).items():
        assert result["metrics"]["AP"] == (None if name == "visdrone" else -1)
    empty = gt.keep(np.zeros(len(gt.boxes), bool))
    for name, result in protocols.evaluate(empty, dets).items():
        assert result["metrics"]["AP"] == (None if name == "visdrone" else -1)
    assert error_analysis(empty, dets)["all"]["AP50"] == -1


def test_what_does_not_fit_is_said():
    gt, dets = scene(0)

    def coco_500(*args):
        return coco.evaluate(*args, coco.COCO_500)

    for args, said in (
        ((replace(gt, sizes=None), dets), "sizes"),
        ((gt, replace(dets, image=dets.image + 3)), "of image"),
    ):
        for function in (visdrone.evaluate, coco_500, error_analysis):
            with pytest.raises(YoloAttnError, match=said):
                function(*args)
    with pytest.raises(YoloAttnError, match="not finite"):
        Detections([0], [[0, 0, np.inf, 1]], [1], [0.5])
    with pytest.raises(YoloAttnError, match="entries for"):
        Detections([0, 0], [[0, 0, 1, 1]], [1], [0.5])
    with pytest.raises(YoloAttnError, match="outside the"):
        GroundTruth(["a"], NUMBERS, [1], [[0, 0, 1, 1]], [1])


def test_records_that_are_broken_are_said(tmp_path):
    path = tmp_path / "r.npz"
    save_records(path, protocols.match_records(*scene(0)))
    data = path.read_bytes()
    for broken in (b"", b"text", data[: len(data) // 2]):
        path.write_bytes(broken)
        with pytest.raises(YoloAttnError, match="not match records"):
            load_records(path)
