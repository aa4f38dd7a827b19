"""What a fork may mean by a module's name: its designs, each as one of our blocks with options.

One name has up to four designs in published models, and the YAML does not tell which. The first of
a family is what its name means in most forks; the others are chosen with ``--design NAME=DESIGN``.
"""

from __future__ import annotations

from collections.abc import Mapping

from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.migrate.design import Design, Family
from yolo_attn.migrate.families import FAMILIES

__all__ = ["FAMILIES", "Design", "Family", "all_names", "check_designs", "family_of"]


def family_of(name: object) -> Family | None:
    """The family of a module name, case ignored; None where there is none."""
    if not isinstance(name, str):
        return None
    return _BY_NAME.get(name) or _BY_LOWER.get(name.lower())


def all_names() -> list[str]:
    """Every module name that has a family."""
    return list(_BY_NAME)


_BY_NAME = {name: family for family in FAMILIES for name in family.names}
_BY_LOWER = {name.lower(): family for name, family in _BY_NAME.items()}


def check_designs(designs: Mapping[str, str]) -> None:
    """Refuse choices that no family has.

    Raises:
        YoloAttnError: An unknown name or design; names the accepted ones.
    """
    for name, wanted in designs.items():
        family = family_of(name)
        if family is None:
            raise YoloAttnError(
                f"--design {name}={wanted}: no designs are known for {name!r}"
                f"{did_you_mean(name, _BY_NAME) or ','} (`yolo-attn migrate --designs` lists them)"
            )
        known = [d.name for d in family.designs]
        if wanted not in known:
            raise YoloAttnError(
                f"--design {name}={wanted}: no such design{did_you_mean(wanted, known)} "
                f"(accepted: {', '.join(known)})"
            )
