"""A transfer never keeps fewer tensors than Ultralytics' own, by name, keeps in their right place.

Random relatives of a base are loaded into each other (see transfer_cases.py): overlays, overlays of
overlays and YAMLs written by hand, with blocks and other modules put in, rows replaced by
subclasses, by other modules and in other widths, other repeats, rows less, other levels of the head
and other classes. The test knows for each row which row of the base it is, if any, also where the
model does not say it. A tensor that by-name loading keeps is in its right place if

* its row is the same row of the base in both models (replaced or not), and in the head the branch
  is that of a level of the same stride: ours must keep the very same tensor there;
* or its row is of no base, and no row has moved up to it (the rows in front of it are of the same
  origins in both models): behind that row of the base, ours must keep as many.

What by-name loading puts elsewhere is no gain; but nor may ours keep fewer tensors than that in
all. And whatever ours keeps is in its right place: the same row of the base, or inserted rows
behind the same one. Only rows written by hand do not say which of two neighbours was taken out
and which was replaced: a few tensors may then be those of the other one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.utils import LOGGER

from tests.transfer_cases import FAMILIES, NO_BLOCKS, Relative, Relatives, variants_registered
from tests.transfer_harness import Keep, fill
from yolo_attn.errors import YoloAttnError
from yolo_attn.seam.redirect import original_of
from yolo_attn.transfer import load as weights

RELATIVES = 6  # of each base, which are loaded into each other and into the base and back
SLOW_SEEDS = range(1, 8)
ASTRAY = 0.05  # part of the kept tensors, between rows written by hand


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with variants_registered():
        yield


@pytest.fixture(scope="module")
def tally() -> Iterator[Counter[str]]:
    found: Counter[str] = Counter()
    yield found
    print("\n" + ", ".join(f"{name}: {n:,}" for name, n in found.items()))


@dataclass
class Loaded:
    """What a transfer would copy: name in the model -> name in the source; and what it printed."""

    source_of: dict[str, str] = field(default_factory=dict)
    summary: str = ""


def by_name(source: Any, model: Any) -> set[str]:
    """What Ultralytics' own transfer keeps."""
    theirs, own = source.state_dict(), model.state_dict()
    return {name for name, v in theirs.items() if name in own and own[name].shape == v.shape}


def ours(source: Any, model: Any) -> Loaded:
    """What ours keeps: by-name loading of the view of the source that it is given."""
    loaded = Loaded()
    names = {id(v): name for name, v in source.state_dict(keep_vars=True).items()}
    own = model.state_dict()

    def original(model: Any, view: Any, verbose: bool) -> None:
        for name, value in view.state_dict(keep_vars=True).items():
            if id(value) in names and name in own and own[name].shape == value.shape:
                loaded.source_of[name] = names[id(value)]

    handler = Keep([])
    LOGGER.addHandler(handler)
    try:
        weights.load(original, model, source)
    finally:
        LOGGER.removeHandler(handler)
    loaded.summary = handler.lines[-1]
    return loaded


def place(name: str) -> tuple[int, str]:
    """``model.4.cv1.conv.weight`` -> row 4, cv1.conv.weight."""
    _, row, rest = name.split(".", 2)
    return int(row), rest


def level(relative: Relative, name: str) -> tuple[float, int] | None:
    """Stride of the head's branch that a tensor belongs to, if it does; and the how manieth."""
    row, rest = place(name)
    branch = re.match(r"cv[23]\.(\d+)\.", rest) if row == len(relative.origin) - 1 else None
    if branch is None:
        return None
    strides = relative.strides[: int(branch[1]) + 1]
    return strides[-1], strides.count(strides[-1])


class Pair:
    """A source, a model, and where their tensors belong."""

    def __init__(self, base: Relative, source: Relative, model: Relative):
        self.source, self.model = source, model
        self.with_tensors = {i for i, row in enumerate(base.model.model) if row.state_dict()}

    def behind(self, relative: Relative, row: int) -> int:
        """The last row of the base with tensors in front of an inserted row."""
        known = (o for o in relative.origin[:row] if o in self.with_tensors)
        return max(known, default=-1)

    def belongs(self, theirs: str, own: str) -> bool:
        """Whether a tensor of the source and one of the model are of one place."""
        i, j = place(theirs)[0], place(own)[0]
        a, b = self.source.origin[i], self.model.origin[j]
        if a < 0 and b < 0:
            return self.behind(self.source, i) == self.behind(self.model, j)
        return a == b and level(self.source, theirs) == level(self.model, own)

    def unmoved(self, name: str) -> bool:
        """Whether up to its row none has moved."""
        upto = place(name)[0] + 1
        return self.source.origin[:upto] == self.model.origin[:upto]

    def fits(self) -> float:
        """Part of the source's layers, but blocks, that fit whole into their place."""
        model_row = {o: j for j, o in enumerate(self.model.origin) if o >= 0}
        fit = []
        for i, o in enumerate(self.source.origin):
            theirs = self.source.model.model[i].state_dict()
            if theirs and (o >= 0 or str(self.source.model.model[i].type).endswith(NO_BLOCKS)):
                own = self.model.model.model[model_row[o]].state_dict() if o in model_row else {}
                fit.append(all(k in own and own[k].shape == v.shape for k, v in theirs.items()))
        return sum(fit) / len(fit)


def check(pair: Pair, tally: Counter[str], monkeypatch: pytest.MonkeyPatch) -> Loaded:
    source, model = pair.source, pair.model
    label = f"{source.made}--- into\n{model.made}"
    try:
        got = ours(source.model, model.model)
    except YoloAttnError as error:
        assert "\n" not in str(error) and "another family or scale" in str(error), label
        assert pair.fits() < weights.SAME_FAMILY, label
        tally["refused (then partial)"] += 1
        with monkeypatch.context() as partial:
            partial.setenv(weights.PARTIAL_ENV, "1")
            got = ours(source.model, model.model)

    stock = by_name(source.model, model.model)
    right = {name for name in stock if pair.belongs(name, name)}
    of_base = {name for name in right if source.origin[place(name)[0]] >= 0}
    assert not {name for name in of_base if got.source_of.get(name) != name}, label
    unmoved, kept = (
        Counter(pair.behind(model, row) for row in (place(name)[0] for name in names)
                if model.origin[row] < 0)
        for names in ((name for name in right if pair.unmoved(name)), got.source_of)
    )  # fmt: skip
    assert all(kept[row] >= count for row, count in unmoved.items()), label
    assert len(got.source_of) >= len(stock), label
    astray = {own: theirs for own, theirs in got.source_of.items() if not pair.belongs(theirs, own)}
    assert len(astray) <= (0 if source.known and model.known else ASTRAY * len(got.source_of)), (
        f"{label}{astray}"
    )

    tally["cases"] += 1
    tally["tensors kept by ours"] += len(got.source_of)
    tally["by name"] += len(stock)
    tally["of these in their right place"] += len(right)
    tally["astray between rows written by hand"] += len(astray)
    return got


def check_summary(pair: Pair, got: Loaded) -> None:
    """The message counts what was kept, what is new and what was dropped."""
    total, held = (len(r.model.model.state_dict()) for r in (pair.model, pair.source))
    kept = len(got.source_of)
    assert got.summary.startswith(f"Transferred {kept}/{total} items"), got.summary
    for title, wanted in (("new", total - kept), ("dropped", held - kept)):
        found = re.findall(rf"^  {title}: .*: (\d+) tensors?,", got.summary, re.MULTILINE)
        assert sum(map(int, found)) == wanted, got.summary


def check_values(pair: Pair, got: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a transfer that is carried out leaves."""
    model = deepcopy(pair.model.model)
    monkeypatch.setenv(weights.PARTIAL_ENV, "1")
    weights.load(original_of("ultralytics.nn.tasks.BaseModel.load"), model, pair.source.model)
    monkeypatch.delenv(weights.PARTIAL_ENV)
    theirs, own = pair.source.model.state_dict(), model.state_dict()
    for name, source_name in got.source_of.items():
        assert torch.equal(own[name], theirs[source_name]), name


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in SLOW_SEEDS)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_never_fewer_tensors_than_by_name(
    family: str,
    seed: int,
    tmp_path: Path,
    tally: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = Relatives(family, tmp_path, seed)
    base = draw.plain()
    relatives = [base, *(draw.next() for _ in range(RELATIVES))]
    for relative in relatives:
        fill(relative.model)
    for k, source in enumerate(relatives):
        for j, model in enumerate(relatives):
            if not (source.ours or model.ours):
                continue  # Ultralytics' own code runs
            pair = Pair(base, source, model)
            got = check(pair, tally, monkeypatch)
            check_summary(pair, got)
            if j == (k + 1) % len(relatives):
                check_values(pair, got, monkeypatch)
