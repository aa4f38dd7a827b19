"""Train a stack of reversible columns with the activations of one, whatever their number.

A column t has levels i = 0..L-1 and maps the maps p of the column before it to its own, c:

    c_i = alpha_i * p_i + F_i(down, up),    down = x or c_{i-1},    up = p_{i+1} (none at the last)

so p_i = (c_i - F_i(down, up)) / alpha_i, from the last level down. Only the last column's maps are
kept; the backward pass rebuilds the column before from them, and so on to the first (Cai et al.
2023, arXiv 2212.11696; the authors' code keeps the maps of every column).

Each inversion divides the rounding error by alpha. The maps are therefore carried in float64
between the columns; F runs on their rounded values, so that the backward pass sees the same F.
Whether that was enough is checked in every backward pass, for nothing: the first column, which
reads x alone, must come out as rebuilt. If it does not (alphas near their floor, many columns),
that pass is done again from maps computed forwards, and from then on the maps of every k-th column
are kept, k halved each time.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol

import torch
from torch import Tensor

from yolo_attn.ops.precision import same_autocast

# Largest relative error of rebuilt maps, by the dtype in which the columns read them.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
COARSE = 1e-3  # half precision

Maps = list[Tensor]
Scales = Optional[list[Tensor]]


class Column(Protocol):
    """What this module needs of a column; `nn.Module` with one module per level."""

    @property
    def levels(self) -> Sequence[torch.nn.Module]:
        """``level(down, up or None, drop-path factors or None) -> F_i``."""
        ...

    def raw_factors(self) -> list[torch.nn.Parameter]:
        """``alpha_i`` as stored, ``(C_i,)`` each; empty in the first column."""
        ...


def bounded(alpha: Tensor, floor: float) -> Tensor:
    """`alpha` with a magnitude of at least `floor`; the gradient passes as if nothing had happened.

    An exact zero counts as positive.
    """
    value = alpha.detach()
    limited = torch.where(value < 0, -1.0, 1.0).to(value) * value.abs().clamp(min=floor)
    return alpha + (limited - value)


class Owner(Protocol):
    """Remembers from step to step whether precision was lost."""

    rebuilt_in_a_row: int  # how many columns are rebuilt from one another at most


def _copied(owner: Owner, columns: int) -> list[int]:
    """Columns (beside the last) whose maps are kept."""
    return list(range(columns - 1 - owner.rebuilt_in_a_row, 0, -owner.rebuilt_in_a_row))


def _rebuild_fewer(owner: Owner, columns: int, error: float) -> None:
    owner.rebuilt_in_a_row = max(1, min(owner.rebuilt_in_a_row, columns - 1) // 2)
    warnings.warn(
        f"reversible columns: rebuilt maps were off by {error:.1e}, so this step was computed "
        f"again without rebuilding; from now on at most {owner.rebuilt_in_a_row} columns in a row "
        "are rebuilt, at the price of memory (a higher alpha_floor avoids it)",
        RuntimeWarning,
        stacklevel=2,
    )


def run_plain(
    columns: Sequence[Column],
    x: Tensor,
    floor: float,
    kept: Sequence[int],
    scales: Sequence[Scales],
) -> tuple[Maps, Maps]:
    """The columns as they stand, by ordinary autograd.

    Args:
        columns: The columns.
        x: The map that every column's first level reads ``(B, C_0, H, W)``.
        floor: Least magnitude of the factors.
        kept: Columns whose last level is returned as well.
        scales: For each column None, or a factor ``(B,)`` for each of its residual branches.

    Returns:
        The last column's maps, and the last level of each of the `kept` columns.
    """
    maps: Maps = []
    tops: Maps = []
    for t, column in enumerate(columns):
        maps = step(column, x, maps, floor, scales[t])
        if t in kept:
            tops.append(maps[-1])
    return maps, tops


def step(column: Column, x: Tensor, before: Maps, floor: float, scales: Scales) -> Maps:
    """One column's maps from those of the column before (none: the first)."""
    new: Maps = []
    factors = [bounded(alpha, floor) for alpha in column.raw_factors()]
    for i, level in enumerate(column.levels):
        up = before[i + 1] if before and i + 1 < len(before) else None
        f = level(new[-1] if new else x, up, scales)
        # Shaped here: parameters are 1-D for the optimisers' sake.
        new.append(f + factors[i].to(f.dtype)[:, None, None] * before[i] if before else f)
    return new


def run_reversible(
    columns: Sequence[Column],
    x: Tensor,
    floor: float,
    kept: Sequence[int],
    scales: Sequence[Scales],
    owner: Owner,
) -> tuple[Maps, Maps]:
    """Like :func:`run_plain`, with memory that does not grow with the number of columns.

    Gradients equal those of ordinary autograd; parameters may be differentiated by `backward`, by
    `torch.autograd.grad`, and twice. Where custom gradients do not reach (`torch.func`, forward
    mode, tracing, `torch.compile`) the plain form runs.

    Args:
        columns: The columns.
        x: The map that every column's first level reads ``(B, C_0, H, W)``.
        floor: Least magnitude of the factors.
        kept: Columns whose last level is returned as well.
        scales: For each column None, or a factor ``(B,)`` for each of its residual branches.
        owner: Remembers from step to step whether precision was lost.

    Returns:
        The last column's maps, and the last level of each of the `kept` columns.
    """
    plan = _Plan.of(columns, floor, kept, scales, owner)
    parameters = plan.tensors
    needed = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters))
    if not needed or _must_be_plain():
        return run_plain(columns, x, floor, kept, scales)
    out = _Columns.apply(plan, x, *parameters)
    levels = len(columns[0].levels)
    return list(out[:levels]), list(out[levels:])


def _must_be_plain() -> bool:
    """Whether something is watching that a custom gradient would hide from."""
    functorch = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
    forward_mode = getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or functorch() or forward_mode


@dataclass
class _Plan:
    """What the two passes share that is not a tensor of the graph."""

    columns: Sequence[Column]
    floor: float
    kept: tuple[int, ...]
    scales: Sequence[Scales]
    owner: Owner
    copied: list[int]  # columns whose maps this pass keeps
    tensors: list[Tensor] = field(default_factory=list)  # every parameter once, in order
    # For each column and level: (name in the level, position in `tensors`).
    names: list[list[list[tuple[str, int]]]] = field(default_factory=list)
    factors: list[list[int]] = field(default_factory=list)  # positions of the alphas

    @classmethod
    def of(
        cls,
        columns: Sequence[Column],
        floor: float,
        kept: Sequence[int],
        scales: Sequence[Scales],
        owner: Owner,
    ) -> _Plan:
        plan = cls(columns, floor, tuple(kept), scales, owner, _copied(owner, len(columns)))
        position: dict[int, int] = {}

        def place(p: Tensor) -> int:
            if id(p) not in position:
                position[id(p)] = len(plan.tensors)
                plan.tensors.append(p)
            return position[id(p)]

        for column in columns:
            plan.names.append(
                [[(n, place(p)) for n, p in level.named_parameters()] for level in column.levels]
            )
            plan.factors.append([place(alpha) for alpha in column.raw_factors()])
        return plan

    def level(
        self,
        t: int,
        i: int,
        tensors: Sequence[Tensor] | Mapping[int, Tensor],
        down: Tensor,
        up: Tensor | None,
    ) -> Tensor:
        """``F_i`` of column t with the given parameters in place of its own."""
        own = {name: tensors[at] for name, at in self.names[t][i]}
        return torch.func.functional_call(
            self.columns[t].levels[i], own, (down, up, self.scales[t])
        )

    def factor(self, t: int, i: int, tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """``alpha_i`` of column t ``(C, 1, 1)``."""
        return bounded(tensors[self.factors[t][i]].detach().to(dtype), self.floor)[:, None, None]

    def every_map(self, x: Tensor, tensors: Sequence[Tensor]) -> list[Maps]:
        """The maps of every column, by ordinary autograd, with the given parameters."""
        found: list[Maps] = []
        before: Maps = []
        for t in range(len(self.columns)):
            new: Maps = []
            for i in range(len(self.names[t])):
                up = before[i + 1] if before and i + 1 < len(before) else None
                f = self.level(t, i, tensors, new[-1] if new else x, up)
                if before:
                    alpha = bounded(tensors[self.factors[t][i]], self.floor).to(f.dtype)
                    f = f + alpha[:, None, None] * before[i]
                new.append(f)
            found.append(new)
            before = new
        return found


def _wide(x: Tensor) -> torch.dtype:
    """Dtype in which the maps are carried: float64 where the device has it."""
    return torch.promote_types(x.dtype, torch.float32) if x.device.type == "mps" else torch.float64


class _Columns(torch.autograd.Function):
    """The stack of columns as one operation of autograd."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.plan = plan
        ctx.autocast = same_autocast(x)
        wide = _wide(x)
        maps: Maps = []  # wide
        seen: Maps = []  # the same, rounded: what the next column reads
        tops: Maps = []
        copies: Maps = []
        for t in range(len(plan.columns)):
            new: Maps = []
            new_seen: Maps = []
            for i in range(len(plan.names[t])):
                up = seen[i + 1] if seen and i + 1 < len(seen) else None
                c = plan.level(t, i, parameters, new_seen[-1] if new_seen else x, up)
                dtype = c.dtype
                c = c.to(wide)
                if maps:
                    c = c.addcmul_(plan.factor(t, i, parameters, wide), maps[i])
                    maps[i] = seen[i] = c.new_empty(0)  # read for the last time
                new.append(c)
                new_seen.append(c.to(dtype))
            maps, seen = new, new_seen
            if t in plan.kept:
                tops.append(seen[-1])
            if t in plan.copied:
                copies.extend(maps)
        ctx.dtypes = [m.dtype for m in seen]
        ctx.save_for_backward(x, *parameters)
        # Not among the saved tensors, which live until the whole backward pass is over: each map
        # is let go as soon as the one before it is rebuilt.
        ctx.states = [*maps, *copies]
        # A tensor may be returned only once.
        return (*seen, *(top.clone() if top is seen[-1] else top for top in tops))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        x, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            with ctx.autocast():
                return (None, *_twice_differentiable(plan, x, parameters, gradients, wanted))
        count, last = len(plan.names[0]), len(plan.columns) - 1
        pull = _Backward(plan, x, parameters, wanted, ctx.autocast, ctx.dtypes)
        states, ctx.states = ctx.states, []
        if states:
            known = {
                t: states[count * k : count * (k + 1)]
                for k, t in enumerate([last, *sorted(plan.copied)])
            }
            del states
            found, error = pull.run(gradients, known)
            if error <= 1:
                return (None, *found)
            _rebuild_fewer(plan.owner, len(plan.columns), error * _tolerance(ctx.dtypes))
        # Precision was lost; or this graph is used for the second time.
        with torch.no_grad(), ctx.autocast():
            known = dict(enumerate(plan.every_map(x, parameters)))
        return (None, *pull.run(gradients, known)[0])


def _twice_differentiable(
    plan: _Plan,
    x: Tensor,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients that can be differentiated again: through the plain graph."""
    maps = plan.every_map(x, parameters)
    out = [*maps[-1], *(maps[t][-1] for t in plan.kept)]
    pairs = [(o, g) for o, g in zip(out, gradients) if g is not None]
    inputs = [t for t, want in zip((x, *parameters), wanted) if want]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in pairs],
            inputs,
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(found) if want else None for want in wanted]


def _tolerance(dtypes: Sequence[torch.dtype]) -> float:
    return max(TOLERANCE.get(dtype, COARSE) for dtype in dtypes)


@dataclass
class _Backward:
    """The backward pass: rebuild and differentiate the columns from the last to the first."""

    plan: _Plan
    x: Tensor
    parameters: Sequence[Tensor]
    wanted: Sequence[bool]  # of x and of each parameter
    autocast: Any
    dtypes: list[torch.dtype]

    def run(
        self, gradients: Sequence[Tensor | None], known: dict[int, Maps]
    ) -> tuple[list[Tensor | None], float]:
        """Gradients of x and of every parameter, and the error of what was rebuilt.

        The error is relative to the largest value of its map, in units of what is tolerable.
        `known` are maps that need not be rebuilt, the last column's at least; they are used up.
        """
        plan, last = self.plan, len(self.plan.columns) - 1
        count = len(plan.names[0])
        tops = dict(zip(plan.kept, gradients[count:]))
        self.found: list[Tensor | None] = [None] * (1 + len(self.parameters))
        self.errors: list[Tensor] = []
        maps, grads = known.pop(last), list(gradients[:count])
        for t in range(last, -1, -1):
            grads[-1] = _sum(grads[-1], tops.get(t))
            maps, grads = self._column(t, maps, grads, known.pop(t - 1, None))
        error = float(torch.stack(self.errors).max()) if self.errors else 0.0
        return self.found, error / _tolerance(self.dtypes)

    def _column(
        self, t: int, maps: Maps, grads: list[Tensor | None], known: Maps | None
    ) -> tuple[Maps, list[Tensor | None]]:
        """Maps and gradients of the column before, from those of column t, which are used up."""
        count = len(maps)
        before: Maps = []  # from the last level on
        before_grads: list[Tensor | None] = [None] * count
        above: Tensor | None = None  # p_{i+1}, as column t read it
        for i in range(count - 1, -1, -1):
            down = maps[i - 1].to(self.dtypes[i - 1]) if i else self.x
            c, g = maps.pop(), grads[i]
            grads[i] = None
            o, d, e = self._level(t, i, down, above, g)
            if i:
                grads[i - 1] = _sum(grads[i - 1], d)
            else:
                self.found[0] = _sum(self.found[0], d)
            if above is not None:
                before_grads[i + 1] = _sum(before_grads[i + 1], e)
            if t == 0:
                self._compare(c, o)
                continue
            alpha = self.plan.factor(t, i, self.parameters, c.dtype)
            p = (c - o).div_(alpha)
            if known is not None:
                self._compare(p, known[i])
                p = known[i]
            above = p.to(self.dtypes[i])
            before.insert(0, p)
            if g is not None:
                self._add(self.plan.factors[t][i], g, above)
                before_grads[i] = g * alpha.to(g.dtype)
        return before, before_grads

    def _compare(self, rebuilt: Tensor, true: Tensor) -> None:
        self.errors.append((rebuilt - true).abs_().max() / true.abs().max().clamp(min=1e-30))

    def _level(
        self, t: int, i: int, down: Tensor, up: Tensor | None, gradient: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``F_i`` again, and the gradients of its two inputs; parameters' are added up."""
        leaves = {}
        for _, at in self.plan.names[t][i]:
            leaves[at] = self.parameters[at].detach().requires_grad_(self.wanted[1 + at])
        down = down.detach().requires_grad_(i > 0 or self.wanted[0])
        up = None if up is None else up.detach().requires_grad_()
        with torch.enable_grad(), self.autocast():
            out = self.plan.level(t, i, leaves, down, up)
        if gradient is None or not out.requires_grad:
            return out.detach(), None, None
        inputs = [z for z in (down, up, *leaves.values()) if z is not None and z.requires_grad]
        found = torch.autograd.grad(out, inputs, gradient.to(out.dtype), allow_unused=True)
        by_input = {id(z): g for z, g in zip(inputs, found)}
        for at, leaf in leaves.items():
            self.found[1 + at] = _sum(self.found[1 + at], by_input.get(id(leaf)))
        return out.detach(), by_input.get(id(down)), by_input.get(id(up))

    def _add(self, at: int, gradient: Tensor, p: Tensor) -> None:
        """The gradient of a factor: the sum of ``gradient * p`` over batch and positions."""
        if self.wanted[1 + at]:
            value = (gradient * p).sum((0, 2, 3), dtype=torch.promote_types(p.dtype, torch.float32))
            self.found[1 + at] = _sum(self.found[1 + at], value.to(self.parameters[at].dtype))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
