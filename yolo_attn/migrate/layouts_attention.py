"""Rules for attention and context: LSK, criss-cross, non-local, bi-level routing, GC; the table."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from yolo_attn.migrate.layouts import (
    EPS,
    CannotMapError,
    Mapped,
    Part,
    Parts,
    exact,
    folded_norm,
    hidden,
    matrix,
    normalised,
    pointwise,
    zeros_padded,
)
from yolo_attn.migrate.layouts_gates import (
    cbam,
    coord_att,
    eca,
    ema,
    gam,
    mlca,
    se,
    simam,
)

NONLOCAL_MODES = {
    "embedded": "embedded_gaussian",
    "embedded_gaussian": "embedded_gaussian",
    "gaussian": "gaussian",
    "dot": "dot_product",
    "dot_product": "dot_product",
    "concatenate": "concatenation",
    "concatenation": "concatenation",
}


def lsk(parts: Parts) -> Mapped:
    """A small and a large depthwise convolution, their halves, and the squeeze between them."""
    c = parts.channels
    m = max(c // 2, 1)
    found = {
        "small": parts.take("depthwise 5 x 5 convolution", c, 1, 5, 5),
        "large": parts.take("depthwise 7 x 7 convolution, dilation 3", c, 1, 7, 7, dilation=3),
        "squeeze": parts.take("7 x 7 convolution of two maps", 2, 2, 7, 7),
        "conv1": parts.take("map of the small field", m, c),
        "conv2": parts.take("map of the large field", m, c),
        "out": parts.take("map to the factor", c, m),
    }
    parts.check_activations("sigmoid")
    tensors = {}
    for name, part in found.items():
        tensors[f"unit.{name}.weight"] = zeros_padded(part).weight
        tensors[f"unit.{name}.bias"] = part.bias_or_zeros()
    return Mapped("LSK", {}, tensors)


def criss_cross(parts: Parts) -> Mapped:
    """Queries and keys C -> d, values C -> C, and a factor."""
    c = parts.channels
    query = parts.take("map of queries", None, c, named="q|theta")
    key = parts.take("map of keys", query.shape[0], c, named="k|phi")
    value = parts.take("map of values", c, c)
    gamma = parts.raw("gamma|alpha|scale")
    parts.check_activations("softmax")
    if gamma is None or gamma.numel() != 1:
        raise CannotMapError("has no factor gamma of its branch")
    tensors = {
        "query.weight": pointwise(query),
        "query.bias": query.bias_or_zeros(),
        "key.weight": pointwise(key),  # its bias adds the same to all logits of a softmax
        "value.weight": pointwise(value),
        "value.bias": value.bias_or_zeros(),
        "gamma": gamma.reshape(1),
    }
    passes = parts.number("recurrence", default=2 if parts.design == "paper" else 1)
    options = {"recurrence": int(passes), **hidden(c, query.shape[0]), "gamma_step": 1.0}
    note = f"taken to pass {int(passes)} time{'s' if passes > 1 else ''}"
    return Mapped("CrissCross", options, tensors, notes=[note])


def non_local(parts: Parts) -> Mapped:
    """g, theta, phi C -> d and a map back with a norm."""
    c = parts.channels
    said = parts.module.attributes.get("mode", "embedded")
    mode = NONLOCAL_MODES.get(said) if isinstance(said, str) else None
    if mode is None:
        raise CannotMapError(
            f"has the mode {str(said)[:40]!r} (accepted: {', '.join(NONLOCAL_MODES)})"
        )
    if parts.number("dimension", default=2) != 2:
        raise CannotMapError("is not two-dimensional")
    norm = parts.maybe(c, norm=True)
    g = parts.take("map g", None, c, named=r"(^|\.)g(\.|$)")
    d = g.shape[0]
    out = parts.take("map back", c, d, named=r"w|z|out")
    tensors: dict[str, Tensor] = {
        "g.weight": pointwise(g),
        "g.bias": g.bias_or_zeros(),
        "out.weight": pointwise(out),
    }
    softmax = mode in ("gaussian", "embedded_gaussian")
    if mode != "gaussian":
        theta = parts.take("map theta", d, c, named="theta")
        phi = parts.take("map phi", d, c, named="phi")
        tensors["theta.weight"], tensors["phi.weight"] = pointwise(theta), pointwise(phi)
        tensors["theta.bias"] = theta.bias_or_zeros()
        if not softmax:
            tensors["phi.bias"] = phi.bias_or_zeros()
    if mode == "concatenation":
        w_f = parts.take("map of pairs", 1, 2 * d)
        tensors["w_f"] = w_f.weight.flatten()
        if w_f.bias is not None:
            # w_f . [theta, phi] + b: b goes into theta's bias, along w_f's first half.
            u = tensors["w_f"][:d].double()
            shifted = tensors["theta.bias"].double() + u * w_f.bias.double() / u.square().sum()
            tensors["theta.bias"] = exact(shifted, theta.weight)
    if norm is not None:
        tensors |= folded_norm(norm, "norm", out.bias)
    else:
        tensors["out.bias"] = out.bias_or_zeros()
    pooled = bool(parts.module.attributes.get("sub_sample")) or "maxpool2d" in parts.plain
    parts.finish("maxpool2d")
    if wrong := [a for a in parts.activations(ignore=()) if a not in ("relu", "softmax")]:
        raise CannotMapError(f"has {wrong[0]} in it")
    options: dict[str, Any] = hidden(c, d)
    for name, value, default in (
        ("mode", mode, "embedded_gaussian"),
        ("sub_sample", "after" if pooled else "none", "none"),
        ("norm", "none" if norm is None else "bn", "bn"),
    ):
        if value != default:
            options[name] = value
    return Mapped("NonLocal", options, tensors)


def bi_level_routing(parts: Parts) -> Mapped:
    """One map to queries, keys and values, a depthwise convolution, one map back."""
    c = parts.channels
    qkv = parts.maybe(None, c, named="qkv")
    qkv = qkv or parts.take("map to queries, keys and values", None, c)
    lepe = parts.maybe(c, 1, None, None)
    out = parts.maybe(c, c)
    parts.finish("topkrouting", "kvgather", "qkvlinear", "regionaltopkrouting")
    attributes = parts.module.attributes
    d, odd = divmod(qkv.shape[0] - c, 2)
    if odd or d < 1:
        raise CannotMapError(f"has {qkv.shape[0]} queries, keys and values for {c} channels")
    for flag in ("soft_routing", "diff_routing", "param_routing"):
        if attributes.get(flag):
            raise CannotMapError(f"has {flag} (accepted: without)")
    if attributes.get("kv_downsample_mode", "identity") != "identity":
        raise CannotMapError(f"pools keys by {attributes['kv_downsample_mode']!r}"[:100])
    # The first code pads its input, the second (1 x 1 convolutions) its keys and values.
    second = qkv.weight.dim() == 4
    options: dict[str, Any] = {
        "attention_only": True,
        "num_heads": int(parts.number("num_heads", "heads", default=8)),
        "n_win": int(parts.number("n_win", default=7)),
        "topk": int(parts.number("topk", default=4)),
        "side_dwconv": lepe.weight.shape[-1] if lepe else 0,
        "border": "zero" if second else "bias",
    }
    if d != c:
        options["qk_dim"] = d
    scale = parts.number("scale", default=d**-0.5)
    if abs(scale - d**-0.5) > 1e-12:
        options["qk_scale"] = float(scale)
    tensors = {"attn.qkv.weight": matrix(qkv), "attn.qkv.bias": qkv.bias_or_zeros()}
    if lepe is not None:
        tensors["attn.lepe.weight"] = zeros_padded(lepe).weight
        tensors["attn.lepe.bias"] = lepe.bias_or_zeros()
    if out is None:
        options["param_attention"] = "qkv"
    else:
        tensors["attn.wo.weight"], tensors["attn.wo.bias"] = matrix(out), out.bias_or_zeros()
    return Mapped("BiFormer", options, tensors)


def global_context(parts: Parts) -> Mapped:
    """A map of one channel, and a bottleneck with a layer norm for each fusion."""
    c = parts.channels
    mask = parts.maybe(1, c)
    transforms = {"mul": _transform(parts, "scale|mul"), "add": _transform(parts, "add")}
    found = {name: t for name, t in transforms.items() if t}
    if not found:
        raise CannotMapError("has no bottleneck whose name says whether it is added or multiplied")
    parts.check_activations("relu", "sigmoid", "softmax")
    planes = {t[0].shape[0] for t in found.values() if t}
    if len(planes) > 1:
        raise CannotMapError("has bottlenecks of two widths")
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    if mask is not None:
        tensors["mask.weight"] = pointwise(mask)  # its bias adds the same to all logits
    for name, (w1, norm, w2) in found.items():
        for ours, part in (("w1", w1), ("w2", w2)):
            tensors[f"{name}.{ours}.weight"] = matrix(part)
            tensors[f"{name}.{ours}.bias"] = part.bias_or_zeros()
        tensors[f"{name}.norm.weight"] = norm.weight.flatten()
        tensors[f"{name}.norm.bias"] = norm.bias_or_zeros().flatten()
        if (eps := norm.module.number("eps", _default_eps(norm))) != EPS:
            settings[f"{name}.norm.eps"] = eps
    options: dict[str, Any] = {
        **hidden(c, planes.pop()),
        "fusion": "both" if len(found) == 2 else next(iter(found)),
    }
    if mask is None:
        options["pooling"] = "avg"
    return Mapped("GlobalContext", options, tensors, settings)


def _default_eps(norm: Part) -> float:
    """The channel norm of timm has another default than PyTorch's."""
    return 1e-6 if normalised(norm.module.name) == "layernorm2d" else EPS


def _transform(parts: Parts, named: str) -> tuple[Part, Part, Part] | None:
    c = parts.channels
    w1 = parts.maybe(None, c, named=named)
    if w1 is None:
        return None
    p = w1.shape[0]
    norm = parts.maybe(p, named=named)
    if norm is None:
        norm = parts.take("layer norm", p, 1, named=named)  # of shape (P, 1, 1)
    return w1, norm, parts.take("map back", c, p, named=named)


def context_aggregation(parts: Parts) -> Mapped:
    """Maps a and k of one channel, v C -> d, m d -> C."""
    c = parts.channels
    gate = parts.take("map of the gate", 1, c, named=r"(^|\.)a(\.|$)")
    key = parts.take("map of the keys", 1, c, named=r"(^|\.)k(\.|$)")
    value = parts.take("map of the values", None, c, named=r"(^|\.)v(\.|$)")
    back = parts.take("map back", c, value.shape[0], named=r"(^|\.)m(\.|$)")
    parts.check_activations("sigmoid", "softmax")
    tensors = {"k.weight": pointwise(key)}  # its bias adds the same to all logits
    for name, part in (("a", gate), ("v", value), ("m", back)):
        tensors[f"{name}.weight"] = pointwise(part)
        tensors[f"{name}.bias"] = part.bias_or_zeros()
    return Mapped("ContextAggregation", hidden(c, value.shape[0]), tensors)


def ca(parts: Parts) -> Mapped:
    """`CA`, which is coordinate attention in forks and context aggregation in papers."""
    if any("running_mean" in m.tensors for _, m in parts.module.modules()):
        return coord_att(parts)
    return context_aggregation(parts)


# What forks append to a name: CBAMLayer, SEModule, ECA2.
SUFFIX = re.compile(r"(block|attention|layer|module|attn|(?<!v)\d)$")
RULES: dict[str, Callable[[Parts], Mapped]] = {
    **dict.fromkeys(("cbam", "cbamauthentic", "ultralyticscbam"), cbam),
    **dict.fromkeys(("se", "senet"), se),
    "eca": eca,
    **dict.fromkeys(("coordatt", "coordinateattention", "coordattention", "cablock"), coord_att),
    "ca": ca,
    **dict.fromkeys(("ema", "emattention"), ema),
    "simam": simam,
    "gam": gam,
    "mlca": mlca,
    "lsk": lsk,
    **dict.fromkeys(("crisscross", "ccattention"), criss_cross),
    **dict.fromkeys(("nonlocal", "nlblocknd", "nonlocalblock2d", "nonlocalblocknd"), non_local),
    **dict.fromkeys(("bilevelrouting", "bilevelroutingattentionnchw"), bi_level_routing),
    **dict.fromkeys(("globalcontext", "context"), global_context),
    "contextaggregation": context_aggregation,
}


def rule_for(name: str) -> Callable[[Parts], Mapped] | None:
    """The rule for a class of this name, however it is spelled; None where there is none."""
    name = normalised(name)
    while name not in RULES and (shorter := SUFFIX.sub("", name)) != name:
        name = shorter
    return RULES.get(name)
