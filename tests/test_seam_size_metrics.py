"""AP by size in `yolo val` and `yolo train`: for our models and data, and for nobody else."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.evaluation_sets import write_coco, write_model, write_plain
from tests.processes import python, yolo
from yolo_attn.data.coco import convert_coco
from yolo_attn.evaluation import protocols
from yolo_attn.evaluation.predict import predict
from yolo_attn.seam import size_metrics
from yolo_attn.seam.size_metrics import COLUMNS

QUIET = ("imgsz=160", "device=cpu", "workers=0", "plots=False")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """set/ as converted, plain/ the same without a trace of us, two checkpoints."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("coco", "ours", "stock"):
        (folder / name).mkdir()
    convert_coco(write_coco(folder / "coco"), folder / "set")
    write_plain(folder / "plain", folder / "set")
    write_model(folder / "ours")
    write_model(folder / "stock", block=False)
    return folder


def validated(place: Path, model: str, data: str, **args):
    """The validator of a `yolo val` in this process, and its columns."""
    from ultralytics import YOLO

    held = []
    net = YOLO(str(place / model / "model.pt"))
    net.add_callback("on_val_end", held.append)
    net.val(
        data=str(place / data / "data.yaml"), imgsz=160, device="cpu", plots=False, workers=0,
        project=str(place / "runs"), **args,
    )  # fmt: skip
    kept = vars(held[0]).get("_yolo_attn_sizes")
    return held[0], kept and kept.values


@pytest.mark.parametrize(
    ("model", "data", "switch", "there"),
    [
        ("ours", "plain", None, True),
        ("stock", "set", None, True),
        ("stock", "plain", None, False),
        ("stock", "plain", "1", True),
        ("ours", "set", "0", False),
    ],
)
def test_who_gets_the_columns(place, monkeypatch, model, data, switch, there) -> None:
    monkeypatch.delenv("YOLO_ATTN_SIZES", raising=False)
    if switch:
        monkeypatch.setenv("YOLO_ATTN_SIZES", switch)
    validator, values = validated(place, model, data)
    assert (values is not None) == there
    if there:
        assert list(values) == list(COLUMNS) and values["metrics/mAP_COCO(B)"] > 0


def test_a_sidecar_of_somebody_else_changes_nothing(place, tmp_path) -> None:
    shutil.copytree(place / "plain", tmp_path / "plain")
    shutil.copytree(place / "set" / "annotations", tmp_path / "plain" / "annotations")
    shutil.copytree(place / "stock", tmp_path / "stock")
    data = tmp_path / "plain" / "data.yaml"
    data.write_text(data.read_text().replace(str(place), str(tmp_path)))
    assert validated(tmp_path, "stock", "plain")[1] is None


@pytest.mark.parametrize("data", ["set", "plain"])
def test_columns_are_what_evaluate_gives(place, data) -> None:
    _, values = validated(place, "ours", data, max_det=500)
    found = predict(
        str(place / "ours" / "model.pt"), str(place / data / "data.yaml"), imgsz=160, device="cpu"
    )
    results = protocols.evaluate(found.truth.gt, found.dets)
    wanted = [results["coco"][n] for n in ("AP", "AP_small", "AP_medium", "AP_large")]
    wanted += [results["tiny"][f"AP_{n}"] for n in ("verytiny", "tiny", "small", "medium")]
    fractions = [v / 100 if v >= 0 else -1 for v in wanted]
    assert list(values.values()) == pytest.approx(fractions, abs=1e-12)
    assert -1 in fractions and sum(v > 0 for v in fractions) > 3


def test_predictions_of_a_class_that_the_dataset_lacks_are_left_out(place) -> None:
    validator, values = validated(place, "ours", "set")
    held = vars(validator)["_yolo_attn_sizes"]
    assert {0, 1} == {int(c) for rows in held.predictions.values() for c in rows[:, 5]}
    gt = replace(held.truth.gt, classes={7: "person"})
    held.truth = replace(held.truth, gt=gt, categories={1: 7})
    assert size_metrics._scores(validator, held)["metrics/mAP_small(B)"] > 0


def test_ultralytics_own_columns_stay(place) -> None:
    from ultralytics.models.yolo.detect.val import DetectionValidator

    validator, _ = validated(place, "ours", "set")
    for own in ({"metrics/mAP_small(B)": 0.7, "fitness": 0.1}, {"fitness": 0.1}):
        stats = size_metrics.get_stats(lambda v, own=own: dict(own), validator)
        assert stats["metrics/mAP_small(B)"] == own.get("metrics/mAP_small(B)", pytest.approx(
            vars(validator)["_yolo_attn_sizes"].values["metrics/mAP_small(B)"]
        ))  # fmt: skip
        assert set(stats) == {"fitness", *COLUMNS}
    assert DetectionValidator.get_stats.__code__.co_names  # still a plain function


def normal(done) -> str:
    """What was printed, without speeds, progress bars and dates."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", done.stdout + done.stderr)
    lines = [line.split("\r")[-1] for line in text.splitlines()]
    kept = [re.sub(r"[\d.]+(±[\d.]+)? ?(ms|[MG]B/s|KB)", "#", line) for line in lines]
    return "\n".join(line for line in kept if "━" not in line and "it/s" not in line)


def test_stock_val_on_a_plain_set_prints_the_same_bytes(place) -> None:
    args = (
        "detect", "val", f"model={place / 'stock' / 'model.pt'}", "exist_ok=True",
        f"data={place / 'plain' / 'data.yaml'}", *QUIET, f"project={place / 'same'}",
    )  # fmt: skip
    validated(place, "stock", "plain")  # settings and label cache are there
    on, off = yolo(*args, cwd=place), yolo(*args, cwd=place, YOLO_ATTN_DISABLE="1")
    assert normal(on) == normal(off) and re.search(r"all\s+6\s+", normal(on))
    assert "by size" not in normal(on)


def test_the_console_has_two_more_lines(place, monkeypatch) -> None:
    from ultralytics.utils import LOGGER

    validator, values = validated(place, "stock", "set")
    lines = []
    monkeypatch.setattr(LOGGER, "info", lines.append)
    size_metrics.print_results(lambda v: lines.append("all"), validator)
    assert lines[0] == "all" and lines[1].split()[-2:] == ["32-64", "px"]
    shown = [float(v) if v != "-" else -1 for v in lines[2].split()]
    assert shown == pytest.approx(list(values.values()), rel=0.01) and -1 in shown


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file) as opened:
        table = [[cell.strip() for cell in row] for row in csv.reader(opened)]
    assert {len(row) for row in table} == {len(table[0])}, "a row with other columns"
    return [dict(zip(table[0], row)) for row in table[1:]]


def train(place: Path, name: str, **args) -> Path:
    from ultralytics import YOLO

    YOLO(str(place / "ours" / "model.pt")).train(**{
        "data": str(place / "set" / "data.yaml"), "imgsz": 160, "epochs": 2, "batch": 6,
        "device": "cpu", "workers": 0, "plots": False, "optimizer": "AdamW", "lr0": 1e-6,
        "warmup_epochs": 0,
        "project": str(place / "runs"), "name": name, "exist_ok": True, **args,
    })  # fmt: skip
    (file,) = place.glob(f"**/{name}/results.csv")
    return file


def test_training_writes_them_each_epoch(place) -> None:
    rows = rows_of(train(place, "each"))
    assert list(rows[0])[-len(COLUMNS) :] == list(COLUMNS) and len(rows) == 2
    assert all(float(row["metrics/mAP_small(B)"]) > 0 for row in rows)
    assert all(float(row["metrics/mAP_large(B)"]) == -1 for row in rows)


def test_epochs_without_validation_have_the_same_columns(place) -> None:
    first, last = rows_of(train(place, "late", val=False))
    assert float(first["metrics/mAP_small(B)"]) == 0 < float(last["metrics/mAP_small(B)"])


@pytest.mark.slow
def test_a_resumed_training_goes_on_in_the_same_columns(place) -> None:
    stop = (
        "import sys\nfrom ultralytics import YOLO\nm = YOLO(sys.argv[1])\n"
        "def interrupt(trainer):\n    if trainer.epoch == 1: raise KeyboardInterrupt\n"
        "m.add_callback('on_train_epoch_start', interrupt)\n"
        "m.train(data=sys.argv[2], epochs=3, batch=6, name='cut', project=sys.argv[3], imgsz=160,"
        " device='cpu', workers=0, plots=False, optimizer='AdamW')\n"
    )
    where = (place / "ours" / "model.pt", place / "set" / "data.yaml", place / "runs")
    # Started without the columns, resumed with them: the file's header decides.
    for sizes, there in (("1", True), ("0", False)):
        shutil.rmtree(place / "runs" / "cut", ignore_errors=True)
        python("-c", stop, *map(str, where), cwd=place, ok=False, YOLO_ATTN_SIZES=sizes)
        (last,) = place.glob("**/cut/weights/last.pt")
        yolo("detect", "train", "resume", f"model={last}", cwd=place)
        rows = rows_of(last.parents[1] / "results.csv")
        assert len(rows) == 3 and (set(COLUMNS) <= set(rows[0])) == there


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, ["a", "metrics/x", *COLUMNS]),
        (["epoch", "a", "metrics/x"], ["a", "metrics/x"]),
        (["epoch", "a", "metrics/x", *COLUMNS], ["a", "metrics/x", *COLUMNS]),
    ],
)
def test_rows_fit_the_header(tmp_path, monkeypatch, header, expected) -> None:
    monkeypatch.setenv("YOLO_ATTN_SIZES", "1")
    file = tmp_path / "results.csv"
    if header:
        file.write_text(",".join(f"{name:>23}" for name in header) + "\n")  # as 8.3.0 writes it
    args = SimpleNamespace(task="detect", split="val")
    trainer = SimpleNamespace(csv=file, args=args, data={"path": tmp_path}, model=None)
    for given in ({}, dict.fromkeys(COLUMNS, 0.5)):
        written = []
        size_metrics.save_metrics(
            lambda t, m, written=written: written.append(m),
            trainer,
            {"a": 1, **given, "metrics/x": 2},
        )
        assert list(written[0]) == expected
    monkeypatch.setenv("YOLO_ATTN_SIZES", "0")
    stock = {"b": 1}
    if not header or "metrics/mAP_COCO(B)" not in header:
        size_metrics.save_metrics(lambda t, m: written.append(m), trainer, stock)
        assert written[-1] is stock


def test_ranks_gather_at_the_first(place, monkeypatch) -> None:
    import torch.distributed as dist
    import ultralytics.utils

    whole, values = validated(place, "ours", "set")
    held = vars(whole)["_yolo_attn_sizes"]
    parts = [size_metrics._Held(), size_metrics._Held()]
    for i, path in enumerate(held.predictions):
        parts[i % 2].predictions[path] = held.predictions[path]
        parts[i % 2].shapes[path] = held.shapes[path]

    def gather(own, out, dst):
        if out is not None:
            out[:] = [(part.predictions, part.shapes) for part in parts]

    monkeypatch.setattr(dist, "gather_object", gather)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    stats = []
    for rank in (1, 0):
        monkeypatch.setattr(ultralytics.utils, "RANK", rank)
        setattr(whole, "_yolo_attn_sizes", parts[rank])  # noqa: B010
        size_metrics.gather_stats(lambda v: None, whole)
        stats.append(len(parts[rank].predictions))
    assert stats == [3, 6]
    assert size_metrics._scores(whole, parts[0]) == values


@pytest.mark.slow
def test_two_processes_write_the_columns(place) -> None:
    worker = str(Path(__file__).with_name("ddp_worker.py"))
    python(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", worker,
        str(place / "ours" / "model.pt"), str(place / "set" / "data.yaml"), str(place / "ddp"),
        cwd=place, OMP_NUM_THREADS="1",
    )  # fmt: skip
    (file,) = place.glob("ddp/**/results.csv")
    (row,) = rows_of(file)
    # What rank 0 gathers is tested above; an epoch at the worker's learning rate finds nothing.
    assert list(row)[-len(COLUMNS) :] == list(COLUMNS)
    assert float(row["metrics/mAP_small(B)"]) >= 0 > float(row["metrics/mAP_large(B)"])
