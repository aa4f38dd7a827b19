"""What each arm starts from: the study's weights, for a widened control widened like its design.

By name and shape a control could take hardly a tenth of a checkpoint that its rivals take whole,
and would lose for that reason. Its own file holds a wider model that computes what the baseline
computes with the weights (`transfer/widening.py`); what the weights do not fill in the baseline is
left out of the file, too, and starts from the seed of the trial.
"""

from __future__ import annotations

import hashlib
import os
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_attn.ablation import arm_loss
from yolo_attn.ablation.spec import Arm, Study
from yolo_attn.ablation.store import MODELS, read_json, write_json
from yolo_attn.errors import YoloAttnError

FORM = "1"  # of the files: another number, and they are written again


@dataclass(frozen=True)
class Start:
    """How much of an arm came from its weights.

    Attributes:
        tensors: how many of its tensors.
        of_tensors: all of them.
        parameters: how many of its parameters.
        of_parameters: all of them.
    """

    tensors: int
    of_tensors: int
    parameters: int
    of_parameters: int

    def __str__(self) -> str:
        share = 100 * self.parameters / max(self.of_parameters, 1)
        return (
            f"{self.tensors} of {self.of_tensors} tensors and {self.parameters:,} of "
            f"{self.of_parameters:,} parameters ({share:.1f} %)"
        )


def weights_of(study: Study, arm: Arm) -> str | None:
    """The checkpoint that an arm starts from; None: from scratch."""
    if study.weights and arm.matched:
        # Beside the control's YAML, also in a folder that was moved since.
        return str(study.folder / MODELS / f"{Path(arm.model).stem}.pt")
    return study.weights


def content_of(study: Study, *arms: Arm) -> str:
    """A digest of the study's weights and of the model YAMLs of arms."""
    files = [Path(str(study.weights)), *(Path(arm_loss.model_of(study, arm)) for arm in arms)]
    content = [_bytes(file) for file in files]
    return hashlib.sha256(b"\0".join([FORM.encode(), *content])).hexdigest()


def is_free(study: Study, base: Arm, control: Arm) -> bool:
    """Whether `write_widened` would replace no weights of other content."""
    target = Path(str(weights_of(study, control)))
    known = (read_json(target.with_suffix(".pt.json")) or {}).get("from")
    return not target.is_file() or known == content_of(study, base, control)


def write_widened(study: Study, base: Arm, control: Arm) -> None:
    """Write the weights of a control, unless they are there.

    Args:
        study: with `weights`.
        base: the baseline.
        control: the same design, wider; its YAML is on disk.

    Raises:
        YoloAttnError: the weights cannot be read, or the function of the baseline cannot be kept.
    """
    import torch

    from yolo_attn.transfer.widening import TOLERANCE, largest_difference, widen

    assert study.weights is not None
    target = Path(str(weights_of(study, control)))
    stamp = target.with_suffix(".pt.json")
    models = [Path(arm_loss.model_of(study, arm)) for arm in (base, control)]
    digest = content_of(study, base, control)
    if target.is_file() and (read_json(stamp) or {}).get("from") == digest:
        return
    source = _checkpoint(study.weights)
    names = getattr(source, "names", None)
    try:
        narrow, wide = (_model(str(file), len(names or ()) or None) for file in models)
        fresh = {name: value.clone() for name, value in narrow.state_dict().items()}
        came = _loaded(narrow, source)
        narrow.load_state_dict(
            {n: v if n in came else fresh[n] for n, v in narrow.state_dict().items()}
        )
        narrow, wide = narrow.double(), wide.double()
        widen(narrow, wide)
        difference = largest_difference(narrow, wide)
        if not difference <= TOLERANCE:
            raise YoloAttnError(f"its outputs differ by {difference:.1g} of the largest")
    except YoloAttnError as error:
        raise YoloAttnError(
            f"{study.name}: match with weights: {control.name} cannot start from "
            f"{study.weights} as {base.name} does ({error}); leave out `match` or `weights`"
        ) from None
    _leave_out(wide, set(wide.state_dict()) - came)
    if names:
        wide.names = names
    draft = target.with_name(f".{target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {"epoch": -1, "model": wide.float(), "train_args": {}, "yolo_attn_widened": FORM}, draft
    )
    os.replace(draft, target)
    write_json(stamp, {"from": digest, "difference": difference, "of": study.weights})


def starts(study: Study) -> dict[str, Start]:
    """What each arm takes from its weights, found by loading them; empty without weights.

    Raises:
        YoloAttnError: weights that cannot be read, or are of another family.
    """
    if not study.weights:
        return {}
    from yolo_attn.data.stats_read import load_dataset

    classes = 1 if study.train.get("single_cls") else len(load_dataset(study.data)["names"])
    found = {}
    for arm in study.arms:
        source = _checkpoint(str(weights_of(study, arm)))
        model = _model(arm_loss.model_of(study, arm), classes)
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        total = len(model.state_dict())
        came = _loaded(model, source)
        held = sum(sizes.get(name, 0) for name in came)
        found[arm.name] = Start(len(came), total, held, sum(sizes.values()))
    return found


def told(study: Study) -> list[str]:
    """A sentence for each arm about what it starts from."""
    matched = {arm.name for arm in study.arms if arm.matched}
    return [
        f"arm {name} starts with {start} of {Path(str(study.weights)).name}"
        + (", widened with it" if name in matched else "")
        for name, start in starts(study).items()
    ]


def _loaded(model: Any, source: Any) -> set[str]:
    """Load a checkpoint as a training does; names of the tensors that came from it whole."""
    import torch

    known = {_print(value) for value in source.state_dict().values()}
    for value in model.state_dict().values():  # what no checkpoint holds
        value.fill_(float("nan") if value.is_floating_point() else -1)
    # load() gives some layers of the source away.
    model.load(deepcopy(source), verbose=False)
    return {
        name
        for name, value in model.state_dict().items()
        if _print(value) in known and not bool(torch.isnan(value.float()).any())
    }


def _print(value: Any) -> tuple[Any, ...]:
    data = value.detach().float().contiguous().numpy().tobytes()
    return (*value.shape, hashlib.blake2b(data, digest_size=16).digest())


def _leave_out(model: Any, names: set[str]) -> None:
    for name in names:
        place, _, last = name.rpartition(".")
        module = model.get_submodule(place)
        # None is in no state_dict.
        (module._parameters if last in module._parameters else module._buffers)[last] = None


def _model(name: str, classes: int | None) -> Any:
    from ultralytics.nn.tasks import DetectionModel

    from yolo_attn.overlay.dry_run import load_model_yaml

    d = load_model_yaml(name)
    return DetectionModel(d, ch=d.get("channels", d.get("ch", 3)), nc=classes, verbose=False)


def _checkpoint(file: str) -> Any:
    from ultralytics import YOLO

    try:
        return YOLO(file).model.float()  # type: ignore[union-attr]  # no str
    except YoloAttnError:
        raise
    except Exception as error:  # Ultralytics and torch raise many kinds
        text = " ".join(str(error).split())[:200]
        raise YoloAttnError(f"weights {file} cannot be read ({text})") from None


def _bytes(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest() if file.is_file() else str(file).encode()
