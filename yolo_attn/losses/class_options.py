"""The part ``cls`` of the YAML key ``loss``: a name, or a mapping with the loss's own numbers."""

from __future__ import annotations

import math
from typing import Any

from yolo_attn.errors import YoloAttnError, did_you_mean

MIDDLE = ("exp(1-mu)", "exp(mu)")
# Loss -> option -> (default, least, most); the options of a mean start it or say how it moves.
CLASS_OPTIONS: dict[str, dict[str, tuple[float, float, float]]] = {
    "bce": {},
    "focal": {"gamma": (1.5, 0, math.inf), "alpha": (0.25, -1, 1)},
    "varifocal": {"alpha": (0.75, 0, math.inf), "gamma": (2.0, 0, math.inf)},
    "quality_focal": {"beta": (2.0, 0, math.inf)},
    "slide": {"mu": (1.0, 0, 1)},
    "ema_slide": {"mu": (1.0, 0, 1), "decay": (0.999, 0, 1), "tau": (2000.0, 1e-9, math.inf)},
}


def expand_class(value: Any, where: str) -> tuple[dict[str, Any], list[str]]:
    """Read a class loss.

    Args:
        value: A name, or ``{cls: name, option: number, ...}``.
        where: What messages begin with.

    Returns:
        The mapping with all defaults, and warnings.

    Raises:
        YoloAttnError: It is not a class loss.
    """
    given = {"cls": value} if isinstance(value, str) else value
    if not isinstance(given, dict) or "cls" not in given:
        raise YoloAttnError(
            f"{where}: {value!r} (accepted: {', '.join(CLASS_OPTIONS)}, or a mapping such as "
            "{cls: focal, gamma: 1.5})"
        )
    name = given["cls"]
    name = name.lower().replace("-", "_") if isinstance(name, str) else name
    if name not in tuple(CLASS_OPTIONS):  # a list cannot be looked up in a dictionary
        hint = did_you_mean(name, CLASS_OPTIONS)
        raise YoloAttnError(f"{where}: {name!r}{hint} (accepted: {', '.join(CLASS_OPTIONS)})")
    limits = CLASS_OPTIONS[name]
    slides = name in ("slide", "ema_slide")
    accepted = [*limits, *(["middle"] if slides else [])]
    spec: dict[str, Any] = {
        "cls": name,
        **{key: default for key, (default, _, _) in limits.items()},
    }
    for key, setting in given.items():
        if key == "cls":
            continue
        if key not in accepted:
            raise YoloAttnError(
                f"{where}: {name} has no option {key!r}{did_you_mean(key, accepted)} (accepted: "
                f"{', '.join(accepted) or 'none'})"
            )
        if key == "middle":
            spec[key] = _middle(setting, where)
        else:
            spec[key] = _between(setting, f"{where} {key}", *limits[key][1:])
    return spec, []


def _middle(value: Any, where: str) -> str:
    if value not in MIDDLE:
        raise YoloAttnError(f"{where} middle: {value!r} (accepted: {', '.join(MIDDLE)})")
    return str(value)


def _between(value: Any, where: str, least: float, most: float) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or not least <= value <= most:
        upper = f" to {most:g}" if most < math.inf else " on"
        raise YoloAttnError(f"{where}: {value!r} (accepted: a number from {least:g}{upper})")
    return float(value)
