"""Checkpoints of a trial: kept in pairs, moved along, and what they say of their training."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest

from yolo_attn.ablation.checkpoint_facts import moment, train_arguments, write_arguments
from yolo_attn.ablation.store import TRAIN, TrialFolder


def checkpoint(epoch: int, fitness: float, best: float) -> bytes:
    content = {"epoch": epoch, "best_fitness": best, "train_metrics": {"fitness": fitness}}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("best/data.pkl", pickle.dumps(content))
    return buffer.getvalue()


@pytest.fixture
def trial(tmp_path: Path) -> TrialFolder:
    (tmp_path / TRAIN / "weights").mkdir(parents=True)
    return TrialFolder(tmp_path)


def write(trial: TrialFolder, last: bytes, best: bytes, rows: int) -> None:
    weights = trial.path / TRAIN / "weights"
    (weights / "last.pt").write_bytes(last)
    (weights / "best.pt").write_bytes(best)
    lines = "".join(f"{i + 1},{i}\n" for i in range(rows))
    (trial.path / TRAIN / "results.csv").write_text(f"epoch,time\n{lines}")


@pytest.mark.parametrize("fitness", [0.2, 0.1])  # better, and as good: best.pt is written for both
def test_last_of_one_epoch_is_not_kept_with_best_of_another(
    trial: TrialFolder, fitness: float
) -> None:
    first = checkpoint(0, 0.1, 0.1)
    write(trial, first, first, 1)
    assert trial.keep_checkpoint()
    second = checkpoint(1, fitness, fitness)
    write(trial, second, first, 2)  # last.pt is written, best.pt is about to be
    assert not trial.keep_checkpoint()
    assert (trial.path / "safe" / "last.pt").read_bytes() == first
    write(trial, second, second, 2)
    assert trial.keep_checkpoint()
    worse = checkpoint(2, 0.05, fitness)
    write(trial, worse, second, 3)  # no new best.pt to come
    assert trial.keep_checkpoint()
    assert moment(trial.path / "safe" / "last.pt").epoch == 2
    assert moment(trial.path / "safe" / "best.pt").epoch == 1


def test_the_next_epochs_row_is_not_kept_with_the_last_ones_weights(trial: TrialFolder) -> None:
    first = checkpoint(0, 0.1, 0.1)
    write(trial, first, first, 2)
    assert trial.keep_checkpoint()
    assert (trial.path / "safe" / "results.csv").read_text() == "epoch,time\n1,0\n"


def test_a_checkpoint_of_the_end_is_no_start(trial: TrialFolder) -> None:
    stripped = checkpoint(-1, 0.1, 0.1)
    write(trial, stripped, stripped, 1)
    assert not trial.keep_checkpoint()


def test_nothing_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"epoch": 0, "best_fitness": Bomb()}))
    assert moment(tmp_path / "x.pt") == moment(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists() and train_arguments(tmp_path / "x.pt") is None


def test_a_real_checkpoint_says_when_and_how_and_learns_its_new_folder(tmp_path: Path) -> None:
    import numpy as np
    import torch
    from ultralytics.nn.tasks import DetectionModel

    file = tmp_path / "last.pt"
    torch.save(
        {
            "epoch": 3,
            "best_fitness": np.float64(0.25),
            "ema": DetectionModel("yolov8n.yaml", verbose=False),
            "train_args": {"lr0": 0.01, "save_dir": "/old", "project": "/old"},
            "train_metrics": {"fitness": 0.25},
        },
        file,
    )
    assert (moment(file).epoch, moment(file).best) == (3, 0.25)
    assert write_arguments(file, {"save_dir": "/new"})
    assert train_arguments(file) == {"lr0": 0.01, "save_dir": "/new", "project": "/old"}
    assert moment(file).epoch == 3
    file.write_bytes(b"no checkpoint")
    assert train_arguments(file) is None
