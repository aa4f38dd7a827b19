"""Study files, plans and controls: what is at fault is said before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from yolo_attn.ablation.older_trials import dataset_digest
from yolo_attn.ablation.plan import make_plan
from yolo_attn.ablation.runner import plan_study, with_more_seeds
from yolo_attn.ablation.spec import from_dict, read_study
from yolo_attn.ablation.store import DONE, STUDY, TrialFolder, write_json
from yolo_attn.ablation.studies import with_stored_seeds
from yolo_attn.cli import app
from yolo_attn.data.synthetic import make_smallshapes
from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml

ARMS = ["yolov8n.yaml", "yolov8n-gc.yaml"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("data") / "shapes"
    make_smallshapes(root, image_size=64, train_images=3, val_images=2, object_size=(6, 12))
    return str(root / "data.yaml")


def study_in(folder: Path, data: str, **more):
    return from_dict({"arms": ARMS, "data": data, "project": str(folder), **more})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"armz": []}, "unknown key 'armz', did you mean 'arms'?"),
        ({"arms": []}, "`arms` is missing"),
        ({"arms": ["a.yaml"]}, "at least two arms"),
        ({"arms": ["a.yaml", "b/a.yaml"]}, "two arms are named 'a'"),
        ({"arms": ["a.yaml", "b.pt"]}, "arm 2: model 'b.pt' is not a model YAML"),
        ({"arms": ["a.yaml", {"nmae": "b", "model": "b.yaml"}]}, "unknown key 'nmae'"),
        ({"arms": ["a.yaml", {"model": "b.yaml", "args": {"epochs": 3}}]}, "part of the budget"),
        ({"arms": ["a.yaml", {"name": "../b", "model": "b.yaml"}]}, "is also a folder"),
        ({"baseline": "c"}, "baseline 'c' is no arm"),
        ({"seeds": 0}, "seeds 0"),
        ({"seeds": [1, 1]}, "seeds \\[1, 1\\]"),
        ({"seeds": "three"}, "seeds 'three'"),
        ({"train": {"epoch": 3}}, "'epoch' is no argument of this Ultralytics, did you mean"),
        ({"train": {"batch": -1}}, "lets Ultralytics choose one for each arm"),
        ({"train": {"seed": 3}}, "seed is not set here but by the study's `seeds`"),
        ({"train": {"pretrained": "x.pt"}}, "by the study's `weights`"),
        ({"match": "size"}, "match: 'size' \\(accepted: params, flops\\)"),
        ({"protocols": ["voc"]}, "unknown protocol 'voc'"),
        ({"draws": 10}, "draws: 10"),
        ({"after_crash": "cry"}, "'cry' \\(accepted: resume, restart\\)"),
    ],
)
def test_a_faulty_study_is_one_sentence(content: dict, message: str) -> None:
    base = {"arms": ["a.yaml", "b.yaml"], "data": "d.yaml"}
    with pytest.raises(YoloAttnError, match=message) as error:
        from_dict({**base, **content})
    assert "\n" not in str(error.value)


def test_a_study_file_and_what_is_typed_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "p2.yaml"
    file.write_text(
        "arms: {base: yolov8n.yaml, gc: {model: yolov8n-gc.yaml, args: {lr0: 0.02}}}\n"
        "data: d.yaml\ntrain: {epochs: 100, imgsz: 640}\nmatch: params\n"
    )
    study = read_study(file, {"train": {"epochs": 3}, "seeds": [4, 7]})
    assert study.name == "p2" and study.baseline == "base" and study.seeds == (4, 7)
    assert study.train == {"epochs": 3, "imgsz": 640} and study.match == ("params",)
    assert [arm.name for arm in study.arms] == ["base", "gc"]
    assert from_dict(study.as_dict()) == study
    file.write_text("arms: [")
    with pytest.raises(YoloAttnError, match="not a YAML file"):
        read_study(file)
    with pytest.raises(YoloAttnError, match="cannot be read"):
        read_study(tmp_path / "none.yaml")


def test_the_plan_shares_everything_but_the_model_and_the_seed(tmp_path: Path, data: str) -> None:
    train = {"epochs": 2, "imgsz": 64, "batch": 2}
    plan = make_plan(study_in(tmp_path, data, seeds=2, train=train, name="s"))
    assert [(job.arm, job.seed) for job in plan.jobs] == [
        ("yolov8n", 0), ("yolov8n-gc", 0), ("yolov8n", 1), ("yolov8n-gc", 1),
    ]  # fmt: skip
    own = ("model=", "seed=", "project=")
    shared = {tuple(w for w in job.train if not w.startswith(own)) for job in plan.jobs}
    assert len(shared) == 1 and "pretrained=False" in next(iter(shared))
    assert not plan.flags and plan.images == 3
    assert not (tmp_path / "s").exists(), "a plan writes nothing"
    assert plan.arms["yolov8n-gc"]["parameters"] > plan.arms["yolov8n"]["parameters"]


def test_what_arms_do_not_share_is_flagged(tmp_path: Path, data: str) -> None:
    arms = [ARMS[0], {"model": ARMS[1], "args": {"mosaic": 0.0, "lr0": 0.1}}]
    plan = make_plan(from_dict({"arms": arms, "data": data, "project": str(tmp_path)}))
    assert "arm yolov8n-gc has its own augmentation mosaic=0.0" in plan.flags
    assert "arm yolov8n-gc has its own training argument lr0=0.1" in plan.flags


def test_an_arm_may_have_a_loss_of_its_own(tmp_path: Path, data: str) -> None:
    arms = [
        ARMS[0],
        {"model": ARMS[0], "loss": "ciou"},
        {"model": ARMS[0], "loss": {"box": "mpdiou", "nwd": 0.5, "cls": "slide"}},
        {"model": ARMS[0], "loss": "wiou", "name": "wise"},
    ]
    content = {"arms": arms, "data": data, "project": str(tmp_path), "seeds": 1, "name": "s"}
    study = from_dict(content)
    names = ["yolov8n", "yolov8n-ciou", "yolov8n-mpdiou-nwd-slide", "wise"]
    assert [arm.name for arm in study.arms] == names
    assert from_dict(study.as_dict()) == study
    plan = make_plan(study)
    models = [next(w[6:] for w in job.train if w.startswith("model=")) for job in plan.jobs]
    assert models[0] == ARMS[0] and len(set(models)) == 4
    written = load_model_yaml(models[3])
    assert written["loss"] == "wiou" and written["scale"] == "n"
    stock = load_model_yaml(ARMS[0])
    assert (written["backbone"], written["head"]) == (stock["backbone"], stock["head"])
    assert [job.manifest["loss"] and job.manifest["loss"]["box"] for job in plan.jobs] == [
        None, "ciou", "mpdiou", "wiou",
    ]  # fmt: skip
    assert plan.arms["wise"]["parameters"] == plan.arms["yolov8n"]["parameters"]
    text = " ".join(plan.flags)
    assert "yolov8n-ciou trains with the loss: box ciou; class bce (what Ultralytics" in text
    assert "arm wise trains with the loss: box wiou, wise v3" in text
    # Another loss under the same name is another training.
    again = make_plan(from_dict({**content, "arms": [*arms[:3], {**arms[3], "loss": "siou"}]}))
    assert again.jobs[3].train != plan.jobs[3].train
    with pytest.raises(YoloAttnError, match="arm 2: loss: 'cio' is no loss"):
        from_dict({**content, "arms": [ARMS[0], {"model": ARMS[0], "loss": "cio"}]})


def test_faults_are_found_before_any_training(tmp_path: Path, data: str) -> None:
    (tmp_path / "bad.yaml").write_text("base: yolov8.yaml\ninsert:\n  - [P5, 1, NonLocl, []]\n")
    bad = study_in(tmp_path, data, arms=[ARMS[0], str(tmp_path / "bad.yaml")])
    with pytest.raises(YoloAttnError, match="arm 'bad' does not build.*NonLocal"):
        make_plan(bad)
    with pytest.raises(YoloAttnError, match="none.yaml"):
        make_plan(study_in(tmp_path, str(tmp_path / "none.yaml")))
    with pytest.raises(YoloAttnError, match="weights none.pt are not there"):
        make_plan(study_in(tmp_path, data, weights="none.pt"))
    with pytest.raises(YoloAttnError, match="--only x\\*: names no trial"):
        plan_study(study_in(tmp_path, data), only=["x*"])


def test_results_of_another_version_or_data_are_refused_and_kept(tmp_path: Path, data: str) -> None:
    study = study_in(tmp_path, data, name="s", seeds=1)
    (job, _) = make_plan(study).jobs
    folder = TrialFolder(Path(job.folder))
    # As the releases wrote it that recorded no identity.
    record = {"status": DONE, "command": job.train, **json.loads(json.dumps(job.manifest))}
    record["dataset"]["sha256"] = dataset_digest(data, "val")[1]
    metrics = {name: {"metrics": {}} for name in study.protocols}
    write_json(folder.path / "trial.json", {**record, "metrics": metrics})
    (flag,) = plan_study(study).flags
    assert flag.startswith("1 trials of an older release") and flag.endswith("yolov8n/0")
    for change, message in (
        ({"versions": {**record["versions"], "ultralytics": "8.0.1"}}, "ultralytics 8.0.1, this"),
        ({"dataset": {"data": data, "sha256": "0"}}, "another state of"),
        ({"command": [*job.train, "lr0=1"]}, r"other arguments \(lr0=1\)"),
    ):
        write_json(folder.path / "trial.json", {**record, **change})
        before = (folder.path / "trial.json").read_bytes()
        with pytest.raises(YoloAttnError, match=message):
            plan_study(study)
        assert (folder.path / "trial.json").read_bytes() == before
    plan = plan_study(study, force=True, only=["yolov8n/0"])
    assert plan.aside == [folder.path] and folder.status == DONE, "a plan touches nothing"


@pytest.mark.parametrize("older", [False, True])
def test_a_study_with_a_control_may_be_moved(tmp_path: Path, data: str, older: bool) -> None:
    more = {"match": "params", "train": {"imgsz": 64}, "seeds": 1, "name": "s"}
    study = study_in(tmp_path / "runs", data, **more)
    for job in make_plan(study).jobs:
        manifest = json.loads(json.dumps(job.manifest))
        record = {"status": DONE, "command": job.train, "identity": job.identity, **manifest}
        if older:
            record["dataset"]["sha256"] = dataset_digest(data, "val")[1]
            del record["identity"]
        metrics = {name: {"metrics": {}} for name in study.protocols}
        write_json(Path(job.folder) / "trial.json", {**record, "metrics": metrics})
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    plan = plan_study(study_in(tmp_path / "elsewhere", data, **more))
    assert len(plan.jobs) == 3 and set(plan.states.values()) == {"finished"}


def test_seeds_that_were_added_stay(tmp_path: Path, data: str) -> None:
    study = study_in(tmp_path, data, name="s", seeds=[0, 5])
    more = with_more_seeds(study, 2)
    assert more.seeds == (0, 5, 1, 2)
    write_json(study.folder / STUDY, {"study": more.as_dict()})
    assert with_stored_seeds(study).seeds == (0, 5, 1, 2)


def test_the_digest_sees_labels_and_images(tmp_path: Path) -> None:
    make_smallshapes(
        tmp_path / "s", image_size=64, train_images=2, val_images=1, object_size=(6, 9)
    )
    data = str(tmp_path / "s" / "data.yaml")
    count, first = dataset_digest(data, "val")
    assert count == 2 and dataset_digest(data, "val")[1] == first
    label = tmp_path / "s" / "labels" / "train" / "00000.txt"
    label.write_text(label.read_text() + "0 0.5 0.5 0.1 0.1\n")
    assert dataset_digest(data, "val")[1] != first


@pytest.mark.parametrize("kind", ["params", "flops"])
def test_a_control_costs_what_the_dearest_arm_costs(tmp_path: Path, data: str, kind: str) -> None:
    arms = ["yolov8n.yaml", "yolov8n-p2.yaml", {"name": "big", "model": "yolov8s.yaml"}]
    study = study_in(tmp_path, data, arms=arms, match=[kind], train={"imgsz": 64})
    plan = make_plan(study)
    key = {"params": "parameters", "flops": "gflops"}[kind]
    name = f"yolov8n-match-{kind}"
    assert plan.study.arms[-1].name == name and plan.study.arms[-1].matched == kind
    assert plan.arms[name][key] == pytest.approx(plan.arms["big"][key], rel=0.06)
    assert Path(plan.study.arms[-1].model).is_file()
    assert any(flag.startswith(f"{name} is the baseline, widened") for flag in plan.flags)
    # Planned again, from disk, it is the same arm, not a second control.
    again = make_plan(study)
    assert [job.train for job in again.jobs] == [job.train for job in plan.jobs]


def test_the_command_line(tmp_path: Path, data: str) -> None:
    runner = CliRunner()

    def run(*words: str):
        return runner.invoke(app, ["ablate", *words, "--project", str(tmp_path)])

    typed = ["--models", ",".join(ARMS), "--data", data, "--seeds", "2", "epochs=3", "imgsz=64"]
    answer = json.loads(run(*typed, "--dry-run", "--json").stdout)
    assert len(answer["trials"]) == 4 and answer["estimate"]["seconds"] > 0
    assert answer["seconds"] is None, "from finished trials alone"
    assert all("epochs=3" in t["command"] for t in answer["trials"])
    for words, message in (
        ([], "give one study file, or --models"),
        (["a.yaml", *typed], "give one study file, or --models"),
        ([*typed, "epoch=3"], "did you mean 'epochs'"),
        ([*typed, "--executor", "slurm"], "accepted: local, ray"),
        ([*typed, "--address", "auto"], "--address goes with"),
        ([*typed[:4], "--seeds", "x"], "--seeds 'x'"),
    ):
        result = run(*words)
        assert isinstance(result.exception, YoloAttnError) and message in str(result.exception)
    for command in ("ablate", "report"):
        assert f"Example: yolo-attn {command}" in runner.invoke(app, [command, "--help"]).stdout
    result = runner.invoke(app, ["report", str(tmp_path)])
    assert "no study.json there" in str(result.exception)
