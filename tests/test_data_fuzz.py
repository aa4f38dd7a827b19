"""Mutated VisDrone annotations: counted warnings or one error with file and line, never more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from yolo_attn.data.report import ConversionReport
from yolo_attn.data.stats_read import Faults, read_labels
from yolo_attn.data.visdrone import convert_visdrone, official_ground_truth
from yolo_attn.errors import YoloAttnError

from .test_data_convert import H, W, image
from .test_data_synthetic import digests

ROUNDS = 60
NUMBERS = "nan NaN inf -inf -1 0 -0 1e3 1e308 -1e308 1e400 1_0 0x1F 1.5 ٣ 99 -7".split()
ENCODINGS = ("utf-16", "utf-32", "utf-8-sig", "latin-1")


def clean(rng: np.random.Generator) -> str:
    rows = []
    for _ in range(int(rng.integers(1, 9))):
        box = [*rng.integers(-5, W, 2), *rng.integers(0, 15, 2)]
        rows.append(",".join(map(str, [*box, rng.integers(2), rng.integers(12), 0, 1])))
    return "\n".join(rows) + "\n"


def with_number(rng: np.random.Generator, text: str, numbers=NUMBERS) -> str:
    lines = text.splitlines()
    row, column = rng.integers(len(lines)), rng.integers(8)
    fields = lines[row].split(",")
    fields[column] = str(rng.choice(numbers))
    lines[row] = ",".join(fields)
    return "\n".join(lines)


def flipped(rng: np.random.Generator, text: str) -> bytes:
    data = bytearray(text.encode())
    for _ in range(int(rng.integers(1, 4))):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def without_columns(rng: np.random.Generator, text: str) -> str:
    lines = text.splitlines()
    row = rng.integers(len(lines))
    lines[row] = ",".join(lines[row].split(",")[: rng.integers(1, 8)])
    return "\n".join(lines)


def cut(rng: np.random.Generator, text: str) -> str:
    return text[: rng.integers(len(text))]


def with_junk(rng: np.random.Generator, text: str) -> str:
    at = rng.integers(len(text))
    junk = rng.choice(["\0", ",", "\r", "\n\n", " ", "\u2028", "\x0b", "é", "'", "\t", ";"])
    return text[:at] + str(junk) + text[at:]


def encoded(rng: np.random.Generator, text: str) -> bytes:
    return (text + "# é").encode(str(rng.choice(ENCODINGS)))


def oddly_formed(rng: np.random.Generator, text: str) -> str:
    end = str(rng.choice(["\n", "\r\n", ",\n", ",\r\n", "\n\n", "\r"]))
    rows = text.splitlines()
    return end.join([*rows, rows[0]])


MUTATIONS = {
    "number": with_number,
    "negative": lambda rng, text: with_number(rng, text, ["-5", "-1e5"]),
    "huge": lambda rng, text: with_number(rng, text, ["1e300", "99999999999999999999"]),
    "category 99": lambda rng, text: re.sub(r"^((?:[^,]*,){5})\d+", r"\g<1>99", text),
    "bytes flipped": flipped,
    "columns missing": without_columns,
    "cut": cut,
    "junk": with_junk,
    "encoding": encoded,
    "form": oddly_formed,
}


EXPECTED = {
    "negative": {"converted"},
    "huge": {"converted"},
    "category 99": {"converted"},
    "columns missing": {"refused"},
    "encoding": {"refused"},
    "form": {"converted"},
}


def check_result(report: ConversionReport, dst: Path, data: bytes) -> None:
    split = report.splits["val"]
    rows = [line for line in re.split(rb"[\r\n]+", data) if line.strip(b" \t\xef\xbb\xbf")]
    assert split.boxes + sum(split.dropped_boxes.values()) == len(rows)  # none lost silently
    labels = (dst / "labels" / "val" / "a.txt").read_text().split("\n")[:-1]
    assert len(labels) == split.boxes
    values = np.array([line.split() for line in labels], float).reshape(-1, 5)
    assert np.isfinite(values).all() and (values >= 0).all() and (values[:, 1:] <= 1).all()
    assert (values[:, 0] < 10).all() and (values[:, 3:] > 0).all()
    text = (dst / "annotations" / "val.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    truth, sizes = official_ground_truth(dst / "annotations" / "val.json")
    assert sizes == {"a": (W, H)} and len(truth["a"]) <= len(rows)
    lines = [*report.lines(), json.dumps(report.as_dict())]
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutated_annotations_are_converted_with_counts_or_refused_by_line(kind, tmp_path):
    src = tmp_path / "VisDrone2019-DET-val"
    image(src / "images" / "a.jpg", "RGB")
    (src / "annotations").mkdir()
    file = src / "annotations" / "a.txt"
    outcomes = []
    for seed in range(ROUNDS):
        rng = np.random.default_rng([sum(map(ord, kind)), seed])
        mutated = MUTATIONS[kind](rng, clean(rng))
        data = mutated if isinstance(mutated, bytes) else mutated.encode()
        file.write_bytes(data)
        before = digests(src)
        dst = tmp_path / f"dst{seed}"
        try:
            report = convert_visdrone(src, dst)
        except YoloAttnError as error:
            message = str(error)
            assert re.match(rf"{re.escape(str(file))} line \d+: ", message), message
            assert message.isprintable() and len(message) < len(str(file)) + 200, message
            assert not dst.exists()
            outcomes.append("refused")
        else:
            check_result(report, dst, data)
            outcomes.append("converted")
        assert digests(src) == before
    assert set(outcomes) == EXPECTED.get(kind, {"converted", "refused"})
    left = {p.name for p in tmp_path.iterdir()} - {src.name}
    assert left == {f"dst{i}" for i, outcome in enumerate(outcomes) if outcome == "converted"}


def test_mutated_labels_are_counted_by_the_statistics(tmp_path):
    file = tmp_path / "a.txt"
    content = {"names": {0: "a", 1: "b"}}
    for seed in range(300):
        rng = np.random.default_rng(seed)
        rows = [f"{c} {x:.4f} {y:.4f} 0.1 0.2" for c, x, y in rng.random((4, 3)) * [1.99, 0.9, 0.9]]
        rows = [f"{int(float(r[0]))}{r[r.index(' ') :]}" for r in rows]
        data = flipped(rng, "\n".join(rows))
        file.write_bytes(data)
        faults = Faults()
        for cls, w, h in read_labels(file, content, faults):
            assert cls in (0, 1) and 0 < w <= 1.01 and 0 < h <= 1.01
        assert all(line.isprintable() for line in faults.lines())
        assert file.read_bytes() == data
