"""Layers in the place of convolutions: FasterNet, RFA, wavelets, DCNv2, LDConv, ODConv ..."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from tests.golden_harness import Arrays, Case, Golden
from tests.golden_table.slim_neck import act_of
from yolo_attn import create
from yolo_attn.layers.spatial_channel_reconstruction import (
    ChannelReconstruction,
    SpatialReconstruction,
)

FIXED = "a constant"
CONV_NORM = {"conv.conv": "conv.0", "conv.bn": "conv.1"}
UNITS = range(16)


def _bias_into_norm(conv: str, norm: str):
    """A convolution bias in front of a BN only shifts its running mean."""

    def fix(config: dict[str, Any], params: Arrays) -> Arrays:
        bias = params.pop(f"{conv}.bias" if conv else "bias", None)
        if bias is not None:
            mean = params[f"{norm}.running_mean"]
            params[f"{norm}.running_mean"] = mean - bias.astype(np.float64)
        return params

    return fix


def _space_to_depth(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create("ReOrg", golden.arrays["x"].shape[1])


def _spd(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create(
        "SPDConv", config["c1"], config["c2"], config["k"], config["scale"], act_of(config)
    )


def _rfa(form: str, act: str):
    def build(config: dict[str, Any], golden: Golden) -> nn.Module:
        return create(
            "RFAConv",
            config["in_channel"],
            config["out_channel"],
            config["kernel_size"],
            config.get("stride", 1),
            act,
            form,
        )

    return build


def _rfcbam(act: str):
    def build(config: dict[str, Any], golden: Golden) -> nn.Module:
        return create(
            "RFCBAMConv",
            config["in_channel"],
            config["out_channel"],
            config["kernel_size"],
            config["stride"],
            act,
            config["se_width"],
        )

    return build


def _rfca(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create(
        "RFCAConv",
        config["inp"],
        config["oup"],
        config["kernel_size"],
        config["stride"],
        config["reduction"],
    )


GENERATE = {"features.conv": "generate.0", "features.bn": "generate.1"}
RFCBAM = {**GENERATE, "fc1": "se.fc.0", "fc2": "se.fc.2", "spatial": "get_weight.0", "": ""}


def _pconv(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create("PConv", config["dim"], n_div=config["n_div"])


def _fasternet(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create(
        "FasterNetBlock",
        config.get("inc", config["dim"]),
        config["dim"],
        config["mlp_ratio"],
        config["n_div"],
        act_of(config),
        1.0 if config.get("layer_scale") else 0.0,
    )


def _c2f(name: str):
    def build(config: dict[str, Any], golden: Golden) -> nn.Module:
        return create(name, config["c1"], config["c2"], e=config["e"], act="silu", n=config["n"])

    return build


FASTER = {
    "mix.conv": "spatial_mixing.partial_conv3",
    "fc1": "mlp.0",
    "fc2": "mlp.1",
    "adjust": "adjust_channel",
}
DWR = {
    "reduce": "conv_3x3",
    "d1": "conv_3x3_d1",
    "d3": "conv_3x3_d3",
    "d5": "conv_3x3_d5",
    "mix": "conv_1x1",
}


def _below(names: dict[str, str]) -> dict[str, str]:
    """The same names of every unit of a stage."""
    return {"": ""} | {f"m.{i}.{k}": f"m.{i}.{v}" for i in UNITS for k, v in names.items()}


def _hwd(act: str):
    def build(config: dict[str, Any], golden: Golden) -> nn.Module:
        return create("HWD", config["in_ch"], config["out_ch"], act)

    return build


def _wtconv(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create(
        "WTConv",
        config["in_channels"],
        config["out_channels"],
        config["kernel_size"],
        config["stride"],
        config["wt_levels"],
        config["bias"],
    )


def _dcn(norm: bool):
    def build(config: dict[str, Any], golden: Golden) -> nn.Module:
        return create(
            "DCNv2",
            config["in_channels"],
            config["out_channels"],
            config["kernel_size"],
            config["stride"],
            config.get("padding"),
            config["dilation"],
            config["groups"],
            config.get("deform_groups", config.get("deformable_groups", 1)),
            config.get("bias", True),
            norm,
            act_of(config),
        )

    return build


def _ldconv(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create(
        "LDConv",
        config["inc"],
        config["outc"],
        config["num_param"],
        config["stride"],
        "silu",
        border="reference",
    )


def _odconv(config: dict[str, Any], golden: Golden) -> nn.Module:
    keys = ("kernel_size", "stride", "padding", "dilation", "groups", "reduction", "kernel_num")
    return create(
        "ODConv",
        config["in_planes"],
        config["out_planes"],
        temperature=config["temperature"],
        **{key: config[key] for key in keys},
    )


def _odconv_kernels(config: dict[str, Any], params: Arrays) -> Arrays:
    """Our kernels are one below the other."""
    params["weight"] = params["weight"].reshape(-1, *params["weight"].shape[2:])
    return params


def _cru_options(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "alpha": config["alpha"],
        "squeeze": config["squeeze_radio"],
        "groups": config["group_size"],
        "kernel_size": config["group_kernel_size"],
    }


def _scconv(config: dict[str, Any], golden: Golden) -> nn.Module:
    return create(
        "ScConv",
        config["op_channel"],
        group_num=config["group_num"],
        threshold=config["gate_treshold"],
        **_cru_options(config),
    )


def _sru(config: dict[str, Any], golden: Golden) -> nn.Module:
    return SpatialReconstruction(
        config["oup_channels"], config["group_num"], config["gate_treshold"]
    )


def _cru(config: dict[str, Any], golden: Golden) -> nn.Module:
    return ChannelReconstruction(config["op_channel"], **_cru_options(config))


CRU = {"": "", "gwc": "GWC", "pwc1": "PWC1", "pwc2": "PWC2"}

CASES = {
    "space_to_depth": Case(_space_to_depth),
    "spd_conv": Case(_spd),
    "spd_conv_general": Case(_spd),
    "rfaconv": Case(
        _rfa("group", "relu"),
        names={
            "gain": "get_weight.1.weight",
            "features.conv": "generate_feature.0",
            "features.bn": "generate_feature.1",
            **CONV_NORM,
        },
        fix=_bias_into_norm("conv.0", "conv.1"),
    ),
    "rfaconv_yolo": Case(
        _rfa("group", "silu"),
        names={
            "": "",
            "gain": "get_weight.1.weight",
            "features.conv": "generate_feature.0",
            "features.bn": "generate_feature.1",
        },
    ),
    "rfaconv_unfold": Case(
        _rfa("unfold", "relu"),
        names={
            "weigh.conv": "get_weights.0",
            "weigh.bn": "get_weights.1",
            "conv.conv": "conv",
            "conv.bn": "bn",
        },
        fix=lambda config, params: _bias_into_norm("conv", "bn")(
            config, _bias_into_norm("get_weights.0", "get_weights.1")(config, params)
        ),
    ),
    "rfcbamconv": Case(
        _rfcbam("relu"), names={**RFCBAM, **CONV_NORM}, fix=_bias_into_norm("conv.0", "conv.1")
    ),
    "rfcbamconv_yolo": Case(_rfcbam("silu"), names=RFCBAM),
    "rfcaconv": Case(
        _rfca,
        names={
            **GENERATE,
            "squeeze": "conv1",
            "norm": "bn1",
            "rows": "conv_h",
            "columns": "conv_w",
            "conv": "conv.0",
        },
        fix=_bias_into_norm("conv1", "bn1"),
    ),
    "pconv": Case(_pconv, names={"conv": "partial_conv3"}),
    "fasternet_block": Case(
        _fasternet,
        names={
            "": "",
            **FASTER,
            "fc1.conv": "mlp.0",
            "fc1.bn": "mlp.1",
            "fc2": "mlp.3",
        },
    ),
    "faster_block_yolo": Case(_fasternet, names={"": "", **FASTER}),
    "c2f_faster": Case(_c2f("C2fFaster"), names=_below(FASTER)),
    "hwd": Case(
        _hwd("relu"),
        names={"conv.conv": "conv_bn_relu.0", "conv.bn": "conv_bn_relu.1"},
        fix=_bias_into_norm("conv_bn_relu.0", "conv_bn_relu.1"),
    ),
    "hwd_yolo": Case(_hwd("silu")),
    "wtconv": Case(
        _wtconv,
        names={
            "base": "base_conv",
            "base_scale": "base_scale.weight",
            **{f"levels.{i}": f"wavelet_convs.{i}" for i in UNITS},
            **{f"level_scales.{i}": f"wavelet_scale.{i}.weight" for i in UNITS},
        },
    ),
    "dcnv2_mmcv": Case(_dcn(False), names={"": "", "points": "conv_offset"}),
    "dcnv2_yolo": Case(
        _dcn(True),
        names={"": "", "points": "conv_offset_mask", "norm": "bn"},
        fix=_bias_into_norm("", "bn"),
    ),
    "ldconv": Case(
        _ldconv,
        names={"offset": "p_conv", **CONV_NORM},
        dropped={"p_n": FIXED},
        fix=_bias_into_norm("conv.0", "conv.1"),
    ),
    "odconv": Case(
        _odconv,
        names={
            "": "",
            "fc": "attention.fc",
            "fc_norm": "attention.bn",
            "channel": "attention.channel_fc",
            "filter": "attention.filter_fc",
            "tap": "attention.spatial_fc",
            "kernel": "attention.kernel_fc",
        },
        fix=_odconv_kernels,
    ),
    "scconv": Case(
        _scconv,
        names={
            "sru.norm": "SRU.gn",
            **{f"cru.{k}".rstrip("."): f"CRU.{v}".rstrip(".") for k, v in CRU.items()},
        },
    ),
    "scconv_sru": Case(_sru, names={"norm": "gn"}),
    "scconv_cru": Case(_cru, names=CRU),
    "dwr": Case(
        lambda config, golden: create("DWR", config["dim"], None, act_of(config)), names=DWR
    ),
    "c2f_dwr": Case(_c2f("C2fDWR"), names=_below(DWR)),
}
