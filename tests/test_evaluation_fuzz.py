"""Mutated files: a result with counted warnings, or one error that names file and place."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import pytest

from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation import protocols
from yolo_attn.evaluation.coco_files import read_coco
from yolo_attn.evaluation.visdrone_files import read_visdrone

from .test_data_synthetic import digests

CASES = Path(__file__).parent / "protocol"
RUNS = 250  # of each format
NUMBERS = ["nan", "inf", "-inf", "-7", "1e308", "9" * 400, "0", "1_0", "", "x", "2.5", "99", "-0.0"]


def flip_bytes(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def empty(data: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"", b"\n\r\n", b" "])


def other_encoding(data: bytes, rng: random.Random) -> bytes:
    return data.decode().encode(rng.choice(["utf-16", "utf-16-be", "utf-8-sig", "utf-32"]))


def binary(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(200)


def change_value(data: bytes, rng: random.Random) -> bytes:
    """A value of a text file; needs lines of columns."""
    lines = data.decode().splitlines()
    row = rng.randrange(len(lines))
    values = lines[row].split(",")
    values[rng.randrange(len(values))] = rng.choice(NUMBERS)
    lines[row] = ",".join(values)
    return "\n".join(lines).encode()


def fewer_columns(data: bytes, rng: random.Random) -> bytes:
    lines = data.decode().splitlines()
    row = rng.randrange(len(lines))
    lines[row] = ",".join(lines[row].split(",")[: rng.randint(0, 7)])
    return "\r\n".join(lines).encode()


def more_columns(data: bytes, rng: random.Random) -> bytes:
    lines = data.decode().splitlines()
    lines[rng.randrange(len(lines))] += rng.choice([",", ",,", ",1", ",1,2", " ;"])
    return "\n".join(lines).encode()


def change_json(data: bytes, rng: random.Random) -> bytes:
    """A value somewhere in a JSON file: another number, type or nothing."""
    content = json.loads(data)
    odd = [math.nan, math.inf, -3, 0, 1e308, 10**400, 99, 2**63, None, "x", [], {}, True, 0.5]
    odd += [[1, 2, 3], [1, 2, -3, -4], ["a", 1, 2, 3]]
    at = content
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = rng.choice(keys)
        if not isinstance(at[key], (dict, list)) or not at[key] or rng.random() < 0.08:
            break
        at = at[key]
    if rng.random() < 0.2:
        del at[key]
    elif rng.random() < 0.1:
        at[key] = at[rng.choice(keys)]
    else:
        at[key] = rng.choice(odd)
    return json.dumps(content).encode()


BYTES = [flip_bytes, cut, empty, other_encoding, binary]
TEXT = [*BYTES, *[change_value] * 6, *[fewer_columns] * 3, more_columns]
JSON = [*BYTES, *[change_json] * 8]


def outcome(read, folder: Path, target: Path) -> str:
    """What happened: "scored", "warned" or the error; anything else fails the test."""
    try:
        gt, dets, warnings = read()
        results = protocols.evaluate(gt, dets)
    except YoloAttnError as error:
        text = str(error)
        assert str(target) in text and "\n" not in text and len(text) < 600, text
        return "error"
    for result in results.values():
        for value in result["metrics"].values():
            assert value is None or value == -1 or 0 <= value <= 100 + 1e-9, result["metrics"]
    assert all(n > 0 for n in warnings.counts.values())
    return "warned" if warnings.counts else "scored"


@pytest.fixture(scope="module")
def visdrone(tmp_path_factory) -> Path:
    """Two images of case3: sorted, regions, ignored boxes."""
    folder = tmp_path_factory.mktemp("visdrone")
    sizes = json.loads((CASES / "case3" / "sizes.json").read_text())
    names = sorted(sizes)[:2]
    for part in ("annotations", "detections"):
        (folder / part).mkdir()
        for name in names:
            shutil.copy(CASES / "case3" / part / f"{name}.txt", folder / part)
    (folder / "sizes.json").write_text(json.dumps({name: sizes[name] for name in names}))
    return folder


@pytest.fixture(scope="module")
def small_coco(tmp_path_factory) -> Path:
    """Three images of coco1."""
    folder = tmp_path_factory.mktemp("coco")
    gt = json.loads((CASES / "coco1" / "gt.json").read_text())
    dets = json.loads((CASES / "coco1" / "dets.json").read_text())
    gt["images"] = gt["images"][:3]
    ids = {image["id"] for image in gt["images"]}
    gt["annotations"] = [a for a in gt["annotations"] if a["image_id"] in ids][:40]
    (folder / "gt.json").write_text(json.dumps(gt))
    some = [d for d in dets if d["image_id"] in ids][:80]
    (folder / "dets.json").write_text(json.dumps(some))
    return folder


def run(folder: Path, tmp_path: Path, read, mutations: dict[str, list], seed: int) -> list[str]:
    """Mutate one file at a time in a copy; the copy must not change while it is read."""
    rng = random.Random(seed)
    seen = []
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    files = sorted(p for p in copy.rglob("*") if p.is_file())
    for _ in range(RUNS):
        target = rng.choice(files)
        original = target.read_bytes()
        mutate = rng.choice(mutations[target.suffix])
        target.write_bytes(mutate(original, rng))
        before = digests(copy)
        seen.append(outcome(lambda: read(copy), copy, target))
        assert digests(copy) == before
        target.write_bytes(original)
    return seen


def read_copy(folder: Path):
    return read_visdrone(folder / "annotations", folder / "detections", folder / "sizes.json")


def read_copy_coco(folder: Path):
    return read_coco(folder / "gt.json", folder / "dets.json")


def test_mutated_visdrone_files_give_a_result_or_one_error(visdrone, tmp_path):
    seen = run(visdrone, tmp_path, read_copy, {".txt": TEXT, ".json": JSON}, 0)
    assert {kind: seen.count(kind) > 10 for kind in set(seen)} == {"error": True, "warned": True}


def test_mutated_coco_files_give_a_result_or_one_error(small_coco, tmp_path):
    seen = run(small_coco, tmp_path, read_copy_coco, {".json": JSON}, 1)
    assert {kind: seen.count(kind) > 10 for kind in ("error", "scored")} == {
        "error": True,
        "scored": True,
    }
