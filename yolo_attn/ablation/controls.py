"""Control arms: the baseline, widened until it costs what the dearest arm costs.

A bigger model also gains; only what a block gains beyond that is due to the block.
"""

from __future__ import annotations

import hashlib
from copy import deepcopy
from dataclasses import replace
from typing import Any

from yolo_attn.ablation import start_weights
from yolo_attn.ablation.spec import Arm, Study
from yolo_attn.ablation.store import MODELS, write_text
from yolo_attn.errors import YoloAttnError

KEY = {"params": "parameters", "flops": "gflops"}
WIDEST = 3.0  # factor on the width
STEPS = 9  # of the bisection: channels are multiples of 8, so more would find nothing


def with_controls(
    study: Study, arms: dict[str, dict[str, Any]]
) -> tuple[Study, dict[str, dict[str, Any]], list[str]]:
    """Add the arms that `study.match` asks for; their YAMLs are written to the study's folder.

    Args:
        study: the study.
        arms: arm -> cost, as in `plan.Plan`.

    Returns:
        The study and the costs with the new arms, and what to say about them.

    Raises:
        YoloAttnError: the baseline cannot be widened, or its weights cannot.
    """
    flags, arms = [], dict(arms)
    base = next(arm for arm in study.arms if arm.name == study.baseline)
    for kind in study.match:
        key = KEY[kind]
        given = {name: cost for name, cost in arms.items() if "matched" not in cost}
        dearest = max(given, key=lambda name: given[name][key])
        target = given[dearest][key]
        if target <= arms[base.name][key]:
            flags.append(f"match {kind}: no arm costs more than the baseline, no control added")
            continue
        name = f"{base.name}-match-{kind}"
        model, cost = _widen(base.model, key, target, _side(study))
        arms[name] = {**cost, "matched": dearest}
        control = _write(study, base, replace(base, name=name, matched=kind), model)
        study = replace(study, arms=(*study.arms, control))
        off = 100 * (cost[key] / target - 1)
        flags.append(f"{name} is the baseline, widened to the {key} of {dearest} ({off:+.1f} %)")
    return study, arms, flags


def _write(study: Study, base: Arm, control: Arm, model: str) -> Arm:
    """The control with its YAML, and its weights if it has any, written to the study's folder.

    A file of other content stays as it is: it is what another plan of this study trains, or has
    trained, and this one may yet be refused, or only be looked at. A second name says what is in.
    """
    told = model + (start_weights.content_of(study, base) if study.weights else "")
    own = hashlib.sha256(told.encode()).hexdigest()[:8]
    for name in (control.name, f"{control.name}-{own}"):
        file = study.folder / MODELS / f"{name}.yaml"
        if file.is_file() and file.read_text(encoding="utf-8") != model:
            continue
        if not file.is_file():
            write_text(file, model)
        control = replace(control, model=str(file))
        if not study.weights or start_weights.is_free(study, base, control):
            break
    if study.weights:
        start_weights.write_widened(study, base, control)
    return control


def _widen(model: str, key: str, target: float, imgsz: int) -> tuple[str, dict[str, Any]]:
    """YAML text and cost of the widened model that comes nearest to the target."""
    import tempfile
    from pathlib import Path

    from yolo_attn.overlay.dry_run import load_model_yaml
    from yolo_attn.zoo import describe, to_yaml

    d = load_model_yaml(model)
    best: tuple[float, str, dict[str, Any]] | None = None
    low, high = 1.0, WIDEST
    refused: YoloAttnError | None = None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "widened.yaml"

        def built(factor: float) -> tuple[float, str, Any] | None:
            """The nearest factor at which the model builds: attentions want whole heads."""
            nonlocal refused
            for near in (0.0, *(s * step / 50 for step in range(1, 6) for s in (1, -1))):
                wider = factor * (1 + near)
                title = f"{Path(model).name}, {wider:.4f} x wider"
                text = to_yaml(_scaled(d, wider, model), title)
                file.write_text(text, encoding="utf-8")
                try:
                    return wider, text, describe(str(file), imgsz)
                except YoloAttnError as error:
                    refused = error
            return None

        for _ in range(STEPS):
            factor = (low + high) / 2
            found = built(factor)
            if found is None:  # a gap: look beyond it
                low = factor
                continue
            factor, text, config = found
            cost: dict[str, Any] = {"parameters": config.parameters, "gflops": config.gflops}
            cost["blocks"] = []
            distance = abs(cost[key] - target)
            if best is None or distance < best[0]:
                best = (distance, text, cost)
            low, high = (low, factor) if cost[key] > target else (factor, high)
    if best is None:
        raise YoloAttnError(f"match: {model} does not build at any other width ({refused})")
    return best[1], best[2]


def _scaled(d: dict[str, Any], factor: float, model: str) -> dict[str, Any]:
    d = deepcopy(d)
    scales = d.get("scales")
    if isinstance(scales, dict) and scales:
        letter = d.get("scale") if d.get("scale") in scales else next(iter(scales))
        depth, width, most = scales[letter]
        d["scales"] = {letter: [depth, width * factor, most]}
    elif "width_multiple" in d:
        d["width_multiple"] *= factor
    else:
        raise YoloAttnError(f"match: {model} has no width to scale; leave `match` out")
    d.pop("scale", None)
    return d


def _side(study: Study) -> int:
    imgsz = study.train.get("imgsz", 640)
    return max(imgsz) if isinstance(imgsz, (list, tuple)) else imgsz
