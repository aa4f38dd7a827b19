"""What a trial is: all that its training depends on, and all that its evaluation depends on.

Both are stored in trial.json part by part, so that a refusal names the part that differs. A trial
whose parts are equal is kept or resumed, any other is refused; nothing else decides that.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yolo_attn.ablation.file_hashes import ABSENT, UNFINISHED, hash_file, hash_files
from yolo_attn.errors import YoloAttnError

# Arguments of Ultralytics that say where and how loudly, not what.
WITHOUT_EFFECT = frozenset(
    "task mode model data project name exist_ok save_dir device pretrained seed resume cfg verbose "
    "plots profile save save_period show save_frames save_txt save_conf save_crop show_labels "
    "show_conf show_boxes line_width source vid_stride stream_buffer visualize tracker format "
    "optimize dynamic simplify opset workspace keras int8 embed".split()
)
# Ours from outside the command that change what is trained.
VARIABLES = ("YOLO_ATTN_LOSS", "YOLO_ATTN_BLOCKS", "YOLO_ATTN_DISABLE", "YOLO_ATTN_PARTIAL")
MOST = 3  # differences of one part that a message names


class RefusedError(YoloAttnError):
    """What is on disk belongs to something else than what was asked; nothing was touched."""

    exit_code = 2


@dataclass(frozen=True)
class Source:
    """Where the parts of a trial are read from, as plain data.

    Attributes:
        model: a model YAML as `yolo` takes it.
        weights: checkpoint that the training starts from, or None.
        data: a dataset YAML.
        seed: of the training.
        args: Ultralytics arguments that the study sets.
        evaluate: arguments of `evaluate_trial`.
    """

    model: str
    weights: str | None
    data: str
    seed: int
    args: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


class Reader:
    """Reads the parts of trials as they are now; what several trials share is read once."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, Any]] = {}
        self._files: dict[str, str] = {}
        self._sets: dict[str, dict[str, Any]] = {}
        self._splits: dict[tuple[str, str], list[tuple[str, str, str]]] = {}

    def training(self, source: Source, then: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The parts that a training depends on.

        Args:
            source: where they are.
            then: recorded parts that these will be compared with: images that were damaged JPEGs
                then are left out, because Ultralytics has mended them since.

        Raises:
            YoloAttnError: one of them cannot be read.
        """
        recorded = (then or {}).get("data", {})
        splits = ("train", "val")
        return plain(
            {
                "model": self._model(source.model),
                "weights": source.weights and self._file(source.weights),
                "data": {
                    **{s: self._split(source.data, s, recorded.get(s)) for s in splits},
                    "meaning": self._meaning(source.data),
                },
                "arguments": effective_arguments(source.args),
                "seed": source.seed,
                "environment": {v: os.environ[v] for v in VARIABLES if os.environ.get(v)},
                "versions": versions(),
            }
        )

    def evaluation(self, source: Source, then: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The parts that an evaluation depends on, but for the checkpoint; see `training`."""
        from yolo_attn.evaluation.ground_truth import find_sidecar
        from yolo_attn.evaluation.predict import CONFIDENCE, MAX_DET, NMS_IOU

        options = {k: v for k, v in source.evaluate.items() if k not in ("data", "protocols")}
        split = str(options.get("split", "val"))
        sidecar = find_sidecar(self._set(source.data)["path"], split)
        recorded = (then or {}).get("truth", {})
        return plain(
            {
                "truth": {
                    **self._split(source.data, split, recorded),
                    "meaning": self._meaning(source.data),
                    "sidecar": hash_file(sidecar) if sidecar else None,
                },
                "protocols": list(source.evaluate.get("protocols", ())),
                "options": {
                    **options,
                    "confidence": CONFIDENCE,
                    "nms_iou": NMS_IOU,
                    "max_det": MAX_DET,
                },
                "versions": versions(),
            }
        )

    def images(self, data: str, split: str) -> int:
        """Number of images of a split."""
        return len(self._listed(data, split))

    def _model(self, model: str) -> dict[str, Any]:
        if model not in self._models:
            self._models[model] = model_part(model)
        return self._models[model]

    def _file(self, file: str) -> str:
        if file not in self._files:
            self._files[file] = hash_file(Path(file))
        return self._files[file]

    def _set(self, data: str) -> dict[str, Any]:
        from yolo_attn.data.stats_read import load_dataset

        if data not in self._sets:
            self._sets[data] = load_dataset(data)
        return self._sets[data]

    def _meaning(self, data: str) -> dict[str, Any]:
        content = self._set(data)
        keys = ("names", "nc", "kpt_shape", "flip_idx", "channels")
        return {key: content[key] for key in keys if content.get(key) is not None}

    def _split(
        self, data: str, split: str, recorded: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Digests of a split: names of the images, their content, their labels."""
        listed = self._listed(data, split)
        damaged = [name for name, image, _ in listed if image == UNFINISHED]
        left_out = {*damaged, *(recorded or {}).get("unfinished", ())}
        part: dict[str, Any] = {
            "count": len(listed),
            "names": digest([name for name, _, _ in listed]),
            "content": digest([image for name, image, _ in listed if name not in left_out]),
            "labels": digest([label for _, _, label in listed]),
        }
        return {**part, "unfinished": sorted(left_out)} if left_out else part

    def _listed(self, data: str, split: str) -> list[tuple[str, str, str]]:
        """Name below the set's folder, digest of the image, digest of its labels."""
        from yolo_attn.data.stats_read import label_files, list_images

        if (data, split) not in self._splits:
            content = self._set(data)
            if not content.get(split):
                raise YoloAttnError(f"{data}: has no split {split!r}")
            images = list_images(content[split], f"{data}: {split}")
            if not images:
                raise YoloAttnError(f"{data}: {split} has no images at {content[split]}")
            labels = label_files(images)
            root = Path(content["path"])
            found = hash_files([Path(i) for i in images] + labels, str(Path(data).resolve()))
            names = [_below(Path(image), root) for image in images]
            # An image without a label file and one with an empty file are trained alike.
            empty = hashlib.sha256(b"").hexdigest()
            marks = [empty if f == ABSENT else f for f in found[len(images) :]]
            self._splits[data, split] = list(zip(names, found, marks))
        return self._splits[data, split]


def model_part(model: str) -> dict[str, Any]:
    """A model as it is built: one text a row, and everything else of the expanded YAML.

    Raises:
        YoloAttnError: it cannot be read.
    """
    from yolo_attn.overlay.dry_run import load_model_yaml
    from yolo_attn.overlay.location import PROVENANCE

    d = dict(load_model_yaml(model))
    d.pop("yaml_file", None)
    scales = d.get("scales")
    if isinstance(scales, dict) and d.get("scale") in scales:
        d["scales"] = {d["scale"]: scales[d["scale"]]}
    # Where a row came from decides which weights it gets; what the file was called does not.
    origin = d.pop(PROVENANCE, None) or {}
    rows = [json.dumps(plain(row)) for key in ("backbone", "head") for row in d.pop(key)]
    kept = {k: v for k, v in origin.items() if k not in ("labels", "base")}
    rest = plain({**d, **({"origin": kept} if kept else {})})
    return {"rows": rows, "rest": rest, "sha256": digest([rows, rest])}


def effective_arguments(args: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a training that can change its result, defaults filled in.

    A file among them stands with the digest of its content.
    """
    from ultralytics.cfg import get_cfg

    every = dict(vars(get_cfg(overrides=dict(args))))
    found = {}
    for key, value in sorted(every.items()):
        if key in WITHOUT_EFFECT:
            continue
        if isinstance(value, (str, Path)) and Path(value).is_file():
            value = f"{Path(value).name} sha256 {hash_file(Path(value))}"
        found[key] = value
    return plain(found)


def versions() -> dict[str, str]:
    """Versions that change results; a build's own mark (``+cpu``) does not count."""
    import torch
    import ultralytics

    import yolo_attn

    every = {"ultralytics": ultralytics, "torch": torch, "yolo_attn": yolo_attn}
    return {name: str(module.__version__).split("+")[0] for name, module in every.items()}


def digest(value: Any) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def plain(value: Any) -> Any:
    """What JSON gives back for a value: text keys, lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def training_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the parts of two trainings, a phrase each; empty if they are equal."""
    found = []
    if changes := _model_differences(then.get("model") or {}, now.get("model") or {}):
        found.append(f"the model YAML changed since: {changes}")
    if then.get("weights") != now.get("weights"):
        found.append(f"the weights {_from_to(_short(then.get('weights')), _short(now['weights']))}")
    for name in ("train", "val"):
        found += _split_differences(then["data"].get(name) or {}, now["data"][name], name)
    found += _changes("the data YAML's", then["data"].get("meaning"), now["data"]["meaning"])
    versions_differ = _changes("", then.get("versions"), now.get("versions"))
    found += _changes("", then.get("arguments"), now.get("arguments"), both=bool(versions_differ))
    if then.get("seed") != now.get("seed"):
        found.append(f"seed {_from_to(then.get('seed'), now.get('seed'))}")
    found += _changes("", then.get("environment"), now.get("environment"))
    return found + versions_differ


def evaluation_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The same for evaluations; protocols that are not asked for any more do not count."""
    before, after = then.get("truth") or {}, now["truth"]
    split = str(now["options"].get("split", "val"))
    found = _split_differences(before, after, split)
    found += _changes("the data YAML's", before.get("meaning"), after["meaning"])
    if before.get("sidecar") != after["sidecar"]:
        change = _from_to(_short(before.get("sidecar")), _short(after["sidecar"]))
        found.append(f"annotations/{split}.json {change}")
    if missing := [p for p in now["protocols"] if p not in then.get("protocols", ())]:
        found.append(f"not evaluated with protocol {', '.join(missing)}")
    found += _changes("the evaluation's", then.get("options"), now["options"])
    return found + _changes("", then.get("versions"), now["versions"])


def _model_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if then.get("sha256") == now.get("sha256"):
        return ""
    before, after = then.get("rows", []), now.get("rows", [])
    found = []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for kind, a1, a2, b1, b2 in matcher.get_opcodes():
        if kind == "equal":
            continue
        same = a2 - a1 == b2 - b1
        pairs = zip(before[a1:a2], after[b1:b2]) if same else ()
        found += [f"{_row_change(old, new)} at row {b1 + i}" for i, (old, new) in enumerate(pairs)]
        if not same:
            found += [f"- {_module(row)} at row {a1 + i}" for i, row in enumerate(before[a1:a2])]
            found += [f"+ {_module(row)} at row {b1 + i}" for i, row in enumerate(after[b1:b2])]
    found += _changes("", then.get("rest"), now.get("rest"))
    return _listed_text(found)


def _row_change(old: str, new: str) -> str:
    before, after = _module(old), _module(new)
    return f"- {old} + {new}" if before == after else f"- {before} + {after}"


def _module(row: str) -> str:
    parts = json.loads(row)
    return str(parts[2]) if isinstance(parts, list) and len(parts) > 2 else row


def _split_differences(then: Mapping[str, Any], now: Mapping[str, Any], name: str) -> list[str]:
    if then.get("count") != now["count"]:
        return [f"the images of {name} are {now['count']}, were {then.get('count')}"]
    words = {"names": "names of the images", "content": "images", "labels": "labels"}
    changed = [text for key, text in words.items() if then.get(key) != now[key]]
    return [f"the {' and the '.join(changed)} of {name} changed since"] if changed else []


def _changes(whose: str, then: Any, now: Any, both: bool = False) -> list[str]:
    """``lr0 0.01, now 0.1`` for each key that differs; `both`: of the keys that both have."""
    then, now = then or {}, now or {}
    keys = [k for k in {**then, **now} if not both or (k in then and k in now)]
    found = [f"{k} {_from_to(then.get(k), now.get(k))}" for k in keys if then.get(k) != now.get(k)]
    return [f"{whose} {_listed_text(found)}".strip()] if found else []


def _listed_text(found: Sequence[str]) -> str:
    more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
    return "; ".join(found[:MOST]) + more


def _from_to(then: Any, now: Any) -> str:
    def text(value: Any) -> str:
        written = "unset" if value is None else json.dumps(plain(value))
        return written if len(written) <= 60 else f"{written[:57]}..."

    return f"{text(then)}, now {text(now)}"


def _short(value: str | None) -> str | None:
    return value and value[:12]


def _below(image: Path, root: Path) -> str:
    try:
        return image.relative_to(root).as_posix()
    except ValueError:
        return image.name
