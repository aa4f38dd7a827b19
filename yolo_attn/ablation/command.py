"""``yolo-attn ablate`` and ``yolo-attn report``: they parse, call, and print."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Optional

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from yolo_attn.errors import YoloAttnError

GENERAL = ("data", "dataset")  # names of a dataset YAML that say nothing; its folder's does
LONGEST_NAME = 80
JSON = typer.Option(False, "--json", help="Print JSON for programs.")


def ablate_command(
    arguments: Optional[List[str]] = typer.Argument(
        None, metavar="[STUDY.yaml] [KEY=VALUE]...", help="A study, and Ultralytics arguments."
    ),
    models: Optional[str] = typer.Option(None, help="Model YAMLs with commas, instead of a file."),
    data: Optional[str] = typer.Option(None, help="A dataset YAML."),
    seeds: Optional[str] = typer.Option(None, help="How many, or which with commas (3,4)."),
    name: Optional[str] = typer.Option(
        None, help="Name of the study, also of its folder; default: the file's, or its arms'."
    ),
    baseline: Optional[str] = typer.Option(None, help="Arm to compare with; default the first."),
    weights: Optional[str] = typer.Option(None, help="Checkpoint that every arm starts from."),
    match: Optional[str] = typer.Option(None, help="Controls to add: params, flops or both."),
    protocol: Optional[List[str]] = typer.Option(None, help="Protocol; again for more."),
    project: Optional[str] = typer.Option(None, help="Folder of all studies."),
    after_crash: Optional[str] = typer.Option(
        None, "--after-crash", help="resume (default) or restart: slower, but bit for bit."
    ),
    only: Optional[List[str]] = typer.Option(None, help="ARM or ARM/SEED; again for more."),
    add_seeds: int = typer.Option(0, "--add-seeds", min=0, help="So many seeds more."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the plan, train nothing."),
    force: bool = typer.Option(
        False, "--force", help="Put trials aside (archive/ of the study) and train anew."
    ),
    re_evaluate: bool = typer.Option(
        False, "--re-evaluate", help="Evaluate finished trials again, without training."
    ),
    extend: bool = typer.Option(False, "--extend", help="Add these arms to the study on disk."),
    executor: str = typer.Option("local", help="local or ray."),
    address: Optional[str] = typer.Option(None, help="Of the Ray cluster, e.g. auto."),
    devices: Optional[str] = typer.Option(
        None, help="With commas: cpu, or numbers of GPUs; default all GPUs, else the CPU."
    ),
    as_json: bool = JSON,
) -> None:
    """Train and compare several models over several seeds; run it again to continue.

    Example: yolo-attn ablate --models yolov8n.yaml,yolov8n-gc.yaml --seeds 3 --data sirst.yaml
    epochs=100 imgsz=640
    """
    from yolo_attn.ablation.executors.local import places_for
    from yolo_attn.ablation.plan_table import continuing
    from yolo_attn.ablation.progress import View
    from yolo_attn.ablation.report import write_report
    from yolo_attn.ablation.runner import plan_study, run_plan, to_do, with_more_seeds
    from yolo_attn.ablation.store import ARCHIVE

    _check_executor(executor, address)
    given = {
        "data": data,
        "name": name,
        "baseline": baseline,
        "weights": weights,
        "match": match and match.split(","),
        "protocols": protocol,
        "project": project,
        "after_crash": after_crash,
        "seeds": seeds and _seeds(seeds),
    }
    with quiet_ultralytics():
        study = study_from(arguments or [], models, given)
        if add_seeds:
            study = with_more_seeds(study, add_seeds)
        # Ray's machines have their own devices.
        here = executor == "local" and not dry_run
        places = places_for(devices, study.train.get("device"), here)
        plan = plan_study(
            study, force=force, re_evaluate=re_evaluate, extend=extend, only=only or ()
        )
        if dry_run:
            _print_plan(plan, only or (), places, as_json)
            return
        runs_on = _executor(executor, address, places)
        if plan.aside:
            go = "1 trial goes" if len(plan.aside) == 1 else f"{len(plan.aside)} trials go"
            print(f"{go} into {study.folder / ARCHIVE}", file=sys.stderr)
        try:
            with View(plan, to_do(plan, only or ()), runs_on.places) as view:
                outcome = run_plan(plan, runs_on, only=only or (), report=view.ended)
            results = write_report(study.folder, device=places[0])
        except KeyboardInterrupt:
            go_on = continuing(sys.argv[1:])
            print(f"stopped; all that is finished is kept. To go on:\n  {go_on}", file=sys.stderr)
            raise typer.Exit(130) from None
    _print_results(results, as_json)
    for job, error in outcome.failed:
        _failed(f"{job.arm}/{job.seed}", error)
    if outcome.busy:
        names = ", ".join(f"{job.arm}/{job.seed}" for job in outcome.busy)
        print(f"note: another process is at {names}; run again when it has ended", file=sys.stderr)
    if outcome.failed:
        raise typer.Exit(1)


def report_command(
    folder: Path = typer.Argument(..., metavar="RUN", help="Folder of a study."),
    as_json: bool = JSON,
) -> None:
    """Write a study's report again: report.html, table.csv, table.tex and the pictures.

    Example: yolo-attn report runs/ablation/p2
    """
    from yolo_attn.ablation.report import write_report

    with quiet_ultralytics():
        results = write_report(folder)
    _print_results(results, as_json)


def studies_command(
    project: Path = typer.Argument("runs/ablation", help="Folder of all studies."),
    as_json: bool = JSON,
) -> None:
    """List the studies of a folder: what they compare, and how many trials are finished.

    Example: yolo-attn studies runs/ablation
    """
    from yolo_attn.ablation.studies import list_studies

    if not project.is_dir():
        raise YoloAttnError(f"{project}: no such folder (expected: one that holds studies)")
    found = list(list_studies(project))
    if as_json:
        print(json.dumps([asdict(study) for study in found], indent=2))
        return
    if not found:
        print(f"no study in {project}")
        return
    table = Table("study", "arms", "seeds", "data", "finished")
    for study in found:
        done = study.fault or f"{study.done} of {study.trials}"
        cells = (study.name, ", ".join(study.arms), ", ".join(map(str, study.seeds)), study.data)
        table.add_row(*map(escape, (*cells, done)))
    _console().print(table)


def study_from(arguments: List[str], models: Optional[str], given: Dict[str, Any]) -> Any:
    """A `Study` from what was typed.

    Raises:
        YoloAttnError: neither or both of a file and models; a word that is no KEY=VALUE.
    """
    from yolo_attn.ablation.spec import from_dict, read_study

    files = [word for word in arguments if "=" not in word]
    train = {}
    for word in arguments:
        key, equals, value = word.partition("=")
        if equals:
            train[key] = yaml.safe_load(value)
    if len(files) + bool(models) != 1:
        raise YoloAttnError(
            "give one study file, or --models with --data (`yolo-attn ablate --help`); training "
            f"arguments are KEY=VALUE{f', got {files}' if files else ''}"
        )
    given = {key: value for key, value in given.items() if value is not None}
    if not models:
        return read_study(files[0], {**given, **({"train": train} if train else {})})
    arms = [{"model": model.strip()} for model in models.split(",") if model.strip()]
    content = {**given, "arms": arms, "train": train}
    content.setdefault("name", _name_of([arm["model"] for arm in arms], str(given.get("data", ""))))
    return from_dict(content, "the command line")


def _name_of(models: List[str], data: str) -> str:
    """A study's name if it was given none: its arms, and what they learn from."""
    stems = [Path(model).stem for model in models]
    file = Path(data)
    source = file.parent.name if file.stem in GENERAL and file.parent.name else file.stem
    text = re.sub(r"[^A-Za-z0-9._+-]+", "-", f"{'-vs-'.join(stems)}-on-{source}").lstrip("._+-")
    if len(text) <= LONGEST_NAME:
        return text
    # Long lists differ anywhere: a digest tells them apart.
    return f"{text[: LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class quiet_ultralytics:  # noqa: N801 - reads as a function
    """Keep Ultralytics' own lines off stdout, which belongs to the answer."""

    def __enter__(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):  # its first import says what it creates
            from ultralytics.utils import LOGGER

        self.logger, self.level = LOGGER, LOGGER.level
        LOGGER.setLevel("ERROR")

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.level)


def _seeds(text: str) -> Any:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise YoloAttnError(f"--seeds {text!r} (accepted: how many, or which with commas: 3,4,5)")
    return int(text) if len(parts) == 1 else [int(part) for part in parts]


def _check_executor(executor: str, address: Optional[str]) -> None:
    from yolo_attn.ablation.executors import EXECUTORS

    if executor not in EXECUTORS:
        raise YoloAttnError(f"--executor {executor!r} (accepted: {', '.join(EXECUTORS)})")
    if address and executor != "ray":
        raise YoloAttnError("--address goes with --executor ray")


def _executor(executor: str, address: Optional[str], places: List[str]) -> Any:
    if executor == "ray":
        from yolo_attn.ablation.executors.ray import RayExecutor

        return RayExecutor(address)
    from yolo_attn.ablation.executors.local import LocalExecutor

    return LocalExecutor(places)


def _failed(name: str, error: Dict[str, Any]) -> None:
    print(f"yolo-attn: error: {name}: {error['what']}; {error.get('log', '')}", file=sys.stderr)
    for line in error["tail"]:
        print(f"    {line}", file=sys.stderr)


def _print_plan(plan: Any, only: Any, places: List[str], as_json: bool) -> None:
    from yolo_attn.ablation.decisions import chosen
    from yolo_attn.ablation.estimate import estimate
    from yolo_attn.ablation.plan import estimated_seconds
    from yolo_attn.ablation.plan_table import print_plan
    from yolo_attn.ablation.runner import to_do

    found = estimate(plan, to_do(plan, only), places)
    trials = [
        {
            "arm": job.arm,
            "seed": job.seed,
            "status": plan.states[f"{job.arm}/{job.seed}"],
            "chosen": chosen(job.arm, job.seed, only),
            "command": " ".join(job.train),
        }
        for job in plan.jobs
    ]
    if as_json:
        answer = {"study": plan.study.as_dict(), "arms": plan.arms, "trials": trials}
        seconds = estimated_seconds(plan)  # None before a first trial; `estimate` guesses
        answer.update(flags=plan.flags, seconds=seconds, estimate=asdict(found))
        print(json.dumps(answer, indent=2))
        return
    print_plan(plan, trials, found, places)


def _print_results(results: Any, as_json: bool) -> None:
    from yolo_attn.ablation import tables

    if as_json:
        answer = {
            "study": results.study.name,
            "folder": str(results.study.folder),
            "comparisons": [
                {"protocol": p, **c.as_dict(), "sentence": results.verdict(c)}
                for p, c in results.comparisons
            ],
            "arms": results.arms,
            "blocks": {arm: [b.as_dict() for b in use] for arm, use in results.use.items()},
            "flags": results.flags,
            "failed": results.failed,
            "unfinished": results.unfinished,
        }
        print(json.dumps(answer, indent=2))
        return
    table = Table(*tables.headers(), title=f"{results.study.name}: percent, differences in points")
    for row in tables.rows_of(results):
        table.add_row(*(escape(cell) for cell in tables.cells(row)))
    costs = Table("arm", *tables.COST_COLUMNS.values(), title="Costs")
    for cells in tables.cost_cells(results):
        costs.add_row(*map(escape, cells))
    console = _console()
    console.print(table)
    if rows := tables.use_cells(results):
        blocks = Table(*tables.use_headers(), title="Are the blocks used? Means over seeds")
        for cells in rows:
            blocks.add_row(*map(escape, cells))
        console.print(blocks)
    console.print(costs)
    for flag in results.flags:
        print(f"note: {flag}")
    if results.unfinished:
        print(f"note: not finished: {', '.join(results.unfinished)}")
    print(f"the report is in {results.study.folder}")


def _console() -> Console:
    # Piped output is for programs and logs: never cut a column there.
    return Console() if sys.stdout.isatty() else Console(width=220)
