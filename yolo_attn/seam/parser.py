"""Ultralytics' own ``parse_model`` with one more branch, for rows that name one of our blocks.

A model without such rows goes to the untouched original. For a model with them, the installed
version's source is rebuilt once: in its one loop over the rows, our rows skip the stock look-up,
the stock evaluation of string arguments and the stock chain of ``if m in ...``; everything else
(repeats, table, save list) is stock code.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import threading
from ast import unparse
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from yolo_attn.errors import YoloAttnError
from yolo_attn.host import foreign
from yolo_attn.overlay.location import PROVENANCE, Location
from yolo_attn.overlay.meaning import is_ours, kept_rows, say_whose
from yolo_attn.overlay.model_checks import check_model, names_ours
from yolo_attn.overlay.modules import INDEX, check_modules, refuse_unknown_block, stock_module
from yolo_attn.overlay.provenance import STAMP, version_of
from yolo_attn.overlay.row_guards import refuse_width
from yolo_attn.paths import find_shipped
from yolo_attn.registry import BlockInfo, find_block, load_all
from yolo_attn.seam.block_rows import resolve_block
from yolo_attn.seam.compat import UnexpectedHostError
from yolo_attn.seam.host_modules import Index
from yolo_attn.seam.loss_choice import check_loss
from yolo_attn.seam.repeats import with_repeats
from yolo_attn.seam.stage_surgery import operate, without_marks
from yolo_attn.versions import made_by

HELPER = "__yolo_attn_row__"


def parse_model(original: FunctionType, d: dict[str, Any], ch: int, verbose: bool = True) -> Any:
    """Ultralytics' ``parse_model``, for stock rows and for ours."""
    check_loss(d)
    load_all()  # before the lock: somebody's block may build a model while it is imported
    # A model's `activation` is one of the whole process while the model is built.
    with _BUILDING:
        if not isinstance(d, dict) or not (PROVENANCE in d or _of_the_zoo(d)):
            return _parse_model(original, d, ch, verbose)
        conv = original.__globals__["Conv"]
        activation = conv.default_act
        try:
            return _parse_model(original, d, ch, verbose)
        finally:
            # Up to 8.4.150 it stays for every model that is built after it.
            conv.default_act = activation


def _of_the_zoo(d: dict[str, Any]) -> bool:
    return find_shipped(Path(str(d.get("yaml_file"))).name) is not None


def _parse_model(original: FunctionType, d: dict[str, Any], ch: int, verbose: bool) -> Any:
    rows = _rows(d)
    if not names_ours(d) and not any(_lacks_index(row[2], original) for row in rows or ()):
        refuse_unknown_block(d, rows, original)
        return original(d, ch, verbose)

    where, kept = Location(d), kept_rows(d)
    check_model(d, where)
    refuse_unknown_block(d, rows, original)
    check_modules(d, where)
    say_whose(d, kept, original.__globals__)
    plain, marks = without_marks(d, where)
    extended = FunctionType(
        _extended_code(original), {**original.__globals__, HELPER: Rows(original, where, kept)}
    )
    extended.__defaults__ = original.__defaults__
    # The rebuilt function must see the module's globals as they are now, and write none of its own.
    helper: Rows = extended.__globals__[HELPER]
    try:
        with made_by(version := version_of(d)):
            layers, save = extended(plain, ch, verbose)
            operate(layers, marks, d, where)
        setattr(layers, STAMP, version)
        return layers, save
    except YoloAttnError:
        raise
    except Exception as error:
        if foreign() and not helper.is_ours():
            raise
        raise YoloAttnError(
            f"{where.of_layer(helper.index)}: {helper.name} could not be built "
            f"({type(error).__name__}: {error})"
        ) from error


def _lacks_index(name: Any, original: FunctionType) -> bool:
    return bool(name == INDEX) and not stock_module(name, original.__globals__)


def _rows(d: Any) -> list[Any] | None:
    """The rows of a well-formed model, else None (stock code then says what it says)."""
    try:
        rows = [*d["backbone"], *d["head"]]
        return rows if all(len(row) == 4 for row in rows) else None
    except (TypeError, KeyError):
        return None


@dataclass
class Row:
    """What the extended ``parse_model`` needs of one of our rows."""

    m: type[nn.Module]
    args: list[Any]
    c2: Any
    n: int = 0  # how often it stands there; 0 for the row's repeats


class Rows:
    """Called by the extended ``parse_model`` at each row; None for stock rows."""

    def __init__(self, original: FunctionType, where: Location, kept: set[int]):
        self.original, self.where, self.kept = original, where, kept
        self.index, self.name = 0, ""

    def is_ours(self) -> bool:
        """Whether the row at hand is one of ours."""
        known = self.original.__globals__
        return is_ours(self.index, self.name, self.kept, known) or _lacks_index(
            self.name, self.original
        )

    def __call__(self, local: dict[str, Any]) -> Row | None:
        """Resolve the row that the loop's local variables hold."""
        i, f, n, name, args, ch = (local[key] for key in ("i", "f", "n", "m", "args", "ch"))
        self.index, self.name = i, name
        picks_ours = name == Index.__name__ and isinstance(f, int) and isinstance(ch[f], list)
        for source in () if picks_ours else [f] if isinstance(f, int) else f:
            if isinstance(ch[source], list):
                raise YoloAttnError(
                    f"{self.where.of_layer(i)}: {name} reads layer {source}, which has several "
                    "outputs; put an Index row in between that picks one"
                )
        if not picks_ours and not self.is_ours():
            return None
        info = find_block(name)
        try:
            if info is None or picks_ours:
                return self._index(args, ch[f] if picks_ours else None)
            return self._resolve(info, f, n, args, local)
        except YoloAttnError as error:
            raise YoloAttnError(f"{self.where.of_layer(i)}: {error}") from None

    def _resolve(self, info: BlockInfo, f: Any, n: Any, args: Any, local: dict[str, Any]) -> Row:
        channels = self._channels(info, f, n, local["ch"])
        args = list(args) if isinstance(args, (list, tuple)) else [args]
        file = self.where.source
        refuse_width(info, _without_identity_start(args), channels, local, file)
        args, n = with_repeats(info, args, n, local)
        cls, positional, probe = resolve_block(info, channels, args, local, file)
        first = channels if isinstance(channels, int) else channels[0]
        out = getattr(probe, "out_channels", first)
        if n > 1 and out != channels:
            raise YoloAttnError(
                f"{info.name} cannot be repeated (repeats={n}): it takes {channels} channels and "
                f"gives {out}; use repeats 1"
            )
        return Row(cls, positional, out, 1 if info.repeats else 0)

    def _index(self, args: Any, widths: list[int] | None) -> Row:
        """Ultralytics' ``Index`` row, where it reads a block of ours or the release has none.

        Args:
            args: ``[channels, index]``; channels may be null where `widths` are known.
            widths: Channels of our block's outputs.
        """
        if not isinstance(args, (list, tuple)) or not 1 <= len(args) <= 2:
            raise YoloAttnError(f"Index has args={args!r} (accepted: [channels, index])")
        cls = self.original.__globals__.get(Index.__name__, Index)
        channels, index = args[0], args[1] if len(args) == 2 else 0
        if widths is None:
            return Row(cls, [index], channels)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(widths):
            raise YoloAttnError(
                f"Index has index={index!r}, the layer that it reads has {len(widths)} outputs "
                f"(accepted: 0 to {len(widths) - 1})"
            )
        # "None" is how Ultralytics' own YAMLs write null.
        if channels not in (None, "None", widths[index]):
            raise YoloAttnError(
                f"Index has channels={channels!r}, but output {index} of the layer that it reads "
                f"has {widths[index]} (accepted: {widths[index]}, or null for whatever it has)"
            )
        return Row(cls, [index], widths[index])

    def _channels(self, info: BlockInfo, f: Any, n: Any, ch: list[Any]) -> int | list[int]:
        sources = [f] if isinstance(f, int) else list(f)
        if not info.min_inputs <= len(sources) <= info.max_inputs:
            wanted = (
                str(info.min_inputs)
                if info.min_inputs == info.max_inputs
                else f"{info.min_inputs} to {info.max_inputs}"
            )
            raise YoloAttnError(
                f"{info.name} takes {wanted} input{'s' if wanted != '1' else ''}, "
                f"the row's from={f} gives {len(sources)}"
            )
        channels = [ch[s] for s in sources]
        return channels if info.takes_list else channels[0]


def _without_identity_start(args: list[Any]) -> list[Any]:
    if not args or not isinstance(args[-1], dict):
        return args
    return [*args[:-1], {k: v for k, v in args[-1].items() if k != "identity_start"}]


_CODE: dict[CodeType, CodeType] = {}
_BUILDING = threading.RLock()


def _extended_code(original: FunctionType) -> CodeType:
    """Code of ``parse_model`` with our branch; the file name and line numbers are the original's.

    Raises:
        UnexpectedHostError: The source has not the shape that the branch is made for.
    """
    if original.__code__ not in _CODE:
        try:
            lines, first = inspect.getsourcelines(original)
        except OSError as error:
            raise UnexpectedHostError(
                "parse_model", f"its source cannot be read: {error}"
            ) from None
        tree = ast.parse(textwrap.dedent("".join(lines)))
        ast.increment_lineno(tree, first - 1)
        extended = ast.fix_missing_locations(extend(tree))
        module_code = compile(extended, original.__code__.co_filename, "exec")
        _CODE[original.__code__] = next(
            c
            for c in module_code.co_consts
            if isinstance(c, CodeType) and c.co_name == original.__name__
        )
    return _CODE[original.__code__]


def extend(tree: ast.Module) -> ast.Module:
    """Insert our branch into the tree of ``parse_model``.

    Raises:
        UnexpectedHostError: An anchor is missing or stands there twice.
    """
    function = tree.body[0]
    if not isinstance(function, ast.FunctionDef):
        raise UnexpectedHostError("parse_model", "its source is not one function")
    loop = _only(
        [n for n in ast.walk(function) if isinstance(n, ast.For) and _is_row_loop(n)],
        "one loop `for i, (f, n, m, args) in enumerate(...)` over the rows",
    )
    lookup = _only(
        [s for s in loop.body if _assigns(s, "m")],
        "one assignment `m = ...` that looks the module up",
    )
    evaluation = _only(
        [s for s in loop.body if isinstance(s, ast.For) and unparse(s.iter) == "enumerate(args)"],
        "one loop over enumerate(args)",
    )
    chain = _only(
        [s for s in loop.body if isinstance(s, ast.If) and _is_module_chain(s)],
        "one chain of `if m in ...`",
    )
    assert (
        isinstance(lookup, ast.Assign)
        and isinstance(evaluation, ast.For)
        and isinstance(chain, ast.If)
    )

    row = "__yolo_attn__"
    at = loop.body.index(lookup)
    loop.body.insert(at, _statement(f"{row} = {HELPER}(dict(locals()))", like=lookup))
    lookup.value = ast.copy_location(
        ast.IfExp(_expression(f"{row} is not None"), _expression(f"{row}.m"), lookup.value),
        lookup.value,
    )
    evaluation.iter = ast.copy_location(
        ast.IfExp(_expression(f"{row} is not None"), _expression("()"), evaluation.iter),
        evaluation.iter,
    )
    branch = ast.If(
        test=_expression(f"{row} is not None"),
        body=[_statement(f"args, c2, n = {row}.args, {row}.c2, {row}.n or n", like=chain)],
        orelse=[chain],
    )
    loop.body[loop.body.index(chain)] = ast.copy_location(branch, chain)
    return tree


def _is_row_loop(loop: ast.For) -> bool:
    return unparse(loop.target).replace("(", "").replace(")", "") == "i, f, n, m, args"


def _assigns(statement: ast.stmt, name: str) -> bool:
    return isinstance(statement, ast.Assign) and [unparse(t) for t in statement.targets] == [name]


def _is_module_chain(statement: ast.If) -> bool:
    test = statement.test
    return (
        isinstance(test, ast.Compare)
        and unparse(test.left) == "m"
        and isinstance(test.ops[0], ast.In)
        and bool(statement.orelse)
    )


def _only(found: list[Any], what: str) -> Any:
    if len(found) != 1:
        raise UnexpectedHostError("parse_model", f"expected {what}, found {len(found)}")
    return found[0]


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _statement(text: str, like: ast.stmt) -> ast.stmt:
    statement = ast.parse(text).body[0]
    for node in ast.walk(statement):
        ast.copy_location(node, like)
    return statement
