"""Ultralytics' own ``parse_model`` with one more branch, for rows that name one of our blocks.

A model without such rows goes to the untouched original. For a model with them, the installed
version's source is rebuilt once: in its one loop over the rows, our rows skip the stock look-up,
the stock evaluation of string arguments and the stock chain of ``if m in ...``; everything else
(repeats, table, save list) is stock code.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from ast import unparse
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.paths import find_shipped
from yolo_attn.registry import BlockInfo, find_block, known_names
from yolo_attn.seam.compat import UnexpectedHostError, host_version
from yolo_attn.seam.host_modules import Index
from yolo_attn.seam.location import PROVENANCE, Location
from yolo_attn.seam.loss_choice import check_loss
from yolo_attn.seam.model_checks import check_model, names_ours
from yolo_attn.seam.provenance import STAMP, version_of
from yolo_attn.seam.repeats import with_repeats
from yolo_attn.versions import made_before, made_by

HELPER = "__yolo_attn_row__"


def parse_model(original: FunctionType, d: dict[str, Any], ch: int, verbose: bool = True) -> Any:
    """Ultralytics' ``parse_model``, for stock rows and for ours."""
    check_loss(d)
    if not isinstance(d, dict) or not (PROVENANCE in d or _of_the_zoo(d)):
        return _parse_model(original, d, ch, verbose)
    conv = original.__globals__["Conv"]
    activation = conv.default_act
    try:
        return _parse_model(original, d, ch, verbose)
    finally:
        # Up to 8.4.150 a model's `activation` stays for every model that is built after it.
        conv.default_act = activation


def _of_the_zoo(d: dict[str, Any]) -> bool:
    return find_shipped(Path(str(d.get("yaml_file"))).name) is not None


def _parse_model(original: FunctionType, d: dict[str, Any], ch: int, verbose: bool) -> Any:
    rows = _rows(d)
    if not names_ours(d) and not any(_is_ours(row[2], original) for row in rows or ()):
        _refuse_misspelt_block(d, rows, original)
        return original(d, ch, verbose)

    where = Location(d)
    check_model(d, where)
    _refuse_misspelt_block(d, rows, original)
    check_modules(d, where)
    extended = FunctionType(
        _extended_code(original), {**original.__globals__, HELPER: Rows(original, where)}
    )
    extended.__defaults__ = original.__defaults__
    # The rebuilt function must see the module's globals as they are now, and write none of its own.
    helper: Rows = extended.__globals__[HELPER]
    try:
        with made_by(version := version_of(d)):
            layers, save = extended(d, ch, verbose)
        setattr(layers, STAMP, version)
        return layers, save
    except YoloAttnError:
        raise
    except Exception as error:
        raise YoloAttnError(
            f"{where.of_layer(helper.index)}: {helper.name} could not be built "
            f"({type(error).__name__}: {error})"
        ) from error


def _rows(d: Any) -> list[Any] | None:
    """The rows of a well-formed model, else None (stock code then says what it says)."""
    try:
        rows = [*d["backbone"], *d["head"]]
        return rows if all(len(row) == 4 for row in rows) else None
    except (TypeError, KeyError):
        return None


def stock_module(name: Any, tasks_globals: dict[str, Any]) -> bool:
    """Whether the installed ``parse_model`` resolves this module name itself."""
    if not isinstance(name, str):
        return False
    for prefix in ("nn.", "torchvision.ops."):
        if name.startswith(prefix):
            holder = importlib.import_module("torch.nn" if prefix == "nn." else prefix[:-1])
            found = getattr(holder, name[len(prefix) :], None)
            return isinstance(found, type) and issubclass(found, nn.Module)
    found = tasks_globals.get(name)
    return isinstance(found, type) and issubclass(found, nn.Module)


def known_module(name: Any, tasks_globals: dict[str, Any]) -> bool:
    """Whether a row may name this module."""
    return (
        stock_module(name, tasks_globals) or name == Index.__name__ or find_block(name) is not None
    )


def _is_ours(name: Any, original: FunctionType) -> bool:
    return not stock_module(name, original.__globals__) and known_module(name, original.__globals__)


def _refuse_misspelt_block(
    d: dict[str, Any], rows: list[Any] | None, original: FunctionType
) -> None:
    """Name the nearest blocks for an unknown module; stock says a bare KeyError."""
    for i, row in enumerate(rows or ()):
        name = row[2]
        if (
            not isinstance(name, str)
            or known_module(name, original.__globals__)
            or name in original.__globals__
        ):
            continue
        # Near one of ours, or in a model of ours: the error is ours to explain. Else it is
        # Ultralytics'.
        hint = did_you_mean(name, known_names())
        if hint or "yolo_attn" in d or any(_is_ours(r[2], original) for r in rows or ()):
            raise YoloAttnError(
                f"{Location(d).of_layer(i)}: unknown block {name!r}{hint or ','} neither "
                f"Ultralytics {host_version()} nor yolo_attn has it (`yolo-attn blocks` lists ours)"
            )


def check_modules(d: dict[str, Any], where: Location) -> None:
    """Refuse rows that name something else than a module (stock would call any name it imports).

    Raises:
        YoloAttnError: Names file, row and name.
    """
    from ultralytics.nn import tasks

    for i, row in enumerate([*d["backbone"], *d["head"]]):
        if not known_module(row[2], vars(tasks)):
            raise YoloAttnError(
                f"{where.of_layer(i)}: {row[2]!r} is no module of Ultralytics {host_version()}, "
                f"torch.nn, torchvision.ops or yolo_attn{did_you_mean(row[2], known_names())}"
            )


@dataclass
class Row:
    """What the extended ``parse_model`` needs of one of our rows."""

    m: type[nn.Module]
    args: list[Any]
    c2: Any
    n: int = 0  # how often it stands there; 0 for the row's repeats


class Rows:
    """Called by the extended ``parse_model`` at each row; None for stock rows."""

    def __init__(self, original: FunctionType, where: Location):
        self.original, self.where = original, where
        self.index, self.name = 0, ""

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
        if not picks_ours and not _is_ours(name, self.original):
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
        identity_start = False
        if args and isinstance(args[-1], dict) and "identity_start" in args[-1]:
            keywords = dict(args[-1])
            identity_start = keywords.pop("identity_start")
            args = [*args[:-1], keywords]
            if not isinstance(identity_start, bool):
                raise YoloAttnError(
                    f"{info.name}: identity_start={identity_start!r} is not accepted (accepted: "
                    "true, false)"
                )
        args, n = with_repeats(info, args, n, local)
        options = self._scaled(info, info.bind(args), local)
        cls: type[nn.Module] = info.cls
        positional: list[Any] = [channels, *options]
        probe = _probe(cls, positional)
        dimension = getattr(probe, "map_dimension", 2)
        if dimension != 2:
            raise YoloAttnError(
                f"{info.name}: dimension={dimension} is not accepted, a row of a model is a 2-D "
                "map (accepted: 2; others by create() in Python)"
            )
        # A block that is the identity already must stay unwrapped: neither it nor g would learn.
        if identity_start and not getattr(probe, "starts_as_identity", info.identity_at_start):
            from yolo_attn.blocks.identity_start import IdentityStart

            older = made_before("0.2.0")
            cls, positional = IdentityStart, [info.cls, channels, options, older]
            probe = _probe(cls, positional)
        out = getattr(probe, "out_channels", channels if isinstance(channels, int) else channels[0])
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

    @staticmethod
    def _scaled(info: BlockInfo, options: list[Any], local: dict[str, Any]) -> list[Any]:
        """Channel options scaled with the model's width, as Ultralytics scales its own."""
        from ultralytics.utils.ops import make_divisible

        width, max_channels = local.get("width", 1.0), local.get("max_channels", float("inf"))

        def scaled(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [scaled(v) for v in value]
            if isinstance(value, bool) or not isinstance(value, int):
                return value
            return make_divisible(min(value, max_channels) * width, 8)

        return [
            scaled(value) if name in info.width_options else value
            for name, value in zip(info.options, options)
        ]


def _probe(cls: type[nn.Module], args: list[Any]) -> nn.Module:
    """Build the block to learn its output channels, leaving the random state as it is."""
    try:
        with torch.device("meta"):
            return cls(*args)
    except YoloAttnError:
        raise
    except Exception:
        # A user's block may do in its constructor what meta tensors cannot.
        with torch.random.fork_rng(devices=[]):
            return cls(*args)


_CODE: dict[CodeType, CodeType] = {}


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
