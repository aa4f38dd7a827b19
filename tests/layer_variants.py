"""Options of layers for the tests over every registered name; what layers do to a map's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

STRIDED = {"out_channels": 24, "kernel_size": 3, "stride": 2}
# Options that take another path through a layer than its defaults.
LAYER_VARIANTS: dict[str, list[dict[str, Any]]] = {
    "SPPCSPC": [{"out_channels": 24}, {"out_channels": 24, "kernel_size": 3, "e": 0.25}],
    "DownC": [{"out_channels": 24}],
    "RepConv3x3": [{"out_channels": 24}],
    "SPDConv": [
        {"out_channels": 24, "kernel_size": 1},
        {"scale": 3, "act": "none"},
    ],
    "DySample": [
        {"style": "pl", "dyscope": True},
        {"scale": 3, "groups": 2, "dyscope": True, "scope_bias": True},
    ],
    "CARAFE": [
        {"norm": "bn", "act": "silu", "c_mid": 12},
        {"scale": 3, "k_up": 3, "groups": 2, "dilation": 2},
        {"out_channels": 24, "out_conv": True, "act": "relu"},
    ],
    "EUCB": [{"out_channels": 24, "kernel_size": 5, "act": None}, {"act": "prelu"}],
    "RFAConv": [STRIDED, {"act": None, "kernel_size": 5}, {"form": "unfold"}],
    "RFCBAMConv": [STRIDED],
    "RFCAConv": [STRIDED],
    "GSConv": [
        STRIDED,
        {"shuffle": "deinterleave", "act": "mish"},
        {"shuffle": "conv"},
        {"form": "e", "out_channels": 24},
        {"form": "e2", "out_channels": 24},
    ],
    "GSBottleneck": [
        {"out_channels": 24, "second_act": True},
        {"shortcut": "depthwise", "e": 1.0},
        {"shortcut": "depthwise", "out_channels": 24, "shortcut_kernel": 1},
    ],
    "VoVGSCSP": [
        {"out_channels": 24, "n": 2, "bottleneck_e": 1.0, "shuffle": "deinterleave"},
        {"form": "c2f"},
        {"shortcut_form": "depthwise", "shortcut_kernel": 1},
    ],
    "PConv": [{"kernel_size": 5, "n_div": 2}],
    "FasterNetBlock": [
        {"out_channels": 24, "act": "gelu", "layer_scale": 0.5},
        {"layer_scale": 0.01, "drop_path": 0.1},
    ],
    "C2fFaster": [{"out_channels": 24, "n": 2}],
    "DWR": [{"act": "relu"}],
    "C2fDWR": [{"out_channels": 24, "n": 2}],
    "HWD": [{"out_channels": 24, "act": None}],
    "WTConv": [
        {"kernel_size": 3, "levels": 3, "stride": 2, "bias": False},
        {"levels": 2, "stride": 3},
    ],
    "DCNv2": [
        STRIDED,
        {"groups": 2, "deform_groups": 2, "dilation": 2, "norm": False},
        {"kernel_size": 5, "bias": False, "norm": False},
    ],
    "LDConv": [
        {"out_channels": 24, "points": 6, "stride": 2},
        {"border": "reference", "grid": "centre"},
    ],
    "ODConv": [
        {**STRIDED, "norm": True},
        {"kernel_num": 1, "groups": 2, "temperature": 4.0},
        {"kernel_size": 1},
    ],
    "ScConv": [{"norm": True, "group_num": 8, "squeeze": 1}],
    "RFB": [
        {"out_channels": 24, "stride": 2, "visual": 2},
        {"variant": "small"},
        {"variant": "extended", "scale": 1.0},
        {"variant": "fork", "map_reduce": 4},
    ],
    "ASPP": [
        {"out_channels": 24, "rates": [1, 3], "dropout": 0.1},
        {"form": "tph", "out_channels": 24},
    ],
    "WeightedConcat": [{"scale": "sum"}, {"scale": "sum", "relu": False}],
    "SimSPPF": [{"out_channels": 24, "kernel_size": 3, "act": None}],
    "SPPFLSKA": [{"out_channels": 24, "kernel_size": 3, "lska_kernel": 23}],
}
# Published biases of a norm behind which only a linear map and another norm follow; which of them
# there are depends on the options, those of the defaults are declared.
LINEAR_TAILS = {
    "RFB": r"branches\.\d\.\d\.bn\.bias",
    "VoVGSCSP": r"units\.\d\.(cv2\.echoes\.0|shortcut)\.bn\.bias",
}
# Layers that shrink a map by 2 or enlarge it, by default.
HALVES = {"DownC", "ReOrg", "HWD", "SPDConv"}
ENLARGES = {"DySample", "CARAFE", "EUCB"}
EVEN_ONLY = {"ReOrg"}
EQUAL_WIDTHS = {"Shortcut", "LevelGate"}


def output_size(name: str, options: dict[str, Any], size: Sequence[int]) -> tuple[int, ...]:
    """Height and width of the output; shrunk sides are rounded up."""
    scale = options.get("scale", 2)
    if name in ENLARGES:
        return tuple(side * scale for side in size)
    stride = scale if name in HALVES else options.get("stride", 1)
    return tuple(-(-side // stride) for side in size)
