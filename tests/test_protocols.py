"""Every number of the golden files: the VisDrone toolkit under Octave, and pycocotools."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from yolo_attn.evaluation import coco, protocols, visdrone
from yolo_attn.evaluation.coco import COCO, COCO_500, TINY, CocoRules
from yolo_attn.evaluation.coco_files import read_coco
from yolo_attn.evaluation.notes import Warnings
from yolo_attn.evaluation.records import load_records, save_records
from yolo_attn.evaluation.submission import write_visdrone
from yolo_attn.evaluation.visdrone_files import read_results, read_visdrone

from .processes import python

CASES = Path(__file__).parent / "protocol"
VISDRONE = 1e-6  # percent
PYCOCOTOOLS = 1e-9  # fractions
OURS = {"coco": COCO, "coco_dense500": COCO_500, "aitod_bins_2_8_16_32_64": TINY}


def expected_of(case: Path) -> dict:
    return json.loads((case / "expected.json").read_text())


def read_case(case: Path):
    return read_visdrone(case / "annotations", case / "detections", case / "sizes.json")


def close(found, wanted, tolerance: float) -> None:
    """Nested lists, dicts and numbers; None only where None is wanted."""
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            close(found[key], value, tolerance)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted):
            close(one, other, tolerance)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=tolerance, rel=0)
    else:
        assert found == wanted


def test_visdrone_equals_the_toolkit(visdrone_case):
    gt, dets, _ = read_case(visdrone_case)
    found, wanted = visdrone.evaluate(gt, dets), expected_of(visdrone_case)
    for key in (
        "metrics",
        "unweighted_mean",
        "per_class",
        "AP_matrix",
        "AR_matrix",
        "kept",
        "iou_thresholds",
        "max_dets",
        "image_order",
    ):
        close(found[key], wanted[key], VISDRONE)
    assert all(found[key] == value for key, value in found["metrics"].items())


def test_visdrone_records_give_the_same_metrics(visdrone_case, tmp_path):
    gt, dets, _ = read_case(visdrone_case)
    save_records(
        tmp_path / "r.npz", protocols.match_records(gt, dets, protocols.pick(["visdrone"]))
    )
    records = load_records(tmp_path / "r.npz")["visdrone"]
    close(protocols.metrics_of(records), expected_of(visdrone_case)["metrics"], VISDRONE)


def as_percent(value):
    """Golden COCO values are fractions; -1 says that there are no objects."""
    if isinstance(value, dict):
        return {key: as_percent(v) for key, v in value.items()}
    if isinstance(value, list):
        return [as_percent(v) for v in value]
    return -1.0 if value == -1 else value * 100


def variants_of(case: Path) -> dict[str, tuple[CocoRules, dict]]:
    """Name -> rules as its file states them, numbers."""
    variants = expected_of(case)["variants"]
    out = {}
    for name, wanted in variants.items():
        ranges = list(wanted["params"]["areaRng"].values())
        edges = [math.sqrt(area) for area in (ranges[0][0], *(high for _, high in ranges))]
        out[name] = (CocoRules(name, tuple(wanted["params"]["maxDets"]), tuple(edges)), wanted)
    return out


def test_coco_equals_pycocotools(coco_case):
    gt, dets, _ = read_coco(coco_case / "gt.json", coco_case / "dets.json")
    for name, (rules, wanted) in variants_of(coco_case).items():
        found = coco.evaluate(gt, dets, OURS.get(name, rules))
        close(found["params"], wanted.pop("params"), 0)
        wanted.pop("pycocotools_summarize_stats", None)  # the same numbers, -1 for the AP
        assert {"AP", "AP50", "AP75", "AP_small", "AR_1", "per_class"} <= set(wanted)
        close(found, as_percent(wanted), 100 * PYCOCOTOOLS)


def test_coco_records_give_the_same_metrics(coco_case, tmp_path):
    gt, dets, _ = read_coco(coco_case / "gt.json", coco_case / "dets.json")
    for rules, wanted in variants_of(coco_case).values():
        save_records(tmp_path / "r.npz", {"x": coco.match_records(gt, dets, rules)})
        found = protocols.metrics_of(load_records(tmp_path / "r.npz")["x"])
        assert len(found) >= 12
        close(found, as_percent({name: wanted[name] for name in found}), 100 * PYCOCOTOOLS)


def command(*args: str | Path, ok: bool = True):
    return python("-m", "yolo_attn.cli", "evaluate", *map(str, args), ok=ok)


def test_the_command_prints_the_golden_numbers_of_visdrone():
    case = CASES / "case2"
    done = command(
        *("--protocol", "visdrone", "--gt", case / "annotations", "--pred", case / "detections"),
        *("--sizes", case / "sizes.json", "--json"),
    )
    found, wanted = json.loads(done.stdout), expected_of(case)
    close(found, wanted["metrics"], VISDRONE)
    close(found["AP_matrix"], wanted["AP_matrix"], VISDRONE)


def test_the_command_prints_the_golden_numbers_of_coco():
    case = CASES / "coco1"
    done = command(
        *("--protocol", "coco", "--gt", case / "gt.json", "--pred", case / "dets.json"),
        *("--max-dets", "1,100,1500", "--bins", "2,8,16,32,64", "--json"),
    )
    found = json.loads(done.stdout)
    wanted = as_percent(expected_of(case)["variants"]["aitod_bins_2_8_16_32_64"]["per_class"])
    close(found["per_class"], wanted, 100 * PYCOCOTOOLS)
    assert found["AP_verytiny"] == pytest.approx(3.950044073034754, abs=1e-7)


def test_the_command_shows_all_protocols_and_writes_its_files(tmp_path):
    case = CASES / "case2"
    files = {
        "--errors": tmp_path / "errors.png",
        "--records": tmp_path / "records.npz",
        "--save-visdrone": tmp_path / "submission",
    }
    done = command(
        *("--gt", case / "annotations", "--pred", case / "detections"),
        *("--sizes", case / "sizes.json"),
        *(part for pair in files.items() for part in pair),
    )
    for title in ("COCO, 100", "COCO-500, 500", "tiny, 1500", "VisDrone, 500", "plain class mean"):
        assert title in done.stdout
    assert "27.19" in done.stdout and "ignored regions" in done.stderr
    assert files["--errors"].read_bytes().startswith(b"\x89PNG")
    assert set(load_records(files["--records"])) == set(protocols.PROTOCOLS)
    # Sorted by score, the caps keep other rows than in case2; the rows themselves are the same.
    gt, dets, warnings = read_case(case)
    again = read_results(files["--save-visdrone"], gt.names, warnings)
    for name in ("score", "category"):
        one, other = (np.sort(getattr(d, name)) for d in (dets, again))
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["--protocol", "voc"],
            "unknown protocol 'voc' (accepted: coco, coco-500, tiny, visdrone)",
        ),
        (["--protocol", "visdrone", "--bins", "0,8"], "set one COCO protocol"),
        (["--protocol", "coco", "--bins", "8,0"], "rising edges"),
        (["--protocol", "coco", "--bins", "a"], "accepted are numbers with commas"),
        (["--protocol", "coco", "--max-dets", "0,10"], "whole numbers of 1 or more"),
        (["--protocol", "coco", "--max-dets", "1.5"], "whole numbers of 1 or more"),
        ([], "have ignored regions; give the images' sizes"),
        (["--sizes", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--pred", "nowhere"], "nowhere: no such file or folder"),
        (["--pred", str(CASES / "coco1" / "dets.json")], "give two folders"),
    ],
)
def test_wrong_options_are_one_line(args, said):
    from yolo_attn.errors import YoloAttnError
    from yolo_attn.evaluation.command import evaluate_command

    given = dict(zip(args[::2], args[1::2]))
    with pytest.raises(YoloAttnError) as raised:
        evaluate_command(
            model=None,
            gt=CASES / "case2" / "annotations",
            pred=Path(given.get("--pred", CASES / "case2" / "detections")),
            protocol=[given["--protocol"]] if "--protocol" in given else None,
            sizes=Path(given["--sizes"]) if "--sizes" in given else None,
            max_dets=given.get("--max-dets"),
            bins=given.get("--bins"),
            errors=None,
            records=None,
            save_visdrone=None,
            slice_size=None,
            slice_overlap=None,
            as_json=True,
        )
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_result_files_are_sorted_capped_and_exact(tmp_path):
    rng = np.random.default_rng(0)
    n = 1300
    image = rng.integers(0, 2, n)
    boxes, score = rng.uniform(0, 500, (n, 4)), rng.choice(rng.random(200), n)
    dets = visdrone.Detections(image, boxes, rng.integers(0, 12, n), score)
    left_out = write_visdrone(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], dets)
    lines = [(tmp_path / f"{x}.txt").read_text().splitlines() for x in "abc"]
    assert [len(rows) for rows in lines] == [500, 500, 0] and left_out == n - 1000
    again = read_results(tmp_path, ("a", "b", "c"), warnings := Warnings())
    for i in (0, 1):
        rows = np.flatnonzero((image == i) & np.isin(dets.category, range(1, 11)))
        rows = rows[np.argsort(-score[rows], kind="stable")][:500]
        mine = again.image == i
        assert np.array_equal(again.boxes[mine], boxes[rows])
        assert np.array_equal(again.score[mine], score[rows])
    assert not warnings.counts
