"""The YAML key ``loss``: what may stand there, and the plain mapping that it stands for.

```yaml
loss: inner-mpdiou         # [wise-][inner-|focaler-][focal-][alpha-]BASE, or wiou-v1|v2|v3
loss:
  box: mpdiou
  inner: 0.7
  nwd: 0.5
  cls: {cls: varifocal, alpha: 0.75}
```
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.losses.class_options import expand_class

BASES = (
    "iou", "giou", "diou", "ciou", "eiou", "siou", "mpdiou", "shapeiou", "piou", "piou2", "wiou",
    "nwd",
)  # fmt: skip
MODIFIERS = ("wise", "inner", "focaler", "focal", "alpha")
KEYS = ("box", *MODIFIERS, "nwd", "nwd_c", "nwd_units", "scale", "lambda", "theta", "cls")
INNER, FOCALER, ALPHA, FOCAL = 0.7, (0.0, 0.95), 3.0, 0.5
NWD_C, NWD_UNITS = 12.8, "pixel"
# The running mean's step: half of it is new after 7000 batches, as most YOLO forks have it.
MOMENTUM = 1 - 0.5 ** (1 / 7000)
WISE = {
    1: {},
    2: {"gamma": 0.5, "momentum": MOMENTUM},
    3: {"alpha": 1.9, "delta": 3, "momentum": MOMENTUM},
}
# Bases with an option of their own: its default, and whether the expansion writes it out.
OWN = {"scale": ("shapeiou", 0.0), "lambda": ("piou2", 1.3), "theta": ("siou", 4.0)}
SPELLED_OUT = ("scale", "lambda")
ALPHA_BASES = ("iou", "giou", "diou", "ciou")
STOCK = {"box": "ciou"}


@dataclass
class Expanded:
    """A loss with every default written out, and what should be said about it."""

    spec: dict[str, Any]
    warnings: list[str] = field(default_factory=list)

    @property
    def stock_box(self) -> bool:
        """Whether the box part is what Ultralytics computes anyway."""
        return {k: v for k, v in self.spec.items() if k != "cls"} == STOCK

    @property
    def stock_class(self) -> bool:
        """Whether the class part is."""
        return self.spec.get("cls", {"cls": "bce"})["cls"] == "bce"


def expand(value: Any) -> Expanded:
    """Read the value of the key ``loss``.

    Raises:
        YoloAttnError: It is not a loss; says why and what is accepted.
    """
    if isinstance(value, str):
        value = _from_short_name(value)
    elif not isinstance(value, dict):
        raise YoloAttnError(
            f"loss: {value!r} is not accepted (accepted: a name such as inner-ciou, or a mapping "
            f"with {', '.join(KEYS)})"
        )
    for key in value:
        if key not in KEYS:
            raise YoloAttnError(
                f"loss: unknown key {key!r}{did_you_mean(key, KEYS)} (accepted: {', '.join(KEYS)})"
            )
    box = _base(value.get("box", "ciou"))
    spec: dict[str, Any] = {"box": box}
    warnings: list[str] = []
    _overlap(value, spec, warnings)
    _power(value, spec, warnings)
    _focusing(value, spec, warnings)
    _own_options(value, spec)
    _gaussian(value, spec, warnings)
    if "cls" in value:
        spec["cls"], more = expand_class(value["cls"], "loss cls")
        warnings += more
    return Expanded(spec, warnings)


def _base(value: Any) -> str:
    name = value.lower() if isinstance(value, str) else value
    if name not in BASES:
        hint = did_you_mean(value, BASES)
        raise YoloAttnError(f"loss box: {value!r}{hint} (accepted: {', '.join(BASES)})")
    return str(name)


def _from_short_name(text: str) -> dict[str, Any]:
    """``Wise-Inner-SIoU -> {box: siou, inner: 0.7, wise: 3}``."""
    words = text.lower().replace("_", "-").split("-")
    bases = [w for w in words if w in BASES]
    versions = [w for w in words if w in ("v1", "v2", "v3")]
    wrong = [w for w in words if w not in (*BASES, *MODIFIERS, *versions)]
    if wrong or len(bases) != 1 or len(set(words)) < len(words) or len(versions) > 1:
        hint = did_you_mean(wrong[0], (*BASES, *MODIFIERS)) if wrong else ""
        raise YoloAttnError(
            f"loss: {text!r} is no loss{hint or ','} accepted: one of {', '.join(BASES)} with any "
            "of wise-, inner- or focaler-, focal-, alpha- before it, wiou also with -v1, -v2, -v3 "
            "(`yolo-attn losses` lists them)"
        )
    box = bases[0]
    if versions and box != "wiou":
        raise YoloAttnError(f"loss: {text!r}: {versions[0]} belongs to wiou (accepted: {box})")
    found: dict[str, Any] = {"box": box}
    if "inner" in words:
        found["inner"] = INNER
    if "focaler" in words:
        found["focaler"] = list(FOCALER)
    if "alpha" in words:
        found["alpha"] = ALPHA
    if "focal" in words:
        found["focal"] = FOCAL
    if "wise" in words or box == "wiou":
        found["wise"] = int(versions[0][1]) if versions else 3
    return found


def number(value: Any, where: str, accepted: str, low: float = -math.inf) -> float:
    """A finite number of at least `low`.

    Raises:
        YoloAttnError: It is something else; names `where` and what is `accepted`.
    """
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or value < low:
        raise YoloAttnError(f"{where}: {value!r} (accepted: {accepted})")
    return float(value)


def above(value: Any, where: str, low: float) -> float:
    """A finite number above `low`."""
    found = number(value, where, f"a number above {low:g}")
    if found <= low:
        raise YoloAttnError(f"{where}: {value!r} (accepted: a number above {low:g})")
    return found


def _overlap(value: dict[str, Any], spec: dict[str, Any], warnings: list[str]) -> None:
    box = spec["box"]
    if "inner" in value and "focaler" in value:
        raise YoloAttnError("loss: inner and focaler both replace the IoU (accepted: one of them)")
    for key in MODIFIERS:
        if key in value and box == "nwd":
            raise YoloAttnError(
                f"loss {key}: box nwd has no overlap term that {key} could change (accepted: "
                f"another box; {{box: ciou, {key}: .., nwd: 0.5}} mixes)"
            )
    if "inner" in value:
        spec["inner"] = above(value["inner"], "loss inner", 0)
        if spec["inner"] == 1:
            warnings.append("loss inner: 1 has no effect")
    if "focaler" in value:
        spec["focaler"] = _interval(value["focaler"])
        if spec["focaler"] == [0.0, 1.0]:
            warnings.append("loss focaler: [0, 1] has no effect")
    if box == "iou" and ("focaler" in spec or spec.get("inner", 1) < 1):
        key = "focaler" if "focaler" in spec else "inner"
        warnings.append(
            f"loss: box iou with {key}: many boxes (disjoint ones, and others) get no gradient"
        )


def _interval(value: Any) -> list[float]:
    accepted = "loss focaler: {!r} (accepted: [d, u] with 0 <= d < u <= 1, e.g. [0, 0.95])"
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise YoloAttnError(accepted.format(value))
    low, high = (number(v, "loss focaler", "two numbers from 0 to 1") for v in value)
    if not 0 <= low < high <= 1:
        raise YoloAttnError(accepted.format(value))
    return [low, high]


def _power(value: dict[str, Any], spec: dict[str, Any], warnings: list[str]) -> None:
    if "alpha" not in value:
        return
    if spec["box"] not in ALPHA_BASES:
        raise YoloAttnError(
            f"loss alpha: box {spec['box']} has no alpha form (accepted: {', '.join(ALPHA_BASES)})"
        )
    for key in ("inner", "focaler"):
        if key in value:
            raise YoloAttnError(
                f"loss alpha: with {key} (accepted: one of them; alpha is defined on the IoU)"
            )
    power = above(value["alpha"], "loss alpha", 0)
    if power == 1:
        warnings.append("loss alpha: 1 has no effect")
    else:
        spec["alpha"] = power


def _focusing(value: dict[str, Any], spec: dict[str, Any], warnings: list[str]) -> None:
    box = spec["box"]
    wise = _wise(value["wise"], warnings) if "wise" in value else None
    if wise is None and box == "wiou":
        wise = {"version": 1}
    if "focal" in value:
        second = "wise" if wise and wise["version"] > 1 else "piou2" if box == "piou2" else ""
        if second:
            more = " (the short name wiou means wiou-v3)" if box == "wiou" else ""
            raise YoloAttnError(
                f"loss focal: {second} focuses already{more} (accepted: one focusing)"
            )
        spec["focal"] = above(value["focal"], "loss focal", 0)
    if wise is None:
        return
    spec["wise"] = wise
    if wise["version"] == 1 and box != "wiou":
        warnings.append(f"loss wise: version 1 has no effect on {box}")
    if wise["version"] > 1 and box == "piou2":
        warnings.append("loss: piou2 focuses already, wise does it a second time")


def _wise(value: Any, warnings: list[str]) -> dict[str, Any]:
    given = value if isinstance(value, dict) else {"version": value}
    version = given.get("version", 3)
    # A list or mapping cannot be looked up in a dictionary: it would be a traceback.
    if isinstance(version, bool) or version not in tuple(WISE):
        raise YoloAttnError(f"loss wise: version {version!r} (accepted: 1, 2, 3)")
    wise: dict[str, Any] = {"version": int(version), **WISE[version]}
    for key, setting in given.items():
        if key not in ("version", "alpha", "delta", "gamma", "momentum"):
            raise YoloAttnError(
                f"loss wise: unknown key {key!r} (accepted: version, alpha, delta, gamma, momentum)"
            )
        if key == "version":
            continue
        # alpha is a base whose powers must fall with the distance from delta.
        checked = above(setting, f"loss wise {key}", 1 if key == "alpha" else 0)
        if key == "momentum" and checked > 1:
            raise YoloAttnError(f"loss wise momentum: {setting!r} (accepted: above 0, up to 1)")
        if key in wise:
            wise[key] = checked
        else:
            warnings.append(f"loss wise {key}: version {version} has no {key}, it is ignored")
    return wise


def _own_options(value: dict[str, Any], spec: dict[str, Any]) -> None:
    box = spec["box"]
    for key, (owner, default) in OWN.items():
        if key in value and box != owner:
            raise YoloAttnError(
                f"loss {key}: belongs to box {owner} (accepted: box: {owner}, or no {key})"
            )
        if key in value:
            # theta below 1 has an infinite slope where two sides are equal.
            low = {"scale": 0.0, "theta": 1.0}.get(key)
            where = f"loss {key}"
            if low is None:
                spec[key] = above(value[key], where, 0)
            else:
                spec[key] = number(value[key], where, f"a number from {low:g}", low)
        elif box == owner and key in SPELLED_OUT:
            spec[key] = default


def _gaussian(value: dict[str, Any], spec: dict[str, Any], warnings: list[str]) -> None:
    alone = spec["box"] == "nwd"
    if "nwd" in value:
        if alone:
            raise YoloAttnError(
                "loss nwd: box is nwd already (accepted: no share, or another box to mix with)"
            )
        share = number(value["nwd"], "loss nwd", "a share above 0 and below 1")
        if not 0 < share < 1:
            raise YoloAttnError(
                f"loss nwd: {value['nwd']!r} (accepted: a share above 0 and below 1; box: nwd for "
                "nwd alone)"
            )
        spec["nwd"] = share
    elif not alone:
        for key in ("nwd_c", "nwd_units"):
            if key in value:
                raise YoloAttnError(
                    f"loss {key}: without nwd (accepted: box: nwd, or a share such as nwd: 0.5)"
                )
        return
    spec["nwd_c"] = above(value.get("nwd_c", NWD_C), "loss nwd_c", 0)
    units = value.get("nwd_units", NWD_UNITS)
    if units not in ("pixel", "grid"):
        raise YoloAttnError(f"loss nwd_units: {units!r} (accepted: pixel, grid)")
    spec["nwd_units"] = units
    if units == "grid":
        warnings.append(
            "loss nwd_units: grid weighs the same object differently on every level (pixel does "
            "not)"
        )
