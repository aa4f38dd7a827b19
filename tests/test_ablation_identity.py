"""A trial is what it says: kept, resumed, refused or put aside by what it depends on."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.processes import PATIENCE
from tests.study_world import World, changed, ended
from yolo_attn.ablation import file_hashes
from yolo_attn.ablation.file_hashes import UNFINISHED, hash_file, hash_files
from yolo_attn.ablation.identity import Reader, RefusedError, training_differences
from yolo_attn.ablation.store import ARCHIVE, DONE, INVALID, STUDY, TrialFolder, read_json
from yolo_attn.cli import app
from yolo_attn.errors import YoloAttnError


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def trial(world: World, arm: str, seed: int = 0) -> TrialFolder:
    return TrialFolder(world.root / world.project / "s" / arm / str(seed))


def run(world: World, **options) -> tuple[int, str]:
    code = ended(world.start(**options))
    return code, world.said()


def tree(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p): p.read_bytes() for p in files}


def wait_for(there, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def broken(world: World, arm: str = "a") -> None:
    """Start a study and kill it when an arm has a checkpoint kept."""
    world.epoch = 0.4
    pid = world.start()
    wait_for((trial(world, arm).path / "safe" / "last.pt").is_file)
    assert ended(pid, 0) < 0 and trial(world, arm).status == "running"
    world.settle()
    world.epoch = 0.02


def test_a_mistyped_data_set_with_force_touches_nothing(world: World) -> None:
    assert run(world)[0] == 0
    before, world.spec = tree(world.root / "runs"), changed(world.spec, data="TYPO.yaml")
    code, said = run(world, force=True)
    assert code == 1 and "TYPO.yaml" in said
    assert tree(world.root / "runs") == before


def test_force_puts_trials_aside_and_deletes_none(world: World) -> None:
    assert run(world)[0] == 0
    old = trial(world, "a").record
    world.spec = changed(world.spec, lr0=0.1)
    assert run(world, force=True)[0] == 0
    (place,) = (world.root / "runs" / "s" / ARCHIVE).iterdir()
    assert read_json(place / "a" / "0" / "trial.json") == old
    assert (place / "a" / "0" / "train" / "weights" / "best.pt").is_file()
    assert trial(world, "a").record["identity"]["training"]["arguments"]["lr0"] == 0.1
    # Put aside within the same second, the folders still differ.
    assert run(world, force=True, only=["a"])[0] == 0
    assert len(list((world.root / "runs" / "s" / ARCHIVE).iterdir())) == 2


def test_a_broken_trial_is_never_resumed_under_other_arguments(world: World) -> None:
    world.spec = changed(world.spec, epochs=8)
    broken(world)
    before, old = tree(world.root / "runs"), world.spec
    world.spec = changed(world.spec, epochs=4, lr0=1e-4)
    code, said = run(world)
    assert code == 2 and "a/0: lr0 0.01, now 0.0001" in said.replace("epochs 8, now 4; ", "")
    assert "epochs 8, now 4" in said and tree(world.root / "runs") == before
    world.spec = old
    assert run(world)[0] == 0 and trial(world, "a").record["resumed"]
    assert trial(world, "a").record["arguments"]["effective"]["epochs"] == 8


def test_an_argument_at_its_default_is_the_same_training(world: World) -> None:
    assert run(world)[0] == 0
    before = trial(world, "a").record
    world.spec = changed(world.spec, lr0=0.01)
    assert run(world)[0] == 0 and trial(world, "a").record == before
    world.model("a", 2)  # a comment in the YAML
    assert run(world)[0] == 0 and trial(world, "a").record == before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.model("a", 1), "a/0: the model YAML changed since: - SE + CBAM at row 2"),
        (lambda w: w.label("train", 1, 2), "the labels of train changed since"),
        (lambda w: w.label("val", 0, 1), "the labels of val changed since"),
        (lambda w: w.weights(1), "the weights "),
        (lambda w: (w.root / "set/images/train/1.png").unlink(), "images of train are 1, were 2"),
        (
            lambda w: (w.root / "set/images/train/1.png").write_bytes(
                (w.root / "set/images/train/0.png").read_bytes()
            ),
            "the images of train changed since",
        ),
        (
            lambda w: (w.root / "set/data.yaml").write_text(
                "train: images/train\nval: images/val\nnames: {0: boat}\n"
            ),
            'the data YAML\'s names {"0": "ship"}, now {"0": "boat"}',
        ),
    ],
)
def test_what_changed_is_named_and_nothing_is_touched(world: World, edit, message: str) -> None:
    world.spec = changed(world.spec, weights=True)
    assert run(world)[0] == 0
    before = tree(world.root / "runs")
    edit(world)
    world.spec = changed(world.spec, seeds=2)
    code, said = run(world)
    assert code == 2 and message in said and "nothing was changed" in said
    assert tree(world.root / "runs") == before


def test_labels_emptied_after_the_first_trial_stop_the_others(world: World) -> None:
    world.epoch = 0.3
    pid = world.start()
    wait_for(lambda: trial(world, "a").status == DONE)
    world.label("train", 0, 2)
    assert ended(pid) == 3
    assert trial(world, "b").status in ("", INVALID)
    assert "the labels of train changed since" in world.said()


def test_a_trial_whose_labels_changed_under_it_is_invalid_and_trained_anew(world: World) -> None:
    world.epoch = 0.3
    pid = world.start()
    wait_for((trial(world, "a").path / "train" / "results.csv").is_file)
    world.label("train", 0, 2)
    assert ended(pid) == 3
    record = trial(world, "a").record
    assert record["status"] == INVALID and "metrics" not in record
    assert record["changed"]["training"] == ["the labels of train changed since"]
    world.label("train", 0, 0)
    assert run(world)[0] == 0 and "resumed" not in trial(world, "a").record
    assert list((world.root / "runs" / "s" / ARCHIVE).glob("*/a/0/trial.json"))


def test_a_protocol_is_added_without_training(world: World) -> None:
    assert run(world)[0] == 0
    before, world.spec = tree(world.root / "runs"), changed(world.spec, protocols=("coco", "tiny"))
    code, said = run(world)
    assert code == 2 and "not evaluated with protocol tiny; --re-evaluate does it" in said
    assert tree(world.root / "runs") == before, "study.json stays, so that the report still works"
    old = trial(world, "a").record
    assert run(world, re_evaluate=True)[0] == 0
    new = trial(world, "a").record
    assert set(new["metrics"]) == {"coco", "tiny"} and new["finished"] == old["finished"]
    assert (
        new["identity"]["evaluation"]["checkpoint"] == old["identity"]["evaluation"]["checkpoint"]
    )
    assert new["train_seconds"] == old["train_seconds"]
    # A study keeps its protocols.
    world.spec = changed(world.spec, protocols=("coco",))
    assert run(world)[0] == 0
    assert read_json(world.root / "runs/s" / STUDY)["study"]["protocols"] == ["coco", "tiny"]


def test_another_ground_truth_beside_the_labels_asks_for_an_evaluation(world: World) -> None:
    assert run(world)[0] == 0
    old = trial(world, "a").record["metrics"]
    world.sidecar(1)
    code, said = run(world)
    assert code == 2 and "annotations/val.json unset, now" in said and "--re-evaluate" in said
    assert run(world, re_evaluate=True)[0] == 0
    assert trial(world, "a").record["metrics"] != old


def test_weights_that_are_gone_or_others_are_not_evaluated_again(world: World) -> None:
    assert run(world)[0] == 0
    trial(world, "a").best.unlink()
    trial(world, "b").best.write_bytes(b"another")
    assert run(world)[0] == 0, "finished trials do not need them"
    world.sidecar(1)
    code, said = run(world, re_evaluate=True)
    assert code == 2 and "are not there any more" in said
    assert "is not the checkpoint that it trained" in said


def test_another_study_in_the_folder_is_refused_or_extended(world: World) -> None:
    assert run(world)[0] == 0
    world.spec = changed(world.spec, arms=("a", "c"))
    code, said = run(world)
    assert code == 2 and "has b, which this one lacks and lacks c" in said
    assert run(world, extend=True)[0] == 0
    stored = read_json(world.root / "runs/s" / STUDY)["study"]
    assert [arm["name"] for arm in stored["arms"]] == ["a", "b", "c"]
    assert all(trial(world, arm).status == DONE for arm in "abc")
    refused = RefusedError("another study")
    assert isinstance(refused, YoloAttnError) and refused.exit_code == 2
    answer = CliRunner().invoke(app, ["studies", str(world.root / "runs"), "--json"])
    (listed,) = json.loads(answer.stdout)
    assert (listed["name"], listed["done"], listed["trials"]) == ("s", 3, 3)
    shown = CliRunner().invoke(app, ["studies", str(world.root / "runs")]).stdout
    assert "a, b, c" in shown and "3 of 3" in shown


def test_a_study_that_was_moved_goes_on(world: World) -> None:
    world.spec = changed(world.spec, epochs=8)
    broken(world)
    (world.root / "runs").rename(world.root / "elsewhere")
    world.project = "elsewhere"
    assert run(world)[0] == 0
    assert trial(world, "a").status == DONE and not (world.root / "runs").exists()


def test_only_files_that_changed_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{i}.txt" for i in range(4)]
    for file in files:
        file.write_text(file.name)
    monkeypatch.setattr(file_hashes, "SETTLED", -1.0)
    read: list[Path] = []
    monkeypatch.setattr(file_hashes, "hash_file", lambda f: (read.append(f), hash_file(f))[1])
    first = hash_files(files, "a set")
    assert read == files and hash_files(files, "a set") == first and len(read) == 4
    files[2].write_text("X.txt")  # as long as before
    os.utime(files[2], ns=(0, files[1].stat().st_mtime_ns))
    again = hash_files(files, "a set")
    assert read[4:] == [files[2]]
    assert [a == b for a, b in zip(first, again)] == [True, True, False, True]


def test_a_large_set_shows_that_it_is_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(file_hashes, "PATIENCE", -1.0)
    (tmp_path / "x").touch()
    hash_files([tmp_path / "x"], "sirst.yaml")
    assert capsys.readouterr().err == "reading the 1 files of sirst.yaml\n"


def test_a_jpeg_that_ultralytics_mends_is_the_same_data(world: World) -> None:
    image = world.root / "set/images/train/2.jpg"
    from PIL import Image

    Image.new("RGB", (16, 16)).save(image)
    whole = image.read_bytes()
    image.write_bytes(whole[:-2])
    assert hash_file(image) == UNFINISHED
    before = Reader()._split(str(world.root / "set/data.yaml"), "train")
    image.write_bytes(whole)
    after = Reader()._split(str(world.root / "set/data.yaml"), "train", before)
    assert before == after and before["unfinished"] == ["images/train/2.jpg"]


def test_another_version_is_named_without_its_new_arguments() -> None:
    base = {"model": {}, "data": {"train": {"count": 1}, "val": {"count": 1}, "meaning": {}}}
    base["data"]["train"].update(names=0, content=0, labels=0)
    base["data"]["val"] = base["data"]["train"]
    then = {**base, "weights": None, "seed": 0, "arguments": {"lr0": 1}, "versions": {"torch": "2"}}
    now = {**then, "arguments": {"lr0": 1, "new": 0}, "versions": {"torch": "3"}}
    assert training_differences(then, now) == ['torch "2", now "3"']
