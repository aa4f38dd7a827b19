"""The child process of a trial: `yolo train`, then the evaluation, with one start of Python.

``python -m yolo_attn.ablation.trial_process FOLDER JSON``, as `trial.run_job` calls it; JSON has
"train" (a `yolo` command, or null if the training is done) and "evaluate" (arguments of
`evaluate_trial`).
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any, Callable

from yolo_attn.ablation.store import EVALUATE_LOG, TRAINED, TRAINER, TrialFolder, write_json
from yolo_attn.errors import YoloAttnError

Train = Callable[[list[str]], None]
Evaluate = Callable[[TrialFolder, dict[str, Any]], None]


def run_child(train: Train, evaluate: Evaluate) -> None:
    """Do what the command line says with these two functions."""
    folder, options = TrialFolder(Path(sys.argv[1])), json.loads(sys.argv[2])
    if options["train"]:
        train(options["train"])
        if not folder.best.is_file():
            sys.exit(f"the training left no {folder.best}")
        (folder.path / TRAINED).touch()
    log = os.open(folder.path / EVALUATE_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    for stream in (1, 2):
        os.dup2(log, stream)
    evaluate(folder, options["evaluate"])


def yolo(command: list[str], folder: TrialFolder) -> None:
    """Run a `yolo` command here, as its console script does; note with which versions."""
    # Before Ultralytics is imported: it keeps the list that sys.argv then is.
    sys.argv = list(command)
    from ultralytics.cfg import entrypoint

    from yolo_attn.ablation.plan import environment

    write_json(folder.path / TRAINER, environment())
    entrypoint()


def evaluate_here(folder: TrialFolder, options: dict[str, Any]) -> None:
    """Evaluate with the memory of the training given back."""
    import torch

    from yolo_attn.ablation.evaluate_trial import evaluate_trial

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    evaluate_trial(folder.path, **options)


if __name__ == "__main__":
    try:
        trial = TrialFolder(Path(sys.argv[1]))
        run_child(lambda command: yolo(command, trial), evaluate_here)
    except YoloAttnError as error:
        sys.exit(f"error: {error}")
