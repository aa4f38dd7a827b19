"""An expanded loss as one line for a person."""

from __future__ import annotations

from typing import Any


def describe(spec: dict[str, Any]) -> str:
    """One line for an expanded loss: ``inner 0.7, ciou; cls varifocal (alpha 0.75, gamma 2)``."""
    parts = []
    for key, value in spec.items():
        if key == "cls":
            continue
        if key == "wise":
            numbers = _numbers({k: v for k, v in value.items() if k != "version"})
            parts.append(f"wise v{value['version']}{numbers}")
        elif key == "box":
            parts.append(str(value))
        else:
            shown = [f"{v:g}" for v in value] if isinstance(value, list) else [_plain(value)]
            parts.append(f"{key} {' '.join(shown)}")
    cls = spec.get("cls", {"cls": "bce"})
    own = _numbers({k: v for k, v in cls.items() if k != "cls"})
    return f"box {', '.join(parts)}; class {cls['cls']}{own}"


def _numbers(options: dict[str, Any]) -> str:
    return f" ({', '.join(f'{k} {_plain(v)}' for k, v in options.items())})" if options else ""


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else str(value)


def short_name(spec: dict[str, Any]) -> str:
    """``wise-inner-siou-nwd-slide``: which parts a loss has, without their numbers."""
    version = spec.get("wise", {}).get("version", 0)
    wise = version > 1 and spec["box"] != "wiou"
    words = [f"wise{version}"] if wise else []
    words += [key for key in ("inner", "focaler", "focal", "alpha") if key in spec]
    words.append(spec["box"] + (f"-v{version}" if spec["box"] == "wiou" else ""))
    words += ["nwd"] if "nwd" in spec else []
    cls = spec.get("cls", {"cls": "bce"})["cls"]
    return "-".join([*words, *([cls] if cls != "bce" else [])])
