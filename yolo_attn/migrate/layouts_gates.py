"""Rules for gates: SE, ECA, CBAM, coordinate attention, EMA, SimAM, GAM, MLCA."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from yolo_attn.migrate.layouts import (
    EPS,
    CannotMapError,
    Mapped,
    Part,
    Parts,
    folded_norm,
    hidden,
    matrix,
    normalised,
    pointwise,
    zeros_padded,
)

Tensors = dict[str, Tensor]


def se(parts: Parts) -> Mapped:
    """Two linear maps C -> h -> C, with or without biases."""
    c = parts.channels
    fc1 = parts.take("linear map from the channel means", None, c)
    norm = parts.maybe(fc1.shape[0], norm=True)
    fc2 = parts.take("linear map to the gates", c, fc1.shape[0])
    parts.finish()
    act, gate = _activation_and_gate(parts)
    h = fc1.shape[0]
    biased = fc2.bias is not None or (fc1.bias is not None and norm is None)
    tensors = {"fc1.weight": pointwise(fc1), "fc2.weight": pointwise(fc2)}
    if biased:
        # A bias in front of a norm is that norm's.
        tensors["fc1.bias"] = fc1.bias_or_zeros() * (0 if norm else 1)
        tensors["fc2.bias"] = fc2.bias_or_zeros()
    if norm is not None:
        tensors |= folded_norm(norm, "norm", fc1.bias)
    options = {**hidden(c, h), "bias": biased}
    for name, value, default in (
        ("norm", "bn" if norm else "none", "none"),
        ("act", act, "relu"),
        ("gate", gate, "sigmoid"),
    ):
        if value != default:
            options[name] = value
    return Mapped("SE", options, tensors)


def _activation_and_gate(parts: Parts) -> tuple[str, str]:
    found = parts.activations(ignore=())
    gates = [a for a in found if a in ("sigmoid", "hard_sigmoid")]
    acts = [a for a in found if a not in gates]
    accepted = ("relu", "silu", "gelu", "hardswish")
    if len(acts) > 1 or len(gates) > 1 or any(a not in accepted for a in acts):
        raise CannotMapError(f"has {', '.join(found)} in it (accepted: one of {accepted}, a gate)")
    return (acts or ["relu"])[0], (gates or ["sigmoid"])[0]


def eca(parts: Parts) -> Mapped:
    """One kernel along the channels."""
    conv = parts.take("1-D convolution along the channels", 1, 1, None)
    parts.check_activations("sigmoid")
    if conv.bias is not None and bool(conv.bias.any()):
        raise CannotMapError(f"{conv.name} has a bias, ECA here has none")
    kernel = zeros_padded(conv).weight.flatten()
    return Mapped("ECA", {"kernel_size": len(kernel)}, {"weight": kernel})


def cbam(parts: Parts) -> Mapped:
    """The paper's design, or (one C x C map and no bottleneck) Ultralytics' own."""
    c = parts.channels
    conv = zeros_padded(parts.take("k x k convolution of two maps", 1, 2, None, None))
    norm = parts.maybe(1, norm=True)
    fc1 = parts.take("linear map from the channel means", None, c)
    fc2 = parts.maybe(c, fc1.shape[0])
    if fc2 is None:
        return _ultralytics_cbam(parts, fc1, conv, norm)
    parts.finish("adaptivemaxpool2d", "channelpool", "zpool")
    pooled = set(parts.plain) & {"adaptiveavgpool2d", "adaptivemaxpool2d"}
    if len(pooled) == 1:
        raise CannotMapError(
            f"pools the channel gate's input by {pooled.pop()} alone, as far as its modules say "
            "(accepted: by mean and maximum)"
        )
    if wrong := [a for a in parts.activations() if a != "relu"]:
        raise CannotMapError(f"has {wrong[0]} in it (accepted: relu and sigmoid)")
    tensors = {"fc1.weight": matrix(fc1), "fc2.weight": matrix(fc2)}
    maximum_first, note = _order(parts, fc1, conv)
    # Ours reads [maximum, mean].
    tensors["conv.weight"] = conv.weight if maximum_first else conv.weight.flip(1)
    biased = any(p.bias is not None for p in (fc1, fc2)) or (conv.bias is not None and not norm)
    if biased:
        tensors["fc1.bias"], tensors["fc2.bias"] = fc1.bias_or_zeros(), fc2.bias_or_zeros()
    options = {**hidden(c, fc1.shape[0]), "kernel_size": conv.weight.shape[-1], "bias": biased}
    if (pools := _pools(parts)) != ["avg", "max"]:
        options["pools"] = pools
    if norm is not None:
        tensors |= folded_norm(norm, "norm", conv.bias)
        options["norm"] = "bn"
    elif biased:
        tensors["conv.bias"] = conv.bias_or_zeros()
    return Mapped("CBAM", options, tensors, notes=[note])


def _pools(parts: Parts) -> list[str]:
    """The pools that the authors' code names in an attribute."""
    for _, module in parts.module.modules():
        named = module.attributes.get("pool_types")
        if isinstance(named, list) and named:
            if any(pool not in ("avg", "max", "lp", "lse") for pool in named):
                raise CannotMapError(f"pools by {named[:4]} (accepted: avg, max, lp, lse)")
            return list(named)
    return ["avg", "max"]


def _order(parts: Parts, fc1: Part, conv: Part) -> tuple[bool, str]:
    """Whether the k x k convolution reads [maximum, mean], which no tensor tells."""
    if parts.design in ("max-first", "mean-first"):
        return parts.design == "max-first", f"the position gate reads {parts.design}, as you say"
    # The paper's authors (their ChannelPool) and the `se` copy (whose convolution has a bias) put
    # the maximum first; every other copy the mean.
    authors = "channelpool" in parts.plain or bool(re.search(r"spatialgate", conv.name, re.I))
    copy = bool(re.search(r"(^|\.)se\.", fc1.name)) or (
        normalised(parts.module.name) == "cbamblock" and conv.name.startswith("sa.")
    )
    first = authors or (copy and conv.bias is not None)
    order, other = ("max", "mean") if first else ("mean", "max")
    return first, (
        f"the position gate is taken to read {order} first, as classes with such keys do "
        f"(--design {parts.module.name}={other}-first for the other order)"
    )


def _ultralytics_cbam(parts: Parts, fc: Part, conv: Part, norm: Part | None) -> Mapped:
    c = parts.channels
    if fc.shape[0] != c or norm is not None:
        raise CannotMapError(
            f"has one linear map {fc.shape} (accepted: two, or Ultralytics' one of {c} x {c})"
        )
    parts.check_activations("sigmoid")
    if conv.bias is not None and bool(conv.bias.any()):
        raise CannotMapError(f"{conv.name} has a bias, UltralyticsCBAM has none")
    weight = conv.weight.flip(1) if parts.design == "max-first" else conv.weight
    tensors = {"fc.weight": pointwise(fc), "fc.bias": fc.bias_or_zeros(), "conv.weight": weight}
    note = "Ultralytics' own CBAM by its tensors (one C x C map), not the paper's"
    options = {"kernel_size": conv.weight.shape[-1]}
    return Mapped("UltralyticsCBAM", options, tensors, notes=[note])


def coord_att(parts: Parts) -> Mapped:
    """One map C -> m with a norm, and one m -> C for the rows and for the columns each."""
    c = parts.channels
    conv1 = parts.take("map of row and column means", None, c)
    m = conv1.shape[0]
    norm = parts.take("batch norm", m, norm=True)
    rows = parts.maybe(c, m, named=r"(^|[._])(conv_?|f_?|fc_?)?h$|height|row")
    columns = parts.maybe(c, m, named=r"(^|[._])(conv_?|f_?|fc_?)?w$|width|col")
    rows = rows or parts.take("map to the gates of rows", c, m)
    columns = columns or parts.take("map to the gates of columns", c, m)
    parts.finish()
    acts = parts.activations()
    if len(acts) > 1 or any(a not in ("hardswish", "silu", "relu") for a in acts):
        raise CannotMapError(
            f"has {', '.join(acts)} in it (accepted: one of hardswish, silu, relu)"
        )
    biased = rows.bias is not None or columns.bias is not None
    options: dict[str, Any] = {**hidden(c, m), "bias": biased}
    if acts and acts[0] != "hardswish":
        options["act"] = acts[0]
    tensors = {"conv1.weight": pointwise(conv1), **folded_norm(norm, "norm", conv1.bias)}
    for name, part in (("conv_h", rows), ("conv_w", columns)):
        tensors[f"{name}.weight"] = pointwise(part)
        if biased:
            tensors[f"{name}.bias"] = part.bias_or_zeros()
    notes = [] if acts else ["no activation among its modules: taken to be the paper's hard-swish"]
    return Mapped("CoordAtt", options, tensors, notes=notes)


def ema(parts: Parts) -> Mapped:
    """A 1 x 1 and a 3 x 3 convolution and a group norm, shared by all groups."""
    conv3 = zeros_padded(parts.take("3 x 3 convolution", None, None, 3, 3))
    c = conv3.shape[0]
    conv1 = parts.take("1 x 1 convolution", c, c)
    norm = parts.take("group norm", c)
    parts.check_activations("sigmoid", "softmax")
    groups = parts.channels // c
    if conv3.shape[1] != c or groups * c != parts.channels:
        raise CannotMapError(f"has groups of {c} channels, which do not divide {parts.channels}")
    if parts.number("groups", "factor", default=groups) != groups:
        raise CannotMapError(
            f"says {parts.number('groups', 'factor')} groups, its tensors {groups}"
        )
    if norm.module.number("num_groups", c) != c:
        raise CannotMapError(f"{norm.name} normalises several channels together")
    tensors = {
        "conv1x1.weight": pointwise(conv1),
        "conv1x1.bias": conv1.bias_or_zeros(),
        "conv3x3.weight": conv3.weight,
        "conv3x3.bias": conv3.bias_or_zeros(),
        "norm.weight": norm.weight,
        "norm.bias": norm.bias_or_zeros(),
    }
    eps = norm.module.number("eps", EPS)
    return Mapped("EMA", {"factor": groups}, tensors, {} if eps == EPS else {"norm.eps": eps})


def simam(parts: Parts) -> Mapped:
    """No tensors; the variance is divided by N - 1."""
    parts.check_activations("sigmoid")
    lam = parts.number("e_lambda", "lambda_", "e_lamda", "lamda")
    options: dict[str, Any] = {"correction": 0 if parts.design == "paper" else 1}
    if lam is None:
        return Mapped("SimAM", options, {}, notes=["no lambda in the file: taken to be 1e-4"])
    return Mapped("SimAM", {"e_lambda": float(lam), **options}, {})


def gam(parts: Parts) -> Mapped:
    """Two linear maps at each position, two 7 x 7 convolutions with norms."""
    c = parts.channels
    conv1 = parts.take("first 7 x 7 convolution", None, None, 7, 7)
    h = conv1.shape[0]
    conv2 = parts.take("second 7 x 7 convolution", c, None, 7, 7)
    fc1 = parts.take("linear map from the channels", h, c)
    fc2 = parts.take("linear map to the channels", c, h)
    norm1 = parts.take("first batch norm", h, norm=True)
    norm2 = parts.take("second batch norm", c, norm=True)
    parts.check_activations("relu", "sigmoid")
    groups = c // conv1.shape[1]
    if groups * conv1.shape[1] != c or conv2.shape[1] * groups != h:
        raise CannotMapError("has convolutions of different numbers of groups")
    padding = {p.module.attributes.get("padding_mode", "zeros") for p in (conv1, conv2)}
    if len(padding) > 1:
        raise CannotMapError("pads its two convolutions differently")
    options: dict[str, Any] = {**hidden(c, h)}
    if groups > 1:
        options["groups"] = groups
    note = _gam_design(parts, padding.pop(), groups, options)
    tensors: Tensors = {}
    for name, fc in (("fc1", fc1), ("fc2", fc2)):
        tensors[f"{name}.weight"] = pointwise(fc)
        tensors[f"{name}.bias"] = fc.bias_or_zeros()
    for i, (conv, norm) in enumerate(((conv1, norm1), (conv2, norm2)), start=1):
        tensors[f"conv{i}.weight"] = conv.weight
        tensors |= folded_norm(norm, f"norm{i}", conv.bias)
    return Mapped("GAM", options, tensors, notes=[note])


def _gam_design(parts: Parts, padding: str, groups: int, options: dict[str, Any]) -> str:
    """Shuffle and channel gate, which only the class's name tells; say so."""
    if padding == "replicate":
        options |= {"channel_gate": "none", "padding": "replicate"}
        return "replicate padding: the copy without a sigmoid on the channel map"
    if "attention" in normalised(parts.module.name) or groups > 1:
        if parts.channels % 4:
            raise CannotMapError(f"shuffles in 4 groups, which do not divide {parts.channels}")
        options |= {"shuffle": 4, "channel_gate": "none"}
        return "taken to shuffle in 4 groups, without a sigmoid on the channel map"
    if parts.design == "paper":
        return "a sigmoid on the channel map, as you say"
    raise CannotMapError(
        "its tensors do not tell whether its channel map has a sigmoid (--design "
        f"{parts.module.name}=paper: it has)"
    )


def mlca(parts: Parts) -> Mapped:
    """Two kernels along the channels, for the whole map and for its cells."""
    local = parts.maybe(1, 1, None, named="local|loc|_l$")
    overall = parts.take("1-D convolution for the whole map", 1, 1, None)
    local = local or parts.take("1-D convolution for the cells", 1, 1, None)
    weight = parts.raw("local_weight|weight")
    parts.check_activations("sigmoid")
    if any(p.bias is not None and bool(p.bias.any()) for p in (local, overall)):
        raise CannotMapError("has a bias in its 1-D convolutions, MLCA here has none")
    k = overall.weight.shape[-1]
    if local.weight.shape[-1] != k:
        raise CannotMapError("has kernels of two lengths")
    options: dict[str, Any] = {"kernel_size": k}
    size = parts.number("local_size", default=5)
    if size != 5:
        options["local_size"] = int(size)
    tensors = {"w_g": overall.weight.flatten(), "w_l": local.weight.flatten()}
    if weight is not None:
        options["learn_weight"] = True
        tensors["local_weight"] = weight.reshape(1)
    elif (share := parts.number("local_weight", default=0.5)) != 0.5:
        options["local_weight"] = float(share)
    return Mapped("MLCA", options, tensors)
