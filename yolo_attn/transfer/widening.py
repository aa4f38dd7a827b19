"""A wider model that computes what a narrower one does: Net2WiderNet for whole detectors.

Chen et al., "Net2Net: Accelerating Learning via Knowledge Transfer" (2015, arXiv 1511.05641).

Channel j of a layer that grows from c to c' channels is a copy of channel ``floor(j c / c')``, and
whoever reads the copies divides his weights among them: ``sum_j W'[o, j] = W[o, i]`` over the
copies j of i. Halves of such a map are maps of the same kind, so splits, concatenations and
residual sums fit without looking ahead. The maps are found by running the wider model once and
following its channels through every operation; an operation that they cannot be followed through
is refused. Shares are drawn unequal for each weight, because equal copies would get equal
gradients for ever and the wider model would never be one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from yolo_attn.errors import YoloAttnError

UNEQUAL = 0.5  # shares of m copies lie between (1 - this) / m and (1 + this) / m before they sum
SIDE = 64  # of the images that are run, in multiples of the largest stride
TOLERANCE = 1e-6  # of the largest output, in float64

Map = Tensor  # (c',) int: which channel of the narrow model each channel of the wide one copies

# Operations that change no channel's place, by name, as long as they leave batch and channels.
POINTWISE = set(
    "silu relu relu_ leaky_relu gelu elu hardswish hardsigmoid hardtanh relu6 mish sigmoid "
    "sigmoid_ tanh softplus max_pool2d _max_pool2d boolean_dispatch fn avg_pool2d "
    "adaptive_avg_pool2d adaptive_max_pool2d interpolate upsample dropout clone "
    "contiguous detach to float double type_as requires_grad_ __get__ neg exp sqrt clamp "
    "pad mean sum amax".split()
)
BINARY = set("add add_ __iadd__ mul mul_ __imul__ sub div __radd__ __rmul__ truediv".split())


class Unfollowed(YoloAttnError):
    """Channels cannot be followed through an operation."""


def widen(base: nn.Module, wide: nn.Module, seed: int = 0) -> None:
    """Give a wider model weights with which it computes what the narrower one does.

    Args:
        base: an Ultralytics detector.
        wide: the same design with at least as many channels everywhere; its weights are replaced.
        seed: of the unequal shares.

    Raises:
        Unfollowed: the function cannot be preserved; says where and why.
    """
    tracer = _Tracer(base, wide, seed)
    device = next(wide.parameters()).device
    training = wide.training
    batch = torch.zeros(2, _channels(wide), *[_side(wide)] * 2, device=device)
    batch = batch.to(next(wide.parameters()).dtype)
    try:
        # What only one of the two modes runs (heads without NMS) is met in the other.
        for mode in (True, False):
            if not mode and set(tracer.narrow) <= set(tracer.found):
                break
            wide.train(mode)
            with torch.no_grad(), tracer.following(), tracer:
                wide(batch)
    finally:
        wide.train(training)
    state = wide.state_dict()
    for name, value in base.state_dict().items():
        if name in tracer.found:
            continue
        if name not in state or state[name].shape != value.shape:
            raise Unfollowed(f"{name} is never used where its channels can be followed")
        tracer.found[name] = value.clone()
    missing = set(state) - set(tracer.found)
    if missing:
        raise Unfollowed(f"the narrow model has no {sorted(missing)[0]}")
    wide.load_state_dict({name: tracer.found[name] for name in state})


def largest_difference(base: nn.Module, wide: nn.Module, seed: int = 0) -> float:
    """Largest difference between two models' outputs on a random image, over the largest output.

    Both are run as for training (the head's raw maps), with the batch norms of an evaluation.
    """
    generator = torch.Generator().manual_seed(seed)
    first = next(base.parameters())
    side = _side(base)
    image = torch.rand(1, _channels(base), side, side, generator=generator).to(first)
    outputs = []
    for model in (base, wide):
        mode = model.training
        model.eval()
        model.model[-1].training = True  # type: ignore[index, union-attr]
        with torch.no_grad():
            outputs.append(list(_tensors(model(image), skip="feats")))  # what the head reads
        model.train(mode)
    if [o.shape for o in outputs[0]] != [o.shape for o in outputs[1]]:
        return float("inf")
    largest = max((float(o.abs().max()) for o in outputs[0] if o.numel()), default=0.0)
    differ = max((float((a - b).abs().max()) for a, b in zip(*outputs) if a.numel()), default=0.0)
    return differ / max(largest, 1e-12)


def proportional(narrow: int, wide: int) -> Map:
    """``floor(j narrow / wide)`` for every channel j of the wide model."""
    return torch.arange(wide) * narrow // wide


class _Tracer(TorchFunctionMode):
    """Follows channels while the wide model runs, and collects its weights on the way."""

    def __init__(self, base: nn.Module, wide: nn.Module, seed: int):
        super().__init__()
        self.narrow, self.wide = base.state_dict(), wide
        self.base = base
        self.names = {id(v): n for n, v in wide.named_parameters(remove_duplicate=False)}
        self.names.update({id(v): n for n, v in wide.named_buffers(remove_duplicate=False)})
        self.found: dict[str, Tensor] = {}
        self.inputs: dict[str, Map] = {}  # weight -> the map that it was divided for
        self.maps: dict[int, tuple[Tensor, Map]] = {}  # the tensor is kept: ids are used again
        self.random = torch.Generator().manual_seed(seed)
        self.place = ""
        self.silent = False  # inside an attention, which is taken as a whole

    # Where we are.
    @contextmanager
    def following(self) -> Iterator[None]:
        """Hooks that say which module runs, and take attentions as a whole."""
        handles = []
        for name, module in self.wide.named_modules():
            kind = type(module).__name__
            if not list(module.children()) or kind in WHOLE:
                handles.append(module.register_forward_pre_hook(self._enter(name, kind)))
            if kind in WHOLE:
                handles.append(module.register_forward_hook(self._leave(name, WHOLE[kind])))
        self.maps.clear()
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, kind: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if not self.silent:
                self.place = f"{name} ({kind})"
                self.silent = kind in WHOLE

        return hook

    def _leave(self, name: str, whole: Callable[..., Map]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.silent = False
            narrow = self.base.get_submodule(name)
            self.follow(output, whole(self, name, narrow, module, self.map_of(args[0])))

        return hook

    def refuse(self, why: str) -> Unfollowed:
        return Unfollowed(f"{self.place}: {why}")

    # Maps.
    def map_of(self, x: Tensor) -> Map:
        """The map of a tensor; one that is not followed has the narrow model's channels."""
        known = self.maps.get(id(x))
        return known[1] if known else torch.arange(x.shape[1])

    def follow(self, x: Any, which: Map) -> None:
        if not _is_identity(which):
            self.maps[id(x)] = (x, which)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.silent:
            return out
        name = getattr(func, "__name__", str(func))
        if name == "conv2d":
            self._convolved(out, *args, **(kwargs or {}))
        elif name == "batch_norm":
            self._normalised(out, *args, **(kwargs or {}))
        elif any(id(a) in self.maps for a in _tensors([args, kwargs or {}])):
            self._passed(name, out, args, kwargs or {})
        return out

    def _passed(self, name: str, out: Any, args: Any, kwargs: Any) -> None:
        results = list(_tensors(out))
        if not results or name.startswith("new_"):
            return  # a shape, a flag or the type was asked for
        given = [a for a in _tensors([args, kwargs])]
        if name in ("cat", "concat", "concatenate") and self._dim(args, kwargs) == 1:
            self.follow(out, self._joined(args[0] if args else kwargs["tensors"]))
        elif name in ("chunk", "split", "split_with_sizes", "tensor_split"):
            if self._dim(args, kwargs, 2) != 1:
                raise self.refuse(f"{name} along another dimension than the channels")
            self._parted(args[0], results)
        elif name in POINTWISE and id(given[0]) not in self.maps:
            return  # the other operand lends its type alone
        elif name in POINTWISE and results[0].shape[:2] == given[0].shape[:2]:
            self.follow(results[0], self.map_of(given[0]))
        elif name in BINARY:
            self.follow(out, self._agreed(given, out))
        else:
            raise self.refuse(f"channels cannot be followed through {name}")

    @staticmethod
    def _dim(args: Any, kwargs: Any, at: int = 1) -> int:
        dim = kwargs.get("dim", args[at] if len(args) > at else 0)
        return int(dim) if dim >= 0 else 4 + int(dim)

    def _joined(self, parts: Any) -> Map:
        maps, offset = [], 0
        for part in parts:
            which = self.map_of(part)
            maps.append(which + offset)
            offset += int(which.max()) + 1
        return torch.cat(maps)

    def _parted(self, x: Tensor, parts: list[Tensor]) -> None:
        which, start, first = self.map_of(x), 0, 0
        for part in parts:
            piece = which[start : start + part.shape[1]]
            if int(piece.min()) != first:
                raise self.refuse("a split cuts through the copies of one channel")
            self.follow(part, piece - first)
            start, first = start + part.shape[1], int(piece.max()) + 1

    def _agreed(self, given: list[Tensor], out: Tensor) -> Map:
        maps = [self.map_of(a) for a in given if a.dim() == 4 and a.shape[1] == out.shape[1]]
        if not maps or any(not torch.equal(maps[0], other) for other in maps[1:]):
            raise self.refuse("a sum or product of maps that are copied differently")
        return maps[0]

    # Weights.
    def _convolved(
        self, out: Tensor, x: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        groups = kwargs.get("groups", args[3] if len(args) > 3 else 1)
        name = self.names.get(id(weight))
        which = self.map_of(x)
        if name is None:  # a kernel that is no weight, such as a fixed filter
            if not _is_identity(which):
                raise self.refuse("channels cannot be followed through a computed kernel")
            return
        self.follow(out, self.convolution(name, which, int(groups), len(weight)))
        if bias is not None and id(bias) in self.names:
            self.replicate(self.names[id(bias)], self.map_of(out))

    def convolution(
        self, name: str, which: Map, groups: int, outputs: int, out: Map | None = None
    ) -> Map:
        """Widen a convolution's weight.

        Args:
            name: of the weight.
            which: map of what it reads.
            groups: of the wide convolution.
            outputs: its output channels.
            out: map of its output; by default the proportional one.

        Returns:
            The map of its output.
        """
        narrow = self.narrow[name]
        if groups == len(which) and narrow.shape[1] == 1 and groups == outputs:  # depthwise
            if len(narrow) != int(which.max()) + 1:
                raise self.refuse("a depthwise convolution of which the narrow model has none")
            self._keep(name, narrow[which], which)
            return which
        parts = len(which) // groups
        narrow_groups = (int(which.max()) + 1) // narrow.shape[1]
        if groups != narrow_groups:
            raise self.refuse(f"{groups} groups, the narrow model has {narrow_groups}")
        if outputs < len(narrow):
            raise self.refuse(f"{outputs} channels, the narrow model has {len(narrow)}")
        out = proportional(len(narrow), outputs) if out is None else out
        rows = narrow[out].double()
        wide = torch.empty(outputs, parts, *narrow.shape[2:], dtype=torch.double)
        for group in range(groups):
            own = which[group * parts : (group + 1) * parts] - group * narrow.shape[1]
            if int(own.min()) < 0 or int(own.max()) >= narrow.shape[1]:
                raise self.refuse("a group of channels that holds copies of another group's")
            here = slice(group * outputs // groups, (group + 1) * outputs // groups)
            wide[here] = rows[here][:, own] * self._shares(own, rows[here].shape)
        self._keep(name, wide.to(narrow.dtype), which)
        return out

    def _shares(self, which: Map, shape: torch.Size) -> Tensor:
        """What each copy gets of a weight, unequal, with the sum 1: (outputs, inputs, kernel)."""
        full = (shape[0], len(which), *shape[2:])
        noise = (torch.rand(full, generator=self.random, dtype=torch.double) * 2 - 1) * UNEQUAL
        count = torch.bincount(which).double()
        mean = torch.zeros(shape[0], len(count), *shape[2:], dtype=torch.double)
        mean.index_add_(1, which, noise)
        mean /= count.view(1, -1, *[1] * (len(shape) - 2))
        return (1 + noise - mean[:, which]) / count[which].view(1, -1, *[1] * (len(shape) - 2))

    def replicate(self, name: str, which: Map, factor: Tensor | None = None) -> None:
        """Copy a vector (bias, batch norm) along a map, times `factor` (c',)."""
        value = self.narrow[name][which]
        self._keep(name, value if factor is None else (value * factor).to(value.dtype), which)

    def _normalised(
        self, out: Tensor, x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None,
        *args: Any, **kwargs: Any,
    ) -> None:  # fmt: skip
        which = self.map_of(x)
        self.follow(out, which)
        for value in (mean, var, weight, bias):
            if value is not None:
                self.replicate(self.names[id(value)], which)
        name = self.names[id(mean)].rpartition(".")[0] + ".num_batches_tracked"
        if name in self.narrow:
            self.found[name] = self.narrow[name].clone()

    def _keep(self, name: str, value: Tensor, which: Map) -> None:
        if name in self.inputs:
            if not torch.equal(self.inputs[name], which):
                raise self.refuse("one weight that reads maps of two kinds")
            return
        shape = self.wide.state_dict(keep_vars=True)[name].shape
        if value.shape != shape:
            raise self.refuse(f"{name} has the shape {tuple(shape)}, not {tuple(value.shape)}")
        self.found[name], self.inputs[name] = value, which


def _attention(tracer: _Tracer, name: str, narrow: Any, wide: Any, which: Map) -> Map:
    """`Attention` and `AAttn`: q, k and v, head by head, from one convolution; v through a `pe`."""
    if not hasattr(wide, "qkv"):
        raise tracer.refuse("it has no common convolution for q, k and v")
    heads, many = narrow.num_heads, wide.num_heads
    (key, value), (key_wide, value_wide) = _head_sizes(narrow), _head_sizes(wide)
    if key_wide < key or value_wide < value or many < heads:
        raise tracer.refuse("its heads shrink, or get fewer, as it widens")
    head = proportional(heads, many)
    keys, values = proportional(key, key_wide), proportional(value, value_wide)
    block = torch.cat([keys, keys + key, values + 2 * key])
    out = torch.cat([block + int(h) * (2 * key + value) for h in head])
    passed = torch.cat([values + int(h) * value for h in head])
    # Copies of a key channel add up in q . k: each gets its part, and the narrow one's scale.
    part = (key_wide / key) ** 0.5 / torch.bincount(keys)[keys].double()
    rest = torch.ones(key_wide + value_wide, dtype=torch.double)
    _conv(tracer, f"{name}.qkv", which, out, torch.cat([part, rest]).repeat(many))
    _conv(tracer, f"{name}.pe", passed, passed)
    return _conv(tracer, f"{name}.proj", passed, which)


def _head_sizes(attention: Any) -> tuple[int, int]:
    """Channels of a head's q and k, and of its v; q . k is scaled by the root of the former."""
    return getattr(attention, "key_dim", attention.head_dim), attention.head_dim


def _conv(tracer: _Tracer, name: str, which: Map, out: Map, factor: Tensor | None = None) -> Map:
    """A `Conv` (convolution, batch norm, no activation) with a given map of its output."""
    conv = tracer.wide.get_submodule(f"{name}.conv")
    if not isinstance(tracer.wide.get_submodule(f"{name}.act"), nn.Identity):
        raise tracer.refuse(f"{name} has an activation")
    out = tracer.convolution(f"{name}.conv.weight", which, conv.groups, conv.out_channels, out)  # type: ignore[arg-type]
    for part in ("weight", "bias"):
        tracer.replicate(f"{name}.bn.{part}", out, factor)
    for part in ("running_mean", "running_var"):
        tracer.replicate(f"{name}.bn.{part}", out)
    counted = f"{name}.bn.num_batches_tracked"
    tracer.found[counted] = tracer.narrow[counted].clone()
    return out


WHOLE = {"Attention": _attention, "AAttn": _attention}


def _tensors(value: Any, skip: str = "") -> Iterator[Tensor]:
    """Tensors of nested lists and dictionaries, without an entry of that name."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            if not skip or key != skip:
                yield from _tensors(part, skip)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part, skip)


def _is_identity(which: Map) -> bool:
    return bool(torch.equal(which, torch.arange(len(which))))


def _channels(model: Any) -> int:
    return next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))


def _side(model: Any) -> int:
    stride = getattr(model, "stride", None)
    return max(SIDE, int(stride.max()) * 2) if isinstance(stride, Tensor) else SIDE
