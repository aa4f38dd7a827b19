"""A study as its author writes it: a YAML file or a command line, read into dataclasses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from yolo_attn.ablation.store import TAKEN_NAMES
from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.evaluation.slicing import OVERLAP, check_slices

MATCH = ("params", "flops")
AFTER_CRASH = ("resume", "restart")
DEFAULT_PROTOCOLS = ("coco", "tiny")
# What a study decides itself; the value is where it is said instead.
RESERVED = {
    "model": "the arms' `model`",
    "data": "the study's `data`",
    "seed": "the study's `seeds`",
    "project": "the study's `project`",
    "name": "the study's `name`",
    "pretrained": "the study's `weights`",
    "resume": "running the study again",
    "exist_ok": "running the study again",
    "save_dir": "the study's `project` and `name`",
    "mode": "`yolo-attn ablate`, which trains",
    "task": "the model",
    "save": "the study, which needs the checkpoints",
    "cfg": "its keys, one by one: a file may change under a study",
}
# An arm that differs in one of these has another budget or other data: no comparison is left.
BUDGET = ("epochs", "time", "batch", "imgsz", "fraction", "nbs", "single_cls", "classes")
MOST_SEEDS = 1000
SCIENTIFIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Arm:
    """One model of a study.

    Attributes:
        name: its name, also that of its folder.
        model: a model YAML as `yolo` takes it.
        args: training arguments that only this arm has; the report names them.
        matched: "params" or "flops" for a widened baseline that the study added, else "".
        slice: side in px of the slices of an image that it predicts (`evaluation.slicing`); None:
            whole images.
        slice_overlap: share of a slice that its neighbour has too.
        loss: as the key `loss` of a model YAML (docs/losses.md); None: what the YAML says.
    """

    name: str
    model: str
    args: dict[str, Any] = field(default_factory=dict)
    matched: str = ""
    slice: int | None = None
    slice_overlap: float = OVERLAP
    loss: Any = None


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        name: its name, also that of its folder below `project`.
        arms: at least two; names differ.
        baseline: name of the arm that the others are compared with.
        seeds: different whole numbers.
        data: a dataset YAML as `yolo` takes it.
        train: Ultralytics arguments that all trials share.
        weights: checkpoint that every arm starts from (full transfer); None: all from scratch.
        match: controls to add, see `MATCH`.
        protocols: names of `evaluation.protocols.PROTOCOLS`.
        split: of the dataset, on which the arms are compared.
        draws: bootstrap draws.
        after_crash: "resume" a broken training from its last whole checkpoint, or "restart" it:
            Ultralytics' checkpoints hold rounded weights and no state of the random generators,
            so only a restarted training is bit for bit the undisturbed one.
        project: folder of all studies.
    """

    name: str
    arms: tuple[Arm, ...]
    baseline: str
    seeds: tuple[int, ...]
    data: str
    train: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    match: tuple[str, ...] = ()
    protocols: tuple[str, ...] = DEFAULT_PROTOCOLS
    split: str = "val"
    draws: int = 1000
    after_crash: str = "resume"
    project: str = "runs/ablation"

    @property
    def folder(self) -> Path:
        """Where its results are."""
        return Path(self.project).resolve() / self.name

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data; `from_dict` reads it."""
        plain = asdict(self)
        plain["arms"] = [_said(arm) for arm in plain["arms"]]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def read_study(file: str | Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read a study YAML.

    Args:
        file: the YAML; its name without suffix is the study's name if it gives none.
        overrides: keys of a study that replace the file's; `train` is merged.

    Raises:
        YoloAttnError: it cannot be read, or a key or value is at fault.
    """
    path = Path(file)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise YoloAttnError(f"{path}: the study cannot be read ({reason})") from None
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise YoloAttnError(f"{path}: not a YAML file ({text})") from None
    if not isinstance(content, dict):
        raise YoloAttnError(f"{path}: a study is a mapping with at least `arms` and `data`")
    content = {"name": path.stem, **content}
    for key, value in (overrides or {}).items():
        if key == "train":
            value = {**(content.get("train") or {}), **value}
        content[key] = value
    return from_dict(content, str(path))


def from_dict(content: Mapping[str, Any], where: str = "study") -> Study:
    """A study from plain data; `where` starts the messages.

    Raises:
        YoloAttnError: a key or value is at fault.
    """
    known = list(Study.__dataclass_fields__)
    _known_keys(content, known, where)
    for key in ("arms", "data"):
        if not content.get(key):
            raise YoloAttnError(f"{where}: `{key}` is missing")
    name = _name(str(content.get("name") or "study"), f"{where}: name")
    arms = tuple(_arms(content["arms"], where))
    baseline = str(content.get("baseline") or arms[0].name)
    names = [arm.name for arm in arms]
    match = _choices(content.get("match"), MATCH, f"{where}: match")
    controls = {f"{baseline}-match-{kind}" for kind in match}
    for arm in arms:
        if arm.name in controls and not arm.matched:
            raise YoloAttnError(
                f"{where}: an arm cannot be named {arm.name!r}: so is the control that `match` adds"
            )
    if baseline not in names:
        hint = did_you_mean(baseline, names) or f" (arms: {', '.join(names)})"
        raise YoloAttnError(f"{where}: baseline {baseline!r} is no arm{hint}")
    return Study(
        name=name,
        arms=arms,
        baseline=baseline,
        seeds=read_seeds(content.get("seeds", 3), where),
        data=str(content["data"]),
        train=_train(content.get("train") or {}, f"{where}: train"),
        weights=str(content["weights"]) if content.get("weights") else None,
        match=match,
        protocols=_protocols(content.get("protocols"), where),
        split=str(content.get("split") or "val"),
        draws=_whole(content.get("draws", 1000), 100, f"{where}: draws"),
        after_crash=_choices(content.get("after_crash", "resume"), AFTER_CRASH, where)[0],
        project=str(content.get("project") or "runs/ablation"),
    )


def read_seeds(value: Any, where: str) -> tuple[int, ...]:
    """``3 -> (0, 1, 2)``; a list of different whole numbers stays.

    Raises:
        YoloAttnError: anything else.
    """
    seeds = list(range(value)) if _is_whole(value) and 0 < value <= MOST_SEEDS else value
    if (
        not isinstance(seeds, (list, tuple))
        or not 0 < len(seeds) <= MOST_SEEDS
        or not all(_is_whole(s) and 0 <= s < 2**31 for s in seeds)
        or len(set(seeds)) < len(seeds)
    ):
        raise YoloAttnError(
            f"{where}: seeds {value!r} (accepted: how many, or a list of different whole numbers; "
            f"at most {MOST_SEEDS})"
        )
    return tuple(seeds)


def _said(arm: Mapping[str, Any]) -> dict[str, Any]:
    """What a study says of an arm: empty and idle entries left out."""
    unsliced = {"slice", "slice_overlap"} if arm["slice"] is None else set()
    return {k: v for k, v in arm.items() if v not in ("", {}, None) and k not in unsliced}


def _arms(value: Any, where: str) -> list[Arm]:
    if isinstance(value, Mapping):
        value = [
            {"name": n, **(m if isinstance(m, Mapping) else {"model": m})} for n, m in value.items()
        ]
    if not isinstance(value, list):
        raise YoloAttnError(f"{where}: arms is a list, each with `model` and perhaps `name`")
    arms = []
    for number, entry in enumerate(value, 1):
        place = f"{where}: arm {number}"
        if isinstance(entry, str):
            entry = {"model": entry}
        if not isinstance(entry, Mapping) or not entry.get("model"):
            raise YoloAttnError(f"{place}: has no `model`")
        _known_keys(entry, list(Arm.__dataclass_fields__), place)
        model = str(entry["model"])
        if not model.endswith((".yaml", ".yml")):
            raise YoloAttnError(
                f"{place}: model {model!r} is not a model YAML (checkpoints go into the study's "
                "`weights`, the same for all arms)"
            )
        args = _train(entry.get("args") or {}, place)
        for key in BUDGET:
            if key in args:
                raise YoloAttnError(
                    f"{place}: {key} is part of the budget, which all arms share: put it into "
                    "`train`"
                )
        slices = _slices(entry, place)
        loss, of_loss = _loss(entry, place)
        own = Path(model).stem + of_loss + (f"-slice{slices['slice']}" if slices else "")
        name = _name(str(entry.get("name") or own), f"{place}: name")
        matched = str(entry.get("matched") or "")
        arms.append(Arm(name, model, args, matched, **slices, loss=loss))
    _folders([arm.name for arm in arms], where)
    if len(arms) < 2:
        raise YoloAttnError(f"{where}: a study compares at least two arms")
    return arms


def _folders(names: Sequence[str], where: str) -> None:
    """Refuse arms whose folders would be one, or a file of the study's own."""
    taken = {name.lower(): name for name in TAKEN_NAMES}
    seen: dict[str, str] = {}
    for name in names:
        low = name.lower()  # GC and gc are one folder on many disks
        if low in taken:
            raise YoloAttnError(
                f"{where}: an arm cannot be named {name!r}: {taken[low]} in the study's folder is "
                "the study's own; give it another `name`"
            )
        if low in seen:
            named = repr(name) if seen[low] == name else f"{seen[low]!r} and {name!r}"
            raise YoloAttnError(
                f"{where}: two arms are named {named}, one folder on many disks; give one another "
                "`name`"
            )
        seen[low] = name


def _loss(entry: Mapping[str, Any], place: str) -> tuple[Any, str]:
    """An arm's loss, and what its name gets from it."""
    if "loss" not in entry:
        return None, ""
    from yolo_attn.losses.described import short_name
    from yolo_attn.losses.options import expand

    try:
        return entry["loss"], f"-{short_name(expand(entry['loss']).spec)}"
    except YoloAttnError as error:
        raise YoloAttnError(f"{place}: {error}") from None


def _slices(entry: Mapping[str, Any], place: str) -> dict[str, Any]:
    if entry.get("slice") is None:
        if entry.get("slice_overlap") is not None:
            raise YoloAttnError(f"{place}: slice_overlap goes with `slice`, e.g. slice: 640")
        return {}
    overlap = entry.get("slice_overlap")
    slices = {"slice": entry["slice"], "slice_overlap": OVERLAP if overlap is None else overlap}
    try:
        check_slices(*slices.values())
    except YoloAttnError as error:
        raise YoloAttnError(f"{place}: {error}") from None
    return slices


def _train(args: Any, where: str) -> dict[str, Any]:
    if not isinstance(args, Mapping):
        raise YoloAttnError(f"{where}: training arguments are a mapping such as {{epochs: 100}}")
    if not args:
        return {}
    from ultralytics.cfg import get_cfg
    from ultralytics.utils import DEFAULT_CFG_DICT

    args = {key: _number(value) for key, value in args.items()}
    for key, value in args.items():
        if key in RESERVED:
            raise YoloAttnError(f"{where}: {key} is not set here but by {RESERVED[key]}")
        if key not in DEFAULT_CFG_DICT:
            hint = did_you_mean(key, DEFAULT_CFG_DICT) or ""
            raise YoloAttnError(f"{where}: {key!r} is no argument of this Ultralytics{hint}")
        if key == "batch" and (not _is_whole(value) or value < 1):
            raise YoloAttnError(
                f"{where}: batch {value!r} lets Ultralytics choose one for each arm (accepted: a "
                "whole number, the same for all arms)"
            )
        sides = value if isinstance(value, (list, tuple)) else [value]
        if key == "imgsz" and not (sides and all(_is_whole(s) and s > 0 for s in sides)):
            raise YoloAttnError(f"{where}: imgsz {value!r} (accepted: a whole number of pixels)")
        if key == "epochs":
            _whole(value, 1, f"{where}: epochs")
        try:
            get_cfg(overrides={key: value})
        except Exception as error:  # TypeError, ValueError and more, by version
            text = " ".join(str(error).split())
            raise YoloAttnError(f"{where}: {key} {value!r}: {text}") from None
    return args


def _number(value: Any) -> Any:
    """``1e-4``, a number for `yolo` and for everybody but YAML, which wants ``1.0e-4``."""
    return float(value) if isinstance(value, str) and SCIENTIFIC.fullmatch(value) else value


def _protocols(value: Any, where: str) -> tuple[str, ...]:
    from yolo_attn.evaluation.protocols import pick

    if value is None:
        return DEFAULT_PROTOCOLS
    try:
        return tuple(pick([str(name) for name in _list(value)]))
    except YoloAttnError as error:
        raise YoloAttnError(f"{where}: {error}") from None


def _known_keys(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in content:
        if key not in known:
            hint = did_you_mean(key, known) or f" (accepted: {', '.join(known)})"
            raise YoloAttnError(f"{where}: unknown key {key!r}{hint}")


def _choices(value: Any, known: Sequence[str], where: str) -> tuple[str, ...]:
    values = [] if value is None else _list(value)
    for one in values:
        if one not in known:
            raise YoloAttnError(f"{where}: {one!r} (accepted: {', '.join(known)})")
    return tuple(dict.fromkeys(values))


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _whole(value: Any, least: int, where: str) -> int:
    if not _is_whole(value) or value < least:
        raise YoloAttnError(f"{where}: {value!r} (accepted: a whole number of at least {least})")
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _name(name: str, where: str) -> str:
    if not ARM_NAME.fullmatch(name):
        raise YoloAttnError(
            f"{where} {name!r} is also a folder (accepted: letters, digits and . _ + -)"
        )
    return name
