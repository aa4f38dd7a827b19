"""The table of designs: what each module name of forks may mean, the usual meaning first."""

from __future__ import annotations

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
)
from yolo_attn.migrate.design import Design, Family

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
