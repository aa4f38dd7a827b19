"""What a fork may mean by a module's name: its designs, each as one of our blocks with options.

One name has up to four designs in published models, and the YAML does not tell which. The first of
a family is what its name means in most forks; the others are chosen with ``--design NAME=DESIGN``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.migrate.arguments import (
    EVEN_REDUCTION,
    FACTOR,
    GROUPED,
    HEADS,
    KERNEL_SIZE,
    LAMBDA,
    LOCAL_SIZE,
    REDUCTION,
    WINDOWS,
    Argument,
)


@dataclass(frozen=True)
class Design:
    """One design of a module.

    Attributes:
        name: What ``--design`` calls it.
        block: Our block that computes it.
        what: What tells it from the family's others, in half a sentence.
        options: Options of ours that it always has.
        defaults: What the fork's class takes for an argument that the row leaves out.
        floor: Smallest hidden width that its division by the reduction gives; None: it has none.
        takes: Its arguments after the widths, in order; each may be left out.
    """

    name: str
    block: str
    what: str
    options: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    floor: int | None = None
    takes: tuple[Argument, ...] = ()


@dataclass(frozen=True)
class Family:
    """Names of forks that mean one module.

    Attributes:
        names: Module names in forks' YAMLs.
        designs: What they may mean, the usual one first.
        sure: Whether the first is taken where ``--design`` says nothing. False: the usual class of
            that name is another design than any block here.
        why_not: What that class is, where it is not `sure`.
    """

    names: tuple[str, ...]
    designs: tuple[Design, ...]
    sure: bool = True
    why_not: str = ""


_CBAM = (EVEN_REDUCTION, KERNEL_SIZE)
_GAM_COPY = {"groups": 4, "shuffle": 4, "channel_gate": "none"}

_COORD_ATT = (
    Design(
        "paper",
        "CoordAtt",
        "C/32 at least 8, hard-swish, biases (that of the first convolution is its norm's)",
        defaults={"reduction": 32},
        floor=8,
        takes=(REDUCTION,),
    ),
    Design(
        "nobias",
        "CoordAtt",
        "the same without biases",
        options={"bias": False},
        defaults={"reduction": 32},
        floor=8,
        takes=(REDUCTION,),
    ),
    Design(
        "silu",
        "CoordAtt",
        "SiLU for hard-swish, biases",
        options={"act": "silu"},
        defaults={"reduction": 32},
        floor=8,
        takes=(REDUCTION,),
    ),
    Design(
        "relu",
        "CoordAtt",
        "ReLU for hard-swish, no biases, C/16",
        options={"act": "relu", "bias": False},
        defaults={"reduction": 16},
        floor=8,
        takes=(REDUCTION,),
    ),
)

FAMILIES: tuple[Family, ...] = (
    Family(
        ("CBAM", "CBAMBlock", "CBAM_Authentic"),
        (
            Design(
                "paper",
                "CBAM",
                "bottleneck C/16 on mean and maximum, with biases",
                defaults={"reduction": 16},
                floor=1,
                takes=_CBAM,
            ),
            Design(
                "nobias",
                "CBAM",
                "the same without any bias",
                options={"bias": False},
                defaults={"reduction": 16},
                floor=1,
                takes=_CBAM,
            ),
            Design(
                "norm",
                "CBAM",
                "no biases, a batch norm behind the spatial convolution, C/16 at least 8",
                options={"norm": "bn", "bias": False},
                defaults={"reduction": 16},
                floor=8,
                takes=_CBAM,
            ),
            Design(
                "authors",
                "CBAM",
                "biases in the bottleneck, a batch norm behind the spatial convolution",
                options={"norm": "bn"},
                defaults={"reduction": 16},
                floor=1,
                takes=_CBAM,
            ),
            Design(
                "ultralytics",
                "UltralyticsCBAM",
                "Ultralytics' own class: one C x C convolution on the mean",
                takes=(KERNEL_SIZE,),
            ),
        ),
    ),
    Family(
        ("SE", "SEAttention", "SEBlock", "SeNet", "SELayer"),
        (
            Design(
                "nobias",
                "SE",
                "two layers without biases, C/16",
                options={"bias": False},
                defaults={"reduction": 16},
                floor=1,
                takes=(REDUCTION,),
            ),
            Design(
                "bias",
                "SE",
                "two layers with biases, C/16",
                defaults={"reduction": 16},
                floor=1,
                takes=(REDUCTION,),
            ),
        ),
    ),
    Family(
        ("ECA", "ECAAttention", "eca_layer"),
        (
            Design(
                "fixed",
                "ECA",
                "3 taps unless the row says more",
                defaults={"kernel_size": 3},
                takes=(KERNEL_SIZE,),
            ),
            Design("adaptive", "ECA", "as many taps as the width asks for", takes=(KERNEL_SIZE,)),
        ),
    ),
    Family(
        ("CoordAtt", "CABlock", "CoordAttention", "CoordinateAttention"),
        _COORD_ATT,
    ),
    Family(
        ("EMA", "EMAttention"),
        (
            Design(
                "row",
                "EMA",
                "as many groups as the row says, else 8",
                defaults={"factor": 8},
                takes=(FACTOR,),
            ),
            Design(
                "32",
                "EMA",
                "32 groups whatever the row says (the class ignores it)",
                options={"factor": 32},
                takes=(FACTOR,),
            ),
        ),
    ),
    Family(
        ("SimAM", "SimAm"),
        (
            Design(
                "code", "SimAM", "variance over N - 1", options={"correction": 1}, takes=(LAMBDA,)
            ),
            Design("paper", "SimAM", "variance over N", takes=(LAMBDA,)),
        ),
    ),
    Family(
        ("GAM",),
        (
            Design(
                "paper",
                "GAM",
                "sigmoid on the channel map, zero padding",
                defaults={"reduction": 4},
                floor=1,
                takes=(REDUCTION,),
            ),
            Design(
                "replicate",
                "GAM",
                "no sigmoid on the channel map, replicate padding",
                options={"channel_gate": "none", "padding": "replicate"},
                defaults={"reduction": 4},
                floor=1,
                takes=(REDUCTION,),
            ),
        ),
    ),
    Family(
        ("GAM_Attention", "GAMAttention"),
        (
            Design(
                "grouped",
                "GAM",
                "7 x 7 convolutions in 4 groups, channels shuffled, no sigmoid on the channel map",
                options=_GAM_COPY,
                defaults={"reduction": 4, "grouped": True},
                floor=1,
                takes=(GROUPED, REDUCTION),
            ),
            Design(
                "full",
                "GAM",
                "the same with full convolutions",
                options={**_GAM_COPY, "groups": 1},
                defaults={"reduction": 4},
                floor=1,
                takes=(REDUCTION,),
            ),
        ),
    ),
    Family(
        ("GlobalContext", "GlobalContextBlock"),
        (
            Design(
                "timm",
                "GlobalContext",
                "multiplied, C/8 (timm's block)",
                options={"fusion": "mul"},
                defaults={"reduction": 8},
                floor=1,
            ),
            Design("paper", "GlobalContext", "added, C/16", defaults={"reduction": 16}, floor=1),
        ),
    ),
    Family(
        ("CA",),
        (
            Design(
                "coordatt",
                "CoordAtt",
                "coordinate attention, C/32 at least 8",
                defaults={"reduction": 32},
                floor=8,
                takes=(REDUCTION,),
            ),
            *_COORD_ATT[1:],
            Design("context", "ContextAggregation", "context aggregation (CATNet)"),
        ),
    ),
    Family(("MLCA",), (Design("paper", "MLCA", "the paper's", takes=(LOCAL_SIZE,)),)),
    Family(("LSKblock", "LSKblockAttention", "LSK"), (Design("paper", "LSK", "the paper's unit"),)),
    Family(
        ("CrissCrossAttention",),
        (
            Design(
                "one-pass",
                "CrissCross",
                "one pass",
                options={"recurrence": 1},
                defaults={"reduction": 8},
                floor=1,
            ),
            Design("paper", "CrissCross", "two passes", defaults={"reduction": 8}, floor=1),
        ),
    ),
    Family(("NLBlockND",), (Design("paper", "NonLocal", "embedded Gaussian, batch norm"),)),
    Family(
        ("BiLevelRoutingAttention",),
        (
            Design(
                "paper",
                "BiFormer",
                "the attention alone",
                options={
                    "attention_only": True,
                    "side_dwconv": 3,
                    "border": "bias",
                },
                defaults={"num_heads": 8},
                takes=(HEADS, WINDOWS),
            ),
        ),
    ),
    Family(
        ("BiLevelRoutingAttention_nchw",),
        (
            Design(
                "paper",
                "BiFormer",
                "the attention alone",
                options={"attention_only": True, "side_dwconv": 3, "border": "zero"},
                defaults={"num_heads": 8},
                takes=(HEADS, WINDOWS),
            ),
        ),
    ),
    Family(
        ("ContextAggregation",),
        (Design("paper", "ContextAggregation", "the paper's"),),
    ),
    Family(
        ("SKAttention", "SKBlock"),
        (Design("paper", "SK", "the paper's two branches"),),
        sure=False,
        why_not="forks' class has four full convolutions (1, 3, 5, 7) and no norm in the selection",
    ),
    Family(
        ("LSE", "LSEFast"),
        (Design("mlca", "MLCA", "mixed local channel attention"),),
        sure=False,
        why_not="the class of that name is not equal to MLCA, its nearest here",
    ),
    Family(
        ("DoubleAttention",),
        (Design("paper", "DoubleAttention", "softmax over positions"),),
        sure=False,
        why_not="forks' class takes its softmax over the images of a batch (it names no axis)",
    ),
    Family(
        ("DASI",),
        (Design("paper", "DASI", "the paper's: reads [x, low, high], no SiLU"),),
        sure=False,
        why_not="forks' class reads [low, x, high] and has SiLU",
    ),
    Family(
        ("CAM",),
        (Design("channelgram", "ChannelGram", "DANet's channel attention"),),
        sure=False,
        why_not="forks mean context augmentation, which is not here",
    ),
    Family(
        ("BiFormerBlock", "BiFormerBlocks", "BRABlock"),
        (Design("paper", "BiFormer", "the paper's whole block"),),
        sure=False,
        why_not="what forks put into a block of that name differs from one to the next",
    ),
)


def family_of(name: object) -> Family | None:
    """The family of a module name, case ignored; None where there is none."""
    if not isinstance(name, str):
        return None
    return _BY_NAME.get(name) or _BY_LOWER.get(name.lower())


def all_names() -> list[str]:
    """Every module name that has a family."""
    return list(_BY_NAME)


_BY_NAME = {name: family for family in FAMILIES for name in family.names}
_BY_LOWER = {name.lower(): family for name, family in _BY_NAME.items()}


def check_designs(designs: Mapping[str, str]) -> None:
    """Refuse choices that no family has.

    Raises:
        YoloAttnError: An unknown name or design; names the accepted ones.
    """
    for name, wanted in designs.items():
        family = family_of(name)
        if family is None:
            raise YoloAttnError(
                f"--design {name}={wanted}: no designs are known for {name!r}"
                f"{did_you_mean(name, _BY_NAME) or ','} (`yolo-attn migrate --designs` lists them)"
            )
        known = [d.name for d in family.designs]
        if wanted not in known:
            raise YoloAttnError(
                f"--design {name}={wanted}: no such design{did_you_mean(wanted, known)} "
                f"(accepted: {', '.join(known)})"
            )
