"""An arm with a loss of its own: the arm's model YAML with the key ``loss``, in the study's folder.

The YAML is what carries a loss through training, checkpoint and resuming. Its name holds a digest
of what is in it, so that a trial's recorded command says which loss it was trained with.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from yolo_attn.ablation.spec import Arm, Study
from yolo_attn.ablation.store import write_text
from yolo_attn.losses.described import describe, short_name
from yolo_attn.losses.options import expand


def model_of(study: Study, arm: Arm) -> str:
    """The model YAML that an arm trains; written here if the arm has a loss.

    Raises:
        YoloAttnError: the model does not build.
    """
    if arm.loss is None:
        return arm.model
    from yolo_attn.overlay.dry_run import load_model_yaml
    from yolo_attn.zoo import to_yaml

    d = load_model_yaml(arm.model)
    scales = d.get("scales")
    if isinstance(scales, dict) and d.get("scale") in scales:
        d["scales"] = {d["scale"]: scales[d["scale"]]}  # the file's own name need not say it
    d["loss"] = arm.loss
    name = f"{Path(arm.model).stem}-{short_name(expand(arm.loss).spec)}"
    text = to_yaml(d, f"{Path(arm.model).name} with the loss of arm {name}")
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    file = study.folder / "models" / f"{name}-{digest}.yaml"
    if not file.is_file():  # its name says what is in it
        write_text(file, text)
    return str(file)


def told(study: Study) -> list[str]:
    """What a reader should know of the arms' losses, one sentence each."""
    flags = []
    for arm in study.arms:
        if arm.loss is None:
            continue
        expanded = expand(arm.loss)
        same = expanded.stock_box and expanded.stock_class
        own = " (what Ultralytics trains anyway)" if same else ""
        flags.append(f"arm {arm.name} trains with the loss: {describe(expanded.spec)}{own}")
        flags += [f"arm {arm.name}: {text}" for text in expanded.warnings]
    if flags:
        flags.append("loss curves of arms with different losses are not comparable")
    return flags


def recorded(arm: Arm) -> dict[str, Any] | None:
    """The expanded loss for trial.json; None without one."""
    return None if arm.loss is None else expand(arm.loss).spec
