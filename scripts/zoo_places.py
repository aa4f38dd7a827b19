"""The zoo's one table: which families have which blocks, where each stands, and why there."""

from __future__ import annotations

# Every block for these bases ...
FAMILIES = {
    "yolov5": "YOLOv5 (Ultralytics' anchor-free form)",
    "yolov7-tiny": "YOLOv7-tiny",
    "yolov8": "YOLOv8",
    "yolov9t": "YOLOv9-T",
    "yolov9c": "YOLOv9-C",
}
# ... the main ones for these ...
MAIN = (
    "NonLocal", "GlobalContext", "CoordAtt", "CrissCross", "BiFormer", "EMA", "SimAM", "LSK",
    "CBAM", "ContextAggregation",
)  # fmt: skip
MORE_FAMILIES = {"yolov7": "YOLOv7"}
# ... every block, at the places below, where the finest map has a head of its own ...
P2_FAMILIES = {"yolov8-p2": "YOLOv8 with a stride-4 head"}
# ... and in the newest families the ten that add the fewest GFLOPs at scale n, equals in the order
# of their parameters (a slow test measures them again).
NEWEST = {"yolo11": "YOLO11", "yolo26": "YOLO26"}
CHEAPEST = (
    "SimAM", "ECA", "SE", "ChannelGate", "SEv2", "CoordAtt", "SimplifiedNonLocal", "SpatialGate",
    "CBAM", "GlobalContext",
)  # fmt: skip

STAGES = ("P3", "P4", "P5")
NECK = ("N3", "N4", "N5")
COLUMN = (("N3", "N4"), ("N4", "N3", "N5"), ("N5", "N4"))
P2_COLUMN = (("N2", "N3"), ("N3", "N2", "N4"), *COLUMN[1:])
GATE = "so every stage that the neck reads gets one."

# Where each block stands (a tuple of taps is one block with several inputs), and why there.
PLACES: dict[str, tuple[tuple[str | tuple[str, ...], ...], str]] = {
    "AFNB": (
        (("P5", "P4"),),
        "the deepest map reads pooled means of the stage before it, as stage 5 reads stage 4 in "
        "the paper.",
    ),
    "APNB": (
        ("P4",),
        "110 pooled bins stand for the keys, which pays where a map has many more positions than "
        "that.",
    ),
    "BiFormer": (
        ("P4",),
        "a transformer block whose positions read 4 of 49 regions; the coarsest map is too small "
        "to choose among.",
    ),
    "CBAM": (STAGES, f"gates for channels, then for positions, cost little, {GATE}"),
    "ChannelGate": (STAGES, f"one gate a channel, from its mean and its maximum, {GATE}"),
    "ChannelGram": (
        ("P5",),
        "channels read each other; in the last stage they stand most nearly for classes, as the "
        "paper wants them.",
    ),
    "Container": (
        ("P5",),
        "as in the paper, positions are mixed dynamically in the last stage only, where N^2 is "
        "small.",
    ),
    "ContextAggregation": (
        NECK,
        "one block on each level that the head reads, as CATNet's spatial context pyramid.",
    ),
    "CoordAtt": (STAGES, f"gates along rows and along columns cost little, {GATE}"),
    "CrissCross": (
        ("P4",),
        "each position reads its row and its column, which saves the more the larger the map is.",
    ),
    "DANet": (
        ("P5",),
        "position and channel attention side by side; the N^2 branch is cheapest on the coarsest "
        "map.",
    ),
    "DASI": (
        (("P3", "P2", "P4"), ("P4", "P3", "P5")),
        "as in the paper, on the skip connections: what the neck reads at stride 8 and 16, and so "
        "the head from stride 8 on, has chosen, channel by channel, between finer and coarser.",
    ),
    "DoubleAttention": (
        ("P3", "P4"),
        "gathering descriptors and handing them out is linear in N, so at the strides of the "
        "paper's res3 and res4.",
    ),
    "ECA": (STAGES, f"a channel gate of a few weights, {GATE}"),
    "EMA": (
        NECK,
        "one spatial gate for each group of channels, behind every stage of the neck that the head "
        "reads.",
    ),
    "EMAU": (
        ("P5",),
        "rebuilds the last map from 64 bases between backbone and neck, as the paper does in front "
        "of the classifier.",
    ),
    "FPTGround": (
        (("P3", "P4"), ("P4", "P5")),
        "between backbone and neck, each finer level is grounded on the next coarser one.",
    ),
    "FPTRender": (
        (("P5", "P4"), ("P4", "P3")),
        "between backbone and neck, each coarser level is rendered with details of the next finer "
        "one.",
    ),
    "FPTSelf": (
        ("P4", "P5"),
        "each level reads itself; at stride 8 the N^2 products would cost 16 times those at stride "
        "16.",
    ),
    "FcaNet": (STAGES, f"a channel gate that sees DCT coefficients, {GATE}"),
    "GAM": (
        ("P4",),
        "its two 7 x 7 convolutions have 24.5 C^2 parameters, so one stage before the widest.",
    ),
    "GlobalContext": (
        STAGES,
        "one context vector for all positions costs little, so behind c3, c4 and c5 as in the "
        "paper.",
    ),
    "LSK": (
        STAGES,
        "each position chooses between a small and a large receptive field, after every stage that "
        "the neck reads.",
    ),
    "MDCR": (
        ("P5",),
        "four dilations widen the view of the deepest map, the bottom of the paper's U-Net.",
    ),
    "MLCA": (STAGES, f"channel gates per cell of a coarse grid cost little, {GATE}"),
    "NonLocal": (
        ("P5",),
        "every position reads every other; the N^2 products are cheapest on the coarsest map.",
    ),
    "PPA": (
        ("N3",),
        "convolutions beside attention to patches, on the finest level that the head reads: small "
        "targets are there.",
    ),
    "PositionAttention": (
        ("P5",),
        "every position reads every other; the N^2 products are cheapest on the coarsest map.",
    ),
    "RevColAttnFusion": (
        COLUMN,
        "one more column on the neck's levels, which attention weighs at each position.",
    ),
    "RevColFusion": (COLUMN, "one more column on the neck's levels: each reads its neighbours."),
    "SE": (STAGES, f"one gate a channel, from all channel means, {GATE}"),
    "SEv2": (STAGES, f"one gate a channel, from four dense layers side by side, {GATE}"),
    "SK": (
        ("P4", "P5"),
        "channels choose between receptive fields of 3 and 5, where the maps are small enough for "
        "two convolutions.",
    ),
    "SimAM": (STAGES, f"a gate for each value, without parameters, {GATE}"),
    "SimplifiedNonLocal": (
        ("P4", "P5"),
        "one attention map for all positions is linear in N, so in c4 and c5 as in the paper.",
    ),
    "SpatialGate": (STAGES, f"one gate a position, from one convolution, costs little, {GATE}"),
    "UltralyticsCBAM": (NECK, "behind each stage of the neck, where forks of YOLOv8 have it."),
}

# Where the stride-4 map has a head, small objects are on it, so blocks that are linear in N refine
# that map; blocks that are not named here, with their N^2 or the paper's own place, stay where they
# are in the other families.
FINEST = ("P2", "P3")
P2_PLACES: dict[str, tuple[tuple[str | tuple[str, ...], ...], str]] = {
    "AFNB": (
        (("P3", "P2"),),
        "110 pooled means stand for the 25,600 positions of the finest map at 640 pixels.",
    ),
    "APNB": (
        ("P2",),
        "the 25,600 positions of the finest map at 640 pixels read 110 pooled means of it.",
    ),
    "BiFormer": (
        ("P2",),
        "positions of the finest map read 4 of 49 regions instead of 25,600 positions at 640 "
        "pixels.",
    ),
    "CBAM": (FINEST, "gates for channels, then for positions, where small objects are."),
    "ChannelGate": (FINEST, "one gate a channel, from its mean and its maximum, costs little."),
    "ContextAggregation": (
        ("N2", *NECK),
        "one block on each level that the head reads, as CATNet's spatial context pyramid.",
    ),
    "CoordAtt": (FINEST, "gates along rows and along columns, where small objects are."),
    "CrissCross": (
        ("P2",),
        "each position of the finest map reads its row and its column, 319 positions of 25,600 at "
        "640 pixels.",
    ),
    "DASI": (
        (("P2", "P3"), ("P3", "P2", "P4"), ("P4", "P3", "P5")),
        "as in the paper, on the skip connections; the finest one has no finer neighbour.",
    ),
    "DoubleAttention": (
        FINEST,
        "gathering descriptors and handing them out is linear in N: it also goes where small "
        "objects are.",
    ),
    "ECA": (FINEST, "a channel gate of a few weights, where small objects are."),
    "EMA": (
        ("N2", "N3"),
        "one spatial gate for each group of channels, on the two finest levels that the head "
        "reads.",
    ),
    "EMAU": (
        ("P2",),
        "64 bases stand for the 25,600 positions of the finest map at 640 pixels.",
    ),
    "FPTGround": (
        (("P2", "P5"),),
        "the finest level is grounded on the coarsest one, whose positions are few.",
    ),
    "FPTRender": (
        (("P3", "P2"),),
        "the details of the finest level are rendered into the next one.",
    ),
    "FcaNet": (FINEST, "a channel gate that sees DCT coefficients, where small objects are."),
    "GAM": (
        ("P2",),
        "its two 7 x 7 convolutions cost the same at every stage (N C^2), and have the fewest "
        "parameters here.",
    ),
    "GlobalContext": (
        FINEST,
        "one context vector for all positions is linear in N: it also goes where small objects "
        "are.",
    ),
    "LSK": (
        FINEST,
        "small objects need their surroundings: each position chooses its receptive field.",
    ),
    "MLCA": (FINEST, "channel gates per cell of a coarse grid, where small objects are."),
    "NonLocal": (
        ("P2",),
        "160 x 160 positions at 640 pixels read each other, without the 25,600 x 25,600 matrix.",
    ),
    "PPA": (
        ("N2",),
        "convolutions beside attention to patches, on the finest level that the head reads.",
    ),
    "RevColAttnFusion": (
        P2_COLUMN,
        "one more column on the neck's levels, which attention weighs at each position.",
    ),
    "RevColFusion": (P2_COLUMN, "one more column on the neck's levels: each reads its neighbours."),
    "SE": (FINEST, "one gate a channel, from all channel means, where small objects are."),
    "SEv2": (FINEST, "one gate a channel, from four dense layers, where small objects are."),
    "SK": (
        FINEST,
        "channels choose between receptive fields of 3 and 5 where small objects are.",
    ),
    "SimAM": (FINEST, "a gate for each value, without parameters, where small objects are."),
    "SimplifiedNonLocal": (
        FINEST,
        "one attention map for all positions is linear in N: it also goes where small objects are.",
    ),
    "SpatialGate": (FINEST, "one gate a position, where small objects are."),
}

# The level that the coarsest one reads is twice as large; by default an only neighbour is coarser.
OPTIONS = {
    ("RevColFusion", "[N5, N4]"): "[{levels: [2]}]",
    ("RevColAttnFusion", "[N5, N4]"): "[{levels: [2]}]",
}

# Widths of the base's own stages, so that its neck keeps its weights; its last row; options.
REV_COLUMNS = {
    "yolov5": ("[128, 256, 512, 1024]", "SPPF, [1024, 5]", ""),
    "yolov7-tiny": ("[64, 128, 256, 512]", "", ", columns: 2"),
    "yolov8": ("[128, 256, 512, 1024]", "SPPF, [1024, 5]", ""),
    "yolov8-p2": ("[128, 256, 512, 1024]", "SPPF, [1024, 5]", ""),
    "yolov9t": ("[32, 64, 96, 128]", "SPPELAN, [128, 64]", ""),
    "yolov9c": ("[256, 512, 512, 512]", "SPPELAN, [512, 256]", ", columns: 2"),
}
