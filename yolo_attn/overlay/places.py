"""Which rows an entry of an overlay names: taps, layer indices, branches.

A branch is an inserted row with a name, which only later inserts read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from yolo_attn.errors import YoloAttnError
from yolo_attn.overlay.graph import Node
from yolo_attn.overlay.taps import find_taps

TAP = re.compile(r"[A-Z]\d+")


def split_branch(entry: Any, branches: dict[str, Node], where: str) -> tuple[Any, str | None]:
    """Split ``{name: NAME}`` off an entry of ``insert``.

    Returns:
        The entry without it, and the name or None.

    Raises:
        YoloAttnError: The fifth entry is something else, or the name is taken.
    """
    if not isinstance(entry, (list, tuple)) or len(entry) != 5:
        return entry, None
    *rest, keywords = entry
    branch = keywords.get("name") if isinstance(keywords, dict) and len(keywords) == 1 else None
    if not isinstance(branch, str) or not branch.isidentifier() or TAP.fullmatch(branch):
        raise YoloAttnError(
            f"{where}: {keywords!r} (accepted as fifth entry: {{name: NAME}}, with a word that is "
            "no tap)"
        )
    if branch in branches:
        raise YoloAttnError(f"{where}: the name {branch!r} stands for an earlier insert already")
    return rest, branch


def find_places(
    at: Any,
    base: dict[str, Any],
    by_index: list[Node],
    taps: dict[str, int],
    branches: dict[str, Node],
    where: str,
) -> list[Node]:
    """Rows that `after` or `index` names: of the base, or branches.

    Args:
        at: A tap, a layer index, a branch's name, or a list of them.
        base: The plain model dictionary of the base.
        by_index: The base's rows.
        taps: What is known of its taps; filled when the first one is named.
        branches: Inserted rows by name.
        where: File and entry, for messages.

    Raises:
        YoloAttnError: There is no such row; names what there is.
    """
    places = at if isinstance(at, (list, tuple)) else [at]
    if not places:
        raise YoloAttnError(
            f"{where}: after=[] (accepted: a tap, a layer index, or a list of them)"
        )
    last = len(by_index) - 1
    nodes = []
    for place in places:
        if isinstance(place, bool) or not isinstance(place, (int, str)):
            raise YoloAttnError(
                f"{where}: after={place!r} (accepted: a tap such as P5, or a layer index)"
            )
        if place in branches:
            nodes.append(branches[place])
            continue
        if isinstance(place, str):
            if not taps:
                taps.update(find_taps(base))
            if place not in taps:
                known = ", ".join([*(f"{tap}={i}" for tap, i in taps.items()), *branches])
                raise YoloAttnError(
                    f"{where}: the base {Path(base['yaml_file']).name} has no tap {place!r} (it "
                    f"has {known})"
                )
            place = taps[place]
        if not 0 <= place < last:
            what = "the head itself" if place == last else "out of range"
            raise YoloAttnError(
                f"{where}: layer {place} of {Path(base['yaml_file']).name} is {what} (accepted: 0 "
                f"to {last - 1}, "
                "counted in the base)"
            )
        nodes.append(by_index[place])
    if len({id(n) for n in nodes}) != len(nodes):
        raise YoloAttnError(f"{where}: after={listed(at)} names the same layer twice")
    return nodes


def listed(after: Any) -> str:
    """``after`` as it was written."""
    return f"[{', '.join(map(str, after))}]" if isinstance(after, (list, tuple)) else str(after)
