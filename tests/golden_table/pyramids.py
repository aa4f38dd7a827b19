"""Up-sampling and pyramids: DySample, CARAFE, EUCB, RFB, ASPP, SimSPPF, SPPFCSPC, SPPFLSKA."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.golden_harness import Case, Golden
from yolo_attn import create
from yolo_attn.blocks._separable_kernel import SeparableKernelGate

EUCB_ACTS = {"leakyrelu": "leaky_relu", "hswish": "hardswish"}
UNITS = range(16)


def _dysample(config: dict[str, Any], golden: Golden) -> nn.Module:
    keys = ("scale", "style", "groups", "dyscope")
    return create(
        "DySample",
        config["in_channels"],
        scope_bias=config.get("scope_bias", False),
        **{key: config[key] for key in keys},
    )


def _carafe_mmcv(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create(
        "CARAFE",
        config["channels"],
        None,
        config["scale_factor"],
        config["up_kernel"],
        config["encoder_kernel"],
        config["compressed_channels"],
        config["up_group"],
        config["encoder_dilation"],
    )


def _carafe_bn(act: str):
    def build(config: dict[str, Any], golden: Golden) -> nn.Module:
        return create(
            "CARAFE",
            config["c"],
            None,
            config["scale"],
            config["k_up"],
            config["k_enc"],
            config["c_mid"],
            norm="bn",
            act=act,
        )

    return build


def _carafe_yoloair(config: dict[str, Any], golden: Golden) -> nn.Module:
    c, k = config["c1"], config["kernel_size"]
    return create("CARAFE", c, config["c2"], config["up_factor"], k, k, c // 4, out_conv=True)


def _eucb(act: str | None):
    def build(config: dict[str, Any], golden: Golden) -> nn.Module:
        name = act or config["activation"]
        c = config["in_channels"]
        return create(
            "EUCB",
            c,
            config.get("out_channels", c),
            config["kernel_size"],
            EUCB_ACTS.get(name, name),
        )

    return build


def _rfb(variant: str):
    def build(config: dict[str, Any], golden: Golden) -> nn.Module:
        return create(
            "RFB",
            config["in_planes"],
            config["out_planes"],
            config["stride"],
            variant,
            config["scale"],
            config.get("visual", config.get("vision", 1)),
            config.get("map_reduce"),
            config.get("groups", 1),
        )

    names = {f"branches.{i}": f"branch{i}" for i in UNITS}
    return Case(build, names={**names, "mix": "ConvLinear", "shortcut": "shortcut"})


def _aspp_names(golden_rates: int) -> dict[str, str]:
    names = {"first.conv": "convs.0.0", "first.bn": "convs.0.1"}
    for i in range(golden_rates):
        names |= {f"branches.{i}.conv": f"convs.{i + 1}.0", f"branches.{i}.bn": f"convs.{i + 1}.1"}
    last = golden_rates + 1
    return {
        **names,
        "mean": f"convs.{last}.1",
        "mean_norm": f"convs.{last}.2",
        "mix.conv": "project.0",
        "mix.bn": "project.1",
    }


def _pooling_branch_last(config: dict[str, Any], params):
    """The pooling branch of ours has a name of its own, whatever the number of rates."""
    last = len(config["atrous_rates"]) + 1
    return {
        k.replace(f"convs.{last}.1.", "mean.").replace(f"convs.{last}.2.", "mean_norm."): v
        for k, v in params.items()
    }


def _aspp(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create("ASPP", config["in_channels"], config["out_channels"], config["atrous_rates"])


def _aspp_tph(config: dict[str, Any], golden: Golden) -> nn.Module:
    rates = [(k - 1) // 2 for k in config["k"]]
    return create("ASPP", config["c1"], config["c2"], rates, "tph")


def _simsppf(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create("SimSPPF", config["in_channels"], config["out_channels"], config["kernel_size"])


def _sppfcspc(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create("SPPFCSPC", config["c1"], config["c2"], config["k"], config["e"])


def _sppf_lska(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create("SPPFLSKA", config["c1"], config["c2"], config["k"], config["lska_k"])


def _lska(config: dict[str, Any], golden: Golden) -> nn.Module:
    return SeparableKernelGate("LSKA", config["dim"], config["k_size"])


LSKA = {
    "near_row": "conv0h",
    "near_column": "conv0v",
    "far_row": "conv_spatial_h",
    "far_column": "conv_spatial_v",
    "mix": "conv1",
}
INIT_POS = {"init_pos": "the places of the sub-pixels, a constant"}

CASES = {
    "dysample": Case(_dysample, dropped=INIT_POS),
    "dysample_forkscope": Case(_dysample, dropped=INIT_POS),
    "carafe_mmcv": Case(
        _carafe_mmcv, names={"comp.0": "channel_compressor", "enc": "content_encoder"}
    ),
    "carafe_bn_relu": Case(_carafe_bn("relu")),
    "carafe_yolo": Case(_carafe_bn("silu")),
    "carafe_yoloair": Case(
        _carafe_yoloair, names={"comp.0": "down", "enc": "encoder", "out": "out"}
    ),
    "eucb": Case(
        _eucb(None),
        names={
            "smooth.conv": "up_dwc.1",
            "smooth.bn": "up_dwc.2",
            "smooth.act": "up_dwc.3",
            "mix": "pwc.0",
        },
    ),
    "eucb_yolo": Case(_eucb("silu"), names={"smooth": "up_dwc.1", "mix": "pwc.0"}),
    "rfb": _rfb("basic"),
    "rfb_s": _rfb("small"),
    "rfb_e": _rfb("extended"),
    "rfb_fork": _rfb("fork"),
    "aspp_deeplab": Case(
        _aspp,
        names={**_aspp_names(16), "mean": "mean", "mean_norm": "mean_norm"},
        fix=_pooling_branch_last,
    ),
    "aspp_tph": Case(_aspp_tph, names={"first": "cv1", "branches": "m", "mix": "cv2"}),
    "simsppf": Case(_simsppf),
    "sppfcspc": Case(_sppfcspc),
    "sppf_lska": Case(
        _sppf_lska, names={"": "", **{f"lska.{k}": f"lska.{v}" for k, v in LSKA.items()}}
    ),
    "lska": Case(_lska, names=LSKA),
}
