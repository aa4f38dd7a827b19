"""Whatever a user edits, kills or mistypes: no result is lost, and every number is true."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.study_world import (
    ARMS,
    World,
    beginning,
    changed,
    ended,
    expected,
    labels_of,
    number,
    truth_of,
)
from yolo_attn.ablation.identity import Reader, Source, digest
from yolo_attn.ablation.store import DONE, STUDY, read_json

STEPS: Counter[str] = Counter()
SECONDS = st.floats(0.0, 1.0)
VARIANT = st.integers(0, 2)
EDITS = st.one_of(
    st.tuples(st.just("model"), st.sampled_from(ARMS), VARIANT),
    st.tuples(st.just("label"), st.sampled_from(["train", "val"]), st.just(0), VARIANT),
    st.tuples(st.just("weights"), st.integers(0, 1)),
    st.tuples(st.just("sidecar"), st.integers(0, 1)),
)
WISHES = st.one_of(
    st.fixed_dictionaries({"lr0": st.sampled_from([None, 0.01, 0.1])}),
    st.fixed_dictionaries({"epochs": st.sampled_from([3, 5])}),
    st.fixed_dictionaries({"weights": st.booleans()}),
    st.fixed_dictionaries(
        {"arms": st.sampled_from([("a", "b"), ("a", "b", "c"), ("a", "c"), ("b", "a")])}
    ),
    st.fixed_dictionaries({"seeds": st.integers(1, 2)}),
    st.fixed_dictionaries({"protocols": st.sampled_from([("coco",), ("coco", "tiny")])}),
)
FLAGS = st.fixed_dictionaries(
    {"force": st.sampled_from([False, False, False, True]), "re_evaluate": st.booleans(),
     "extend": st.booleans()}
)  # fmt: skip


def records(root: Path) -> dict[Path, dict[str, Any]]:
    """Every trial.json below, in studies and archives."""
    return {p.parent: json.loads(p.read_text()) for p in root.rglob("trial.json")}


def tree(root: Path) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p): p.read_bytes() for p in files}


def part(identity: dict[str, Any], leave_out: tuple[str, ...] = ()) -> str:
    return digest({k: v for k, v in identity.items() if k not in leave_out})


class Studies(RuleBasedStateMachine):
    """One user, one study, and all that he may do to it."""

    real, patience = False, 1.0

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="studies-"))
        self.world = World(self.root, real=self.real)
        self.trainings: dict[str, tuple[str, int, dict[str, str]]] = {}
        self.truths: dict[str, dict[str, Any]] = {}
        self.finished: dict[float, str] = {}
        self.boxes: dict[str, str] = {}
        self.moves = 0
        self.remember()

    def remember(self) -> None:
        """What the world is like now, under the digests that a trial would record."""
        reader, study, spec = Reader(), self.world.study(), self.world.spec
        truth, labels = truth_of(self.root), labels_of(self.root)
        for arm in ARMS:
            for seed in range(4):
                weights = self.root / "weights.pt" if spec.weights else None
                model = str(self.root / f"{arm}.yaml")
                evaluate = {"data": study.data, "split": "val", "protocols": []}
                source = Source(
                    model, weights and str(weights), str(self.root / "set" / "data.yaml"), seed,
                    study.train, evaluate,
                )  # fmt: skip
                options = {"model": model, "pretrained": str(weights or False), "seed": str(seed),
                           **{k: str(v) for k, v in study.train.items()}}  # fmt: skip
                made = (beginning(options), spec.epochs, labels)
                known = self.trainings.setdefault(digest(reader.training(source)), made)
                assert known == made, "two different trainings with one identity"
        evaluation = part(reader.evaluation(source), ("protocols",))
        assert self.truths.setdefault(evaluation, truth) == truth, "one identity, two truths"

    # What he edits, and what he asks for. Two rules, so that he runs something now and then.

    @rule(edit=EDITS)
    def edit(self, edit: tuple[Any, ...]) -> None:
        what, *how = edit
        getattr(self.world, what)(*how)
        self.remember()

    @rule(wish=WISHES)
    def ask_for(self, wish: dict[str, Any]) -> None:
        self.world.spec = changed(self.world.spec, **wish)
        self.remember()

    @rule()
    def move(self) -> None:
        if (self.root / self.world.project).is_dir():
            self.moves += 1
            target = f"runs{self.moves}"
            (self.root / self.world.project).rename(self.root / target)
            self.world.project = target

    @rule()
    def checkpoint_is_lost(self) -> None:
        for best in sorted(self.root.rglob("s/*/*/train/weights/best.pt"))[:1]:
            best.unlink()

    # What he runs.

    @rule(flags=FLAGS)
    def run_somehow(self, flags: dict[str, bool]) -> None:
        self.run(flags)

    def run(self, flags: dict[str, bool]) -> None:
        before = tree(self.root)
        code = ended(self.world.start(**flags))
        STEPS[f"runs that ended with {code}"] += 1
        assert code in (0, 2, 3), self.world.said()
        if code == 2:
            now = tree(self.root)
            now.pop(str(self.root / "said.txt"))
            before.pop(str(self.root / "said.txt"), None)
            assert now == before, f"refused, and touched: {self.world.said()}"
            assert "nothing was changed" in self.world.said()
        if code == 0:
            self.all_done()

    @rule()
    def run_forced(self) -> None:
        self.run({"force": True, "re_evaluate": False, "extend": True})

    @rule()
    def run_all_but_forced(self) -> None:
        self.run({"force": False, "re_evaluate": True, "extend": True})

    @rule(flags=FLAGS, after=SECONDS)
    def run_and_kill(self, flags: dict[str, bool], after: float) -> None:
        code = ended(self.world.start(**flags), after * self.patience)
        STEPS["killed" if code < 0 else "ended before the kill"] += 1
        self.world.settle()

    @rule(flags=FLAGS, after=SECONDS, split=st.sampled_from(["train", "val"]))
    def run_and_edit(self, flags: dict[str, bool], after: float, split: str) -> None:
        pid = self.world.start(**flags)
        time.sleep(after * self.patience)
        self.world.label(split, 0, (self.world.variants[split, 0] + 1) % 3)
        self.remember()
        assert ended(pid) in (0, 2, 3), self.world.said()

    @rule(flags=FLAGS, after=st.floats(0.0, 0.3))
    def run_twice_at_once(self, flags: dict[str, bool], after: float) -> None:
        first = self.world.start(**flags)
        time.sleep(after)
        second = self.world.start(**flags)
        assert {ended(first), ended(second)} <= {0, 1, 2, 3}, self.world.said()

    @rule(force=st.booleans())
    def mistype(self, force: bool) -> None:
        before = tree(self.root / self.world.project)
        spec, self.world.spec = self.world.spec, changed(self.world.spec, data="TYPO.yaml")
        # 2: the study has arms that the spec lacks, which is found before the data are.
        assert ended(self.world.start(force=force)) in (1, 2)
        self.world.spec = spec
        assert tree(self.root / self.world.project) == before

    # What holds.

    def all_done(self) -> None:
        folder = self.root / self.world.project / "s"
        study = read_json(folder / STUDY)["study"]
        for arm in study["arms"]:
            for seed in study["seeds"]:
                record = read_json(folder / arm["name"] / str(seed) / "trial.json")
                assert record["status"] == DONE
                reader = Reader()
                source = Source(
                    str(self.root / f"{arm['name']}.yaml"), study["weights"], study["data"], seed,
                    study["train"], {"split": "val"},
                )  # fmt: skip
                assert record["identity"]["training"] == reader.training(source)

    @invariant()
    def no_finished_trial_is_lost(self) -> None:
        STEPS["steps"] += 1
        if not hasattr(self, "root"):
            return
        there = {r["finished"]: r for r in records(self.root).values() if r["status"] == DONE}
        assert set(self.finished) <= set(there)
        for record in there.values():
            STEPS["finished trials"] += record["finished"] not in self.finished
        self.finished.update({key: r["arm"] for key, r in there.items()})

    @invariant()
    def every_number_is_what_its_digest_says(self) -> None:
        for folder, record in records(self.root).items() if hasattr(self, "root") else ():
            STEPS["invalid, seen"] += record["status"] == "invalid"
            if record["status"] != DONE:
                continue
            training, evaluation = (record["identity"][k] for k in ("training", "evaluation"))
            effective = record["arguments"]["effective"]
            assert effective["epochs"] == training["arguments"]["epochs"]
            if self.real:  # with optimizer=auto it has chosen lr0
                self.same_as_before(folder, record)
                continue
            assert effective["lr0"] == training["arguments"]["lr0"]
            chain = expected(*self.trainings[digest(training)])
            truth = self.truths[part(evaluation, ("protocols", "checkpoint"))]
            for protocol in evaluation["protocols"]:
                found = record["metrics"][protocol]["metrics"]["AP"]
                assert found == number(chain, truth, protocol), f"{folder}, {protocol}"

    def same_as_before(self, folder: Path, record: dict[str, Any]) -> None:
        """Trainings of one identity find the same boxes, but for those that were resumed."""
        with np.load(folder / "predictions.npz") as arrays:
            found = digest([arrays[name].tolist() for name in ("det_boxes", "det_score")])
        if not record.get("resumed"):
            key = digest(record["identity"]["training"])
            assert self.boxes.setdefault(key, found) == found, folder

    @invariant()
    def no_two_processes_in_one_trial(self) -> None:
        assert not hasattr(self, "root") or not (self.root / "COLLISION").exists()

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root, ignore_errors=True)


class RealStudies(Studies):
    """The same with real trainings: seconds each."""

    real, patience = True, 30.0


def machine(examples: int, steps: int, **more: Any) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, print_blob=True,
        suppress_health_check=list(HealthCheck), database=None, **more,
    )  # fmt: skip


def run_machine(chosen: settings, kind: type[Studies] = Studies) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    STEPS.clear()
    run_state_machine_as_test(kind, settings=chosen)
    print(", ".join(f"{n} {what}" for what, n in STEPS.most_common()))


def test_whatever_is_done_to_a_study_its_results_stay_true() -> None:
    run_machine(machine(5, 20, derandomize=True, phases=[Phase.generate]))


@pytest.mark.slow
def test_the_same_with_real_trainings() -> None:
    run_machine(machine(3, 12, phases=[Phase.generate]), RealStudies)


@pytest.mark.slow
def test_many_more_things_done_to_a_study() -> None:
    run_machine(machine(60, 50))
