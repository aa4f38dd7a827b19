"""What a study found: its finished trials, compared metric by metric, with costs and failures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_attn.ablation.block_use import mean_use, remark
from yolo_attn.ablation.evaluate_trial import RECORDS
from yolo_attn.ablation.spec import Study
from yolo_attn.ablation.statistics import Comparison, compare_arms
from yolo_attn.ablation.store import DONE, FAILED, INVALID, TrialFolder, read_json
from yolo_attn.ablation.studies import load_study
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.records import MatchRecords, load_records
from yolo_attn.explain.use_table import BlockUse

COSTS = "costs.json"
# Protocol -> the metrics of the table, in order.
METRICS = {
    "coco": ("AP", "AP50", "AP_small"),
    "coco-500": ("AP", "AP50", "AP_small"),
    "tiny": ("AP_verytiny", "AP_tiny", "AP_small"),
    "visdrone": ("AP", "AP50"),
}


@dataclass(frozen=True)
class Trial:
    """A finished trial: its folder and trial.json."""

    arm: str
    seed: int
    folder: TrialFolder
    record: dict[str, Any]


@dataclass(frozen=True)
class Results:
    """A study with what it found.

    Attributes:
        study: the study.
        trials: arm -> seed -> finished trial.
        failed: "arm/seed" -> error.
        unfinished: "arm/seed" of all others.
        comparisons: (protocol, comparison) for every metric and arm but the baseline.
        arms: arm -> parameters, GFLOPs, and what was measured (see `costs`).
        flags: what a reader should know, one sentence each.
        use: arm -> how much each of its blocks is used, means over the seeds.
    """

    study: Study
    trials: dict[str, dict[int, Trial]]
    failed: dict[str, dict[str, Any]]
    unfinished: list[str]
    comparisons: list[tuple[str, Comparison]]
    arms: dict[str, dict[str, Any]]
    flags: list[str] = field(default_factory=list)
    use: dict[str, list[BlockUse]] = field(default_factory=dict)

    def verdict(self, comparison: Comparison) -> str:
        """The verdict in words; a block that is hardly used is named in the same sentence."""
        if comparison.difference is None:
            return comparison.verdict
        own = self.use.get(comparison.arm, [])
        return comparison.verdict + remark(own, self.use.get(self.study.baseline, []))

    def mean(self, arm: str, protocol: str, metric: str) -> float | None:
        """Mean over an arm's finished seeds in percent; None without one or without objects."""
        values = [
            trial.record["metrics"][protocol]["metrics"].get(metric)
            for trial in self.trials[arm].values()
        ]
        known = [v for v in values if v is not None and v >= 0]
        return sum(known) / len(known) if known and len(known) == len(values) else None


def collect(folder: Path) -> Results:
    """Read a study's folder and compare its arms.

    Raises:
        YoloAttnError: no study there, or no two finished trials to compare.
    """
    study, stored = load_study(folder)
    trials: dict[str, dict[int, Trial]] = {arm.name: {} for arm in study.arms}
    failed, unfinished = {}, []
    for arm in study.arms:
        for seed in study.seeds:
            at = TrialFolder(study.folder / arm.name / str(seed))
            record = at.record
            if record.get("status") == DONE:
                trials[arm.name][seed] = Trial(arm.name, seed, at, record)
            elif record.get("status") in (FAILED, INVALID):
                failed[f"{arm.name}/{seed}"] = record["error"]
            else:
                unfinished.append(f"{arm.name}/{seed}")
    comparisons = []
    if trials[study.baseline]:
        for protocol in study.protocols:
            records = _records(trials, protocol)
            metrics = METRICS[protocol]
            found = compare_arms(records, study.baseline, metrics, draws=study.draws)
            comparisons += [(protocol, c) for c in found]
    costs = read_json(study.folder / COSTS) or {}
    arms = {
        arm.name: {
            **stored["arms"].get(arm.name, {}),
            **costs.get("arms", {}).get(arm.name, {}),
            **_training_cost(trials[arm.name]),
        }
        for arm in study.arms
    }
    flags = [*stored["flags"], *_flags(trials)]
    use = {arm: mean_use(t.record for t in found.values()) for arm, found in trials.items()}
    return Results(study, trials, failed, unfinished, comparisons, arms, flags, use)


def _records(
    trials: dict[str, dict[int, Trial]], protocol: str
) -> dict[str, dict[int, MatchRecords]]:
    out: dict[str, dict[int, MatchRecords]] = {}
    for arm, by_seed in trials.items():
        for seed, trial in by_seed.items():
            file = trial.folder.path / RECORDS
            records = load_records(file)
            if protocol not in records:
                raise YoloAttnError(
                    f"{file}: was evaluated without protocol {protocol}; evaluate it with "
                    "`yolo-attn ablate ... --re-evaluate`, or leave the protocol out"
                )
            out.setdefault(arm, {})[seed] = records[protocol]
    return out


def _training_cost(by_seed: dict[int, Trial]) -> dict[str, Any]:
    """Median over the seeds."""
    import statistics

    out = {}
    for key in ("epoch_seconds", "peak_memory"):
        values = [t.record[key] for t in by_seed.values() if t.record.get(key)]
        out[key] = statistics.median(values) if values else None
    return out


def _flags(trials: dict[str, dict[int, Trial]]) -> list[str]:
    flags = []
    every = [trial for by_seed in trials.values() for trial in by_seed.values()]
    for name in ("ultralytics", "torch", "yolo_attn"):
        versions = sorted({t.record["versions"][name] for t in every})
        if len(versions) > 1:
            flags.append(f"trials of several versions of {name}: {', '.join(versions)}")
    commits = sorted({str(t.record["commit"]) for t in every})
    if len(commits) > 1:
        flags.append(f"trials of several commits of yolo_attn: {', '.join(commits)}")
    # Older releases' digests are of another kind; those trials have a flag of their own.
    kinds: dict[bool, set[str]] = {}
    for t in every:
        kinds.setdefault("identity" in t.record, set()).add(t.record["dataset"]["sha256"])
    if any(len(digests) > 1 for digests in kinds.values()):
        flags.append("trials of different states of the dataset")
    epochs = {f"{t.arm}/{t.seed}": t.record.get("epochs") for t in every}
    if len(set(epochs.values())) > 1:
        text = ", ".join(f"{name} {n}" for name, n in epochs.items())
        flags.append(f"trials of different length (patience?): epochs {text}")
    resumed = [f"{t.arm}/{t.seed}" for t in every if t.record.get("resumed")]
    if resumed:
        flags.append(
            f"resumed from a checkpoint, so not bit for bit repeatable: {', '.join(resumed)}"
        )
    taken = [f"{t.arm}/{t.seed} of {t.record['weights_of']}" for t in every
             if t.record.get("weights_of")]  # fmt: skip
    if taken:
        flags.append(f"not trained again, but slices with the weights: {', '.join(taken)}")
    hosts = sorted({t.record["host"] for t in every})
    if len(hosts) > 1:
        flags.append(f"trials of several machines: {', '.join(hosts)}; times are not comparable")
    return flags
