"""Plain formulations of the blocks, written from their formulas, to measure ours against.

They follow the way popular copies write them: affinities are N x N tensors, values are projected
at all positions before they are summed, pyramids pool what was convolved. They are no part of the
package. Each computes the same function as the block of the same name: `load` takes over the
weights of ours, and both the benchmark and tests/test_benchmarks_plain.py compare outputs and
gradients.
"""

from __future__ import annotations

from typing import Any

from ._common import Plain
from .asymmetric import AFNB, APNB
from .channel import ECA, MLCA, SE, SK, FcaNet, SEv2
from .container import Container
from .context import EMAU, ContextAggregation, DoubleAttention, GlobalContext, SimplifiedNonLocal
from .convolution import (
    CARAFE,
    HWD,
    DCNv2,
    DySample,
    LDConv,
    RFAConv,
    RFCAConv,
    RFCBAMConv,
    WTConv,
)
from .criss_cross import CrissCross
from .dual import ChannelGram, DANet, PositionAttention
from .fpt import FPTGround, FPTRender, FPTSelf
from .hcf import DASI, MDCR, PPA
from .non_local import NonLocal
from .revcol import RevColAttnFusion, RevColFusion, RevColumns
from .routing import BiFormer
from .spatial import (
    CBAM,
    EMA,
    GAM,
    LSK,
    ChannelGate,
    CoordAtt,
    SimAM,
    SpatialGate,
    UltralyticsCBAM,
)

PLAIN: dict[str, type[Plain]] = {
    cls.__name__: cls
    for cls in (
        AFNB,
        APNB,
        BiFormer,
        CARAFE,
        CBAM,
        ChannelGate,
        ChannelGram,
        Container,
        ContextAggregation,
        CoordAtt,
        CrissCross,
        DANet,
        DASI,
        DCNv2,
        DoubleAttention,
        DySample,
        ECA,
        EMA,
        EMAU,
        FPTGround,
        FPTRender,
        FPTSelf,
        FcaNet,
        GAM,
        GlobalContext,
        HWD,
        LDConv,
        LSK,
        MDCR,
        MLCA,
        NonLocal,
        PPA,
        PositionAttention,
        RFAConv,
        RFCAConv,
        RFCBAMConv,
        RevColAttnFusion,
        RevColFusion,
        RevColumns,
        SE,
        SEv2,
        SK,
        SimAM,
        SimplifiedNonLocal,
        SpatialGate,
        UltralyticsCBAM,
        WTConv,
    )
}
# Options, beside the defaults, under which a block takes another path through its code.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "NonLocal": [
        {"mode": "gaussian"},
        {"mode": "dot_product"},
        {"mode": "concatenation"},
        {"sub_sample": "after", "scale": "sqrt_d", "norm": "none"},
    ],
    "FPTGround": [{"mode": "dot"}],
    "GlobalContext": [{"fusion": "both"}],
    "APNB": [{"sampling": "max"}, {"sampling": "both"}],
    "AFNB": [{"sampling": "both"}],
    "CBAM": [{"norm": "bn"}],
    "GAM": [{"groups": 4, "shuffle": 4}],
    "ChannelGram": [{"sign": "minus"}],
    "CrissCross": [{"recurrence": 1}],
    "BiFormer": [{"attention_only": True}],
    "EMA": [{"factor": 8}],
    "RevColumns": [{"reversible": False}],
}

__all__ = ["PLAIN", "VARIANTS", "Plain"]
