"""The field's names for attention rows, and which of our blocks each may mean.

A table and nothing else: the error of an unknown row, `yolo-attn blocks NAME` and `yolo-attn
migrate` read it. A name here is never accepted in a row: where forks use one name for a class of
another design, or with other arguments, silence would train another model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FieldName:
    """What a name of the field means here.

    Attributes:
        blocks: Our blocks that it may mean, the likeliest first; empty: none here yet.
        note: What a user has to know before he takes one of them, in half a sentence.
    """

    blocks: tuple[str, ...]
    note: str = ""


FIELD_NAMES: dict[str, FieldName] = {
    "BiFormerBlock": FieldName(("BiFormer",)),
    "BiFormerBlocks": FieldName(("BiFormer",)),
    "BiLevelRoutingAttention": FieldName(("BiFormer",), "attention alone, without its MLP"),
    "BiLevelRoutingAttention_nchw": FieldName(("BiFormer",), "attention alone, without its MLP"),
    "BRABlock": FieldName(("BiFormer",)),
    "CA": FieldName(
        ("CoordAtt", "ContextAggregation"),
        "forks mean coordinate attention, the context papers context aggregation",
    ),
    "CABlock": FieldName(("CoordAtt",)),
    "CAM": FieldName(
        ("ChannelGram",),
        "forks mean context augmentation, which is not here; DANet's channel attention is "
        "ChannelGram",
    ),
    "CBAM_Authentic": FieldName(("CBAM",)),
    "CBAMBlock": FieldName(("CBAM",)),
    "CoordAttention": FieldName(("CoordAtt",)),
    "CrissCrossAttention": FieldName(("CrissCross",), "one pass, not two"),
    "ECAAttention": FieldName(("ECA",)),
    "eca_layer": FieldName(("ECA",)),
    "EMAttention": FieldName(("EMA",)),
    "GAM_Attention": FieldName(("GAM",), "grouped convolutions, channels shuffled"),
    "GAMAttention": FieldName(("GAM",), "grouped convolutions, channels shuffled"),
    "GlobalContextBlock": FieldName(("GlobalContext",)),
    "LSE": FieldName(("MLCA",), "near it, not equal"),
    "LSEFast": FieldName(("MLCA",), "near it, not equal"),
    "LSKblock": FieldName(("LSK",)),
    "LSKblockAttention": FieldName(("LSK",)),
    "NLBlockND": FieldName(("NonLocal",)),
    "SEAttention": FieldName(("SE",), "without biases"),
    "SELayer": FieldName(("SE",), "without biases"),
    "SEBlock": FieldName(("SE",), "without biases"),
    "SeNet": FieldName(("SE",), "without biases"),
    "SimAm": FieldName(("SimAM",)),
    "SPD": FieldName(("SPDConv",), "some forks mean the rearrangement alone"),
    "space_to_depth": FieldName(("SPDConv", "ReOrg"), "the rearrangement alone is ReOrg"),
    "AKConv": FieldName(("LDConv",), "its samples of the border: `{border: reference}`"),
    "C2f_Faster": FieldName(("C2fFaster",), "with a drop path of 0.1 in training"),
    "Faster_Block": FieldName(("FasterNetBlock",), "with SiLU, and a drop path of 0.1"),
    "Partial_conv3": FieldName(("PConv",)),
    "C2f_DWR": FieldName(("C2fDWR",)),
    "SPPF_LSKA": FieldName(("SPPFLSKA",)),
    "BasicRFB": FieldName(("RFB",)),
    "BasicRFB_a": FieldName(("RFB",), "`{variant: small}`"),
    "VoVGSCSPC": FieldName(("VoVGSCSP",), "with depthwise shortcuts"),
    "VoVGSCSPns": FieldName(("VoVGSCSP",), "`{shuffle: conv}`"),
    "GSConvns": FieldName(("GSConv",), "`{shuffle: conv}`"),
    "ScConv2d": FieldName(("ScConv",)),
    "ODConv2d": FieldName(("ODConv",), "one kernel, norm and activation behind it"),
    "SKAttention": FieldName(("SK",), "another design: four full convolutions"),
    "SKBlock": FieldName(("SK",), "another design"),
}

# Modules of forks without a block here, or whose rows are not translated: refused by name.
_NOT_HERE = "no block of this project computes it yet"
_UNTRANSLATED = "what forks' arguments of it mean is not translated yet"
_ANOTHER = "several unrelated classes have this name"
LATER_NAMES: dict[str, str] = {
    **dict.fromkeys(
        (
            *("TripletAttention", "ShuffleAttention", "SA", "BAM", "BAMBlock", "MHSA", "CoT"),
            *("CoT3", "CoTAttention", "CPCA", "CAA", "ELA", "LSKA", "MSCA", "DAttention"),
            *("ESE", "EffectiveSELayer", "GatherExcite", "SEAM", "MultiSEAM", "SOCA", "ACmix"),
            *("MultiDilatelocalAttention", "TransNeXt_AggregatedAttention", "FocalModulation"),
            *("ParNetAttention", "SpatialGroupEnhance", "NAMAttention", "ChannelTransformer"),
            *("EfficientAttention", "PSCoordAtt", "AxialImageTransformer", "PSA_s", "S2Attention"),
            *("LCA", "GLSA", "MultiScaleGatedAttn", "EVCBlock", "AFGCAttention", "SHSA"),
            *("SequentialPolarizedSelfAttention", "AttentiveLayer", "ResBlock_CBAM"),
            *("ChannelAttention_HSFPN", "ELA_HSFPN", "CA_HSFPN", "CAA_HSFPN"),
            *("CrossAttention", "CrossAttentionBlock", "MultiHeadSelfAttention"),
            *("BiFPN", "BiFPN_Concat2", "BiFPN_Concat3", "ASFF_Detect", "CReToNeXt"),
            *("C3C2", "C3HB", "C3STR", "CNeB", "ConvBNReLUMaxpool", "SPPCSP", "BottleneckCSP2"),
        ),
        _NOT_HERE,
    ),
    **dict.fromkeys(
        (
            *("SPDConv", "SPD", "space_to_depth", "PConv", "Partial_conv3", "RFAConv"),
            *("RFCBAMConv", "RFCAConv", "GSConv", "GSConvns", "GSBottleneck", "VoVGSCSP"),
            *("VoVGSCSPC", "VoVGSCSPns", "ODConv", "ODConv2d", "DCNv2", "LDConv", "AKConv"),
            *("ScConv", "ScConv2d", "HWD", "WTConv", "CARAFE", "DySample", "EUCB"),
            *("C2f_Faster", "Faster_Block", "DWR", "C2f_DWR", "BasicRFB", "BasicRFB_a", "RFB"),
            *("ASPP", "SPPF_LSKA", "SPPFCSPC"),
        ),
        _UNTRANSLATED,
    ),
    **dict.fromkeys(
        (
            *("Attention", "Attention1", "Attention2", "Attention3", "SelfAttention"),
            *("ChannelAttention", "SpatialAttention"),
        ),
        _ANOTHER,
    ),
}


def field_name(name: object) -> FieldName | None:
    """What a name of the field means here, case ignored; None where it is unknown."""
    if not isinstance(name, str):
        return None
    return FIELD_NAMES.get(name) or _BY_LOWER.get(name.lower())


_BY_LOWER = {name.lower(): found for name, found in FIELD_NAMES.items()}
