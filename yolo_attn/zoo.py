"""The model zoo: what each config costs, where its blocks sit, and plain YAMLs of it."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import yaml

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.dry_run import load_model_yaml, run, scales_of
from yolo_attn.overlay.location import PROVENANCE
from yolo_attn.overlay.model_files import find_model_yaml, read_yaml
from yolo_attn.paths import zoo_dir
from yolo_attn.registry import find_block
from yolo_attn.seam.compat import host_version
from yolo_attn.seam.loss_choice import STATE, loss_lines


@dataclass
class Config:
    """One model of the zoo at one scale.

    Attributes:
        name: Name to give to ``yolo`` (with the scale letter).
        parameters: Number of parameters.
        gflops: GFLOPs at 640 pixels, attention products included.
        base: Name of the model that it is an overlay of, at the same scale; empty for a plain one.
        blocks: One entry for each of our blocks: row, block and, for overlays, where the overlay
            put it.
        latency: Milliseconds of one forward pass on this machine, if measured.
    """

    name: str
    parameters: int
    gflops: float
    base: str = ""
    blocks: list[dict[str, Any]] = field(default_factory=list)
    latency: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def config_names() -> list[str]:
    """File names of the zoo's configs, sorted."""
    return sorted(p.name for p in zoo_dir().glob("*.yaml"))


def base_names() -> list[str]:
    """File names of the zoo's bases, models of families that Ultralytics lacks, sorted."""
    return sorted(p.name for p in (zoo_dir() / "bases").glob("*.yaml"))


def with_scale(name: str, scale: str) -> str:
    """``("yolov8-nonlocal.yaml", "n") -> "yolov8n-nonlocal.yaml"``."""
    path = Path(name)
    return str(path.with_name(re.sub(r"(yolo(?:e-)?v?\d+)", rf"\g<1>{scale}", path.name, count=1)))


def select(pattern: str, scale: str = "") -> list[str]:
    """Configs and bases of the zoo, each at one scale.

    Args:
        pattern: Shell pattern of file names; without ``.yaml`` or ``*`` at its end, what they begin
            with.
        scale: Scale letter; by default each model's smallest. Models without it are left out, and
            so are those of a family that the installed Ultralytics has not yet.

    Returns:
        Names for :func:`describe`; configs first, then bases.

    Raises:
        YoloAttnError: There is none.
    """
    wanted = pattern if pattern.endswith((".yaml", "*")) else f"{pattern}*"
    found = [n for n in [*config_names(), *base_names()] if fnmatch.fnmatch(n, wanted)]
    if not found:
        raise YoloAttnError(
            f"no config of the zoo matches {pattern!r} (`yolo-attn zoo` lists them all)"
        )
    absent = [n for n in found if not is_known(n)]
    found = [n for n in found if n not in absent]
    if not found:
        raise YoloAttnError(
            f"{absent[0]}: the installed Ultralytics {host_version()} has no "
            f"{read_yaml(zoo_dir() / absent[0])['base']} (accepted: a newer release)"
        )
    letters = {n: _scales_of_file(n) for n in found}
    if scale:
        found = [n for n in found if scale in letters[n]]
    if not found:
        known = sorted({letter for listed in letters.values() for letter in listed if letter})
        raise YoloAttnError(
            f"{pattern} has no scale {scale!r} (it has {', '.join(known) or 'no scales'})"
        )
    return [with_scale(n, scale or letters[n][0]) for n in found]


def is_known(name: str) -> bool:
    """Whether the installed Ultralytics has the family of a model of the zoo."""
    path = find_model_yaml(name, beside=zoo_dir())
    d = read_yaml(path) if path else {}
    return path is not None and ("base" not in d or is_known(d["base"]))


def _scales_of_file(name: str) -> list[str]:
    """Scale letters of a model of the zoo, without expanding it."""
    path = find_model_yaml(name, beside=zoo_dir())
    d = read_yaml(path) if path else {}
    return _scales_of_file(d["base"]) if "base" in d and "scales" not in d else scales_of(d)


def describe(name: str, imgsz: int = 640) -> Config:
    """Measure a config.

    Stock layers cost in an overlay what they cost in its base, which is built and counted once;
    an overlay itself is only run without storage.

    Args:
        name: A model YAML, with the scale letter in its name where it has scales.
        imgsz: Side of the image for the GFLOPs.

    Raises:
        YoloAttnError: The config is at fault.
    """
    d = load_model_yaml(name)
    layers, outputs = run(d, side=imgsz)
    provenance = d.get(PROVENANCE) or {}
    parameters = _count_parameters(layers)
    gflops, base = None, ""
    if "base" in provenance:  # an overlay
        base = with_scale(provenance["base"], d.get("scale") or "")
        blocks = [i for i, origin in enumerate(provenance["rows"]) if origin < 0]
        cost = None if provenance["replaced"] else _cost(base, imgsz)
        kept = parameters - sum(_count_parameters(layers[i]) for i in blocks)
        if cost and cost[0] == kept and cost[1]:
            gflops = cost[1] + _block_gflops(layers, outputs, blocks)
    if gflops is None:
        gflops = _measure(d, imgsz)
    return Config(
        name=Path(name).name,
        parameters=parameters,
        gflops=gflops,
        base=base,
        blocks=blocks_of(d),
    )


def _count_parameters(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


@lru_cache(maxsize=64)
def _cost(name: str, imgsz: int) -> tuple[int, float] | None:
    """Parameters and GFLOPs of a base; None if there is none of this name to measure."""
    try:
        d = load_model_yaml(name)
    except YoloAttnError:
        return None
    return _count_parameters(run(d)[0]), _measure(d, imgsz)


def _measure(d: dict[str, Any], imgsz: int) -> float:
    """GFLOPs of a model as ``yolo`` prints them."""
    from ultralytics.utils.torch_utils import get_flops

    return float(get_flops(_build(d), imgsz))


def _block_gflops(layers: Any, outputs: list[Any], blocks: list[int]) -> float:
    """GFLOPs of some layers of a dry run, from the maps that they read there."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    total = 0
    for i in blocks:
        f = layers[i].f
        x = [outputs[i - 1 if j == -1 else j] for j in (f if isinstance(f, list) else [f])]
        with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
            layers[i](x if isinstance(f, list) else x[0])
        total += counter.get_total_flops()
    return total / 1e9


def latency(name: str, imgsz: int = 640, runs: int = 9) -> float:
    """Milliseconds of one forward pass of one image on this machine.

    Args:
        name: A model YAML, with the scale letter in its name where it has scales.
        imgsz: Side of the image.
        runs: How many times to measure, after one pass to warm up; the median counts.

    Returns:
        On the first CUDA device if there is one, else on the CPU; batch 1, float32, layers fused.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    d = load_model_yaml(name)
    model = _build(d).to(device).eval().fuse(verbose=False)
    x = torch.zeros(1, d.get("channels", d.get("ch", 3)), imgsz, imgsz, device=device)
    times = []
    with torch.inference_mode():
        for _ in range(runs + 1):
            start = perf_counter()
            model(x)
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(1000 * (perf_counter() - start))
    return median(times[1:])


def _build(d: dict[str, Any]) -> Any:
    """The model class of a dictionary, with fresh weights."""
    from ultralytics.nn.tasks import guess_model_task
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel("ERROR")  # the table is ours to print
    try:
        return _model_class(guess_model_task(d))(d, verbose=False)
    finally:
        LOGGER.setLevel(level)


def _model_class(task: str) -> Any:
    from ultralytics.nn import tasks

    names = {
        "classify": "ClassificationModel",
        "segment": "SegmentationModel",
        "pose": "PoseModel",
        "obb": "OBBModel",
    }
    return getattr(tasks, names.get(task, "DetectionModel"))


def blocks_of(d: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a plain model dictionary that name one of our blocks."""
    labels = dict(map(tuple, (d.get(PROVENANCE) or {}).get("labels", ())))
    found = []
    for i, (f, _n, module, args) in enumerate([*d["backbone"], *d["head"]]):
        info = find_block(module)
        if info is not None and not info.layer:
            place = labels.get(i, "").rsplit(" after ", 1)
            found.append(
                {
                    "row": i,
                    "block": info.name,
                    "after": place[1] if len(place) == 2 else f if i else "the image",
                    "args": args,
                }
            )
    return found


def check(name: str) -> list[str]:
    """Validate a model YAML at each of its scales, without storage and without data.

    Args:
        name: A model YAML.

    Returns:
        What it is, one line a scale.

    Raises:
        YoloAttnError: It is at fault; names file, row and the way out.
    """
    d = load_model_yaml(name)
    scales = [d["scale"]] if d.get("scale") in scales_of(d) else scales_of(d)
    lines = []
    for scale in scales:
        model, _ = run(d, scale)
        parameters = sum(p.numel() for p in model.parameters())
        at = f" scale {scale}" if scale else ""
        lines.append(f"{name}{at}: ok, {len(model)} layers, {parameters:,} parameters")
    return [*lines, *(f"{name}: {line}" for line in loss_lines(d))]


def to_yaml(d: dict[str, Any], title: str) -> str:
    """Write a plain model dictionary as a YAML that ``yolo`` loads, one line a row.

    Args:
        d: The model dictionary, e.g. an expanded overlay.
        title: First comment line.
    """
    provenance = d.get(PROVENANCE) or {}
    labels = dict(map(tuple, provenance.get("labels", ())))
    head = {
        k: v
        for k, v in d.items()
        if k not in ("backbone", "head", "scale", "yaml_file", PROVENANCE, STATE)
    }
    lines = [
        f"# {title}",
        # Key by key: a mapping of scalars alone (yolov9c has only nc) would be dumped in braces.
        *(_entry(k, v) for k, v in head.items()),
        "",
    ]
    i = 0
    for section in ("backbone", "head"):
        lines.append(f"{section}:")
        for row in d[section]:
            text = yaml.safe_dump(row, default_flow_style=True, width=10_000).strip()
            lines.append(f"  - {text} # {i}{_origin(i, row, labels, provenance)}")
            i += 1
        lines.append("")
    if PROVENANCE in d:
        lines.append(
            "# The version whose defaults are meant, and which row of the base each row is (-1:"
            " inserted); rebuilding and weight transfer read it."
        )
        lines.append(
            yaml.safe_dump(
                {PROVENANCE: d[PROVENANCE]}, sort_keys=False, default_flow_style=None, width=100
            )
        )
    return "\n".join(lines).rstrip() + "\n"


def _entry(key: str, value: Any) -> str:
    """One top-level key in block style, what is inside it on one line where it is short."""
    style = None if isinstance(value, (dict, list)) else False
    return yaml.safe_dump({key: value}, sort_keys=False, default_flow_style=style).rstrip()


def _origin(i: int, row: list[Any], labels: dict[int, str], provenance: dict[str, Any]) -> str:
    """What the overlay said about a row, with its taps as layers of the base."""
    if i not in labels:
        return ""
    sources = row[0] if isinstance(row[0], (list, tuple)) else [row[0]]
    if i == 0:  # reads the image
        return f" ({labels[i]})"
    rows = provenance["rows"]
    layers = [rows[s if s >= 0 else i + s] for s in sources]
    known = [str(layer) for layer in layers if layer >= 0]
    meaning = f", layer {' and '.join(known)} of {provenance['base']}" if known else ""
    return f" ({labels[i]}{meaning})"
