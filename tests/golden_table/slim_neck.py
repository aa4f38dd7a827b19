"""Slim-neck: GSConv, the GS bottlenecks, VoV-GSCSP."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.golden_harness import Case, Golden
from yolo_attn import create

ACTS = {"SiLU": "silu", "Mish": "mish", "ReLU": "relu", "GELU": "gelu", "none": "none"}
DEAD = {r"res\..*": "built and never called"}
UNITS = range(16)


def act_of(config: dict[str, Any], key: str = "act", default: str = "SiLU") -> str:
    """Our name of the activation that a config names."""
    name = config.get(key, default)
    return ACTS.get(name, str(name).lower())


def _gsconv(form: str, shuffle: str):
    def build(config: dict[str, Any], golden: Golden) -> nn.Module:
        return create(
            "GSConv",
            config["c1"],
            config["c2"],
            config["k"],
            config["s"],
            act=act_of(config),
            shuffle=shuffle,
            form=form,
        )

    return build


GSCONV = {"": "", "echoes.0": "cv2", "echoes.1": "cv3", "echoes.2": "cv4", "mix": "shuf"}


def _gs_names(ours: str, theirs: str) -> dict[str, str]:
    """Names of a GS bottleneck's parts below a prefix."""
    names = {f"{ours}shortcut": f"{theirs}shortcut"}
    for i in (0, 1):
        for part, name in GSCONV.items():
            if part:
                names[f"{ours}cv{i + 1}.{part}"] = f"{theirs}conv_lighting.{i}.{name}"
        names[f"{ours}cv{i + 1}.cv1"] = f"{theirs}conv_lighting.{i}.cv1"
    return names


def _gsbottleneck(second_act: bool, shortcut: str, shuffle: str):
    def build(config: dict[str, Any], golden: Golden) -> nn.Module:
        return create(
            "GSBottleneck",
            config["c1"],
            config["c2"],
            config.get("e", 0.5),
            act_of(config),
            second_act,
            shuffle,
            shortcut,
        )

    return Case(build, names={"": "", **_gs_names("", "")})


def _vov(fixed: dict[str, Any], one: bool = False, keep_e: bool = True):
    """`one`: n is ignored, and the unit is named without a number."""

    def build(config: dict[str, Any], golden: Golden) -> nn.Module:
        options = dict(fixed)
        if "gs_bottleneck_e" in config:
            options["bottleneck_e"] = config["gs_bottleneck_e"]
        return create(
            "VoVGSCSP",
            config["c1"],
            config["c2"],
            e=config.get("e", 0.5) if keep_e else 0.5,
            act=act_of(config),
            n=1 if one else config.get("n", 1),
            **options,
        )

    names = {"": ""}
    for i in UNITS:
        names |= _gs_names(f"units.{i}.", "gsb." if one else f"gsb.{i}.")
    return Case(build, names=names, dropped=DEAD)


VOV_V8 = {
    "": "",
    "cv2.cv1": "gc2.cv1",
    "cv2.echoes.0": "gc2.cv2",
    "units.0.cv1": "m.cv1",
    "units.0.cv2": "m.cv2",
    "units.0.first": "m.m.0.cv1",
    "units.0.second": "m.m.0.cv2",
}


FORK = {"second_act": True, "shuffle": "deinterleave"}

CASES = {
    "gsconv_interleave": Case(_gsconv("plain", "interleave"), names=GSCONV),
    "gsconv_deinterleave": Case(_gsconv("plain", "deinterleave"), names=GSCONV),
    "gsconv_ns": Case(_gsconv("plain", "conv"), names=GSCONV),
    "gsconv_e": Case(
        _gsconv("e", "interleave"),
        names={"": "", "echoes.0.conv": "cv2.0", "echoes.0.depthwise": "cv2.1"},
    ),
    "gsconv_e2": Case(_gsconv("e2", "interleave"), names=GSCONV),
    "gsbottleneck_paper": _gsbottleneck(False, "conv", "interleave"),
    "gsbottleneck_v8": _gsbottleneck(True, "conv", "interleave"),
    "gsbottleneck_fork": _gsbottleneck(True, "conv", "deinterleave"),
    "gsbottleneckC_paper": _gsbottleneck(False, "depthwise", "interleave"),
    "gsbottleneckC_v8": _gsbottleneck(True, "depthwise", "interleave"),
    "vovgscsp_paper": _vov({}, one=True),
    "vovgscsp_fork": _vov(FORK),
    "vovgscsp_ns": _vov({"shuffle": "conv", "bottleneck_e": 1.0, "second_act": True}),
    "vovgscspC_fork": _vov(
        {**FORK, "shortcut_form": "depthwise", "shortcut_kernel": 1}, one=True, keep_e=False
    ),
    "vovgscsp_v8": Case(
        lambda config, golden: create(
            "VoVGSCSP", config["c1"], config["c2"], e=config["e"], act=act_of(config), form="c2f"
        ),
        names=VOV_V8,
    ),
}
