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
    "EMAttention": FieldName(("EMA",)),
    "GAM_Attention": FieldName(("GAM",), "grouped convolutions, channels shuffled"),
    "GAMAttention": FieldName(("GAM",), "grouped convolutions, channels shuffled"),
    "GlobalContextBlock": FieldName(("GlobalContext",)),
    "LSE": FieldName(("MLCA",)),
    "LSEFast": FieldName(("MLCA",)),
    "LSKblock": FieldName(("LSK",)),
    "LSKblockAttention": FieldName(("LSK",)),
    "NLBlockND": FieldName(("NonLocal",)),
    "SEAttention": FieldName(("SE",), "without biases"),
    "SEBlock": FieldName(("SE",), "without biases"),
    "SeNet": FieldName(("SE",), "without biases"),
    "SimAm": FieldName(("SimAM",)),
    "SKAttention": FieldName(("SK",), "another design: four full convolutions"),
    "SKBlock": FieldName(("SK",), "another design"),
}


def field_name(name: object) -> FieldName | None:
    """What a name of the field means here, case ignored; None where it is unknown."""
    if not isinstance(name, str):
        return None
    return FIELD_NAMES.get(name) or _BY_LOWER.get(name.lower())


_BY_LOWER = {name.lower(): found for name, found in FIELD_NAMES.items()}
