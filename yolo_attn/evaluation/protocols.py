"""The protocols by name, and one call that scores the same arrays under several of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy.typing as npt

from yolo_attn.errors import YoloAttnError, did_you_mean
from yolo_attn.evaluation import coco, visdrone
from yolo_attn.evaluation.boxes import Detections, GroundTruth
from yolo_attn.evaluation.coco import COCO, COCO_500, TINY, CocoRules
from yolo_attn.evaluation.records import MatchRecords

# None: the VisDrone toolkit, which has nothing to set.
PROTOCOLS: dict[str, CocoRules | None] = {
    "coco": COCO,
    "coco-500": COCO_500,
    "tiny": TINY,
    "visdrone": None,
}


def pick(names: Iterable[str]) -> dict[str, CocoRules | None]:
    """The protocols of these names.

    Raises:
        YoloAttnError: a name is unknown.
    """
    chosen = {}
    for name in names:
        if name.lower() not in PROTOCOLS:
            hint = did_you_mean(name, PROTOCOLS) or f" (accepted: {', '.join(PROTOCOLS)})"
            raise YoloAttnError(f"unknown protocol {name!r}{hint}")
        chosen[name.lower()] = PROTOCOLS[name.lower()]
    return chosen


def evaluate(
    gt: GroundTruth, dets: Detections, protocols: Mapping[str, CocoRules | None] = PROTOCOLS
) -> dict[str, dict[str, Any]]:
    """Score under each protocol; see `coco.evaluate` and `visdrone.evaluate` for the results."""
    return {
        name: visdrone.evaluate(gt, dets) if rules is None else coco.evaluate(gt, dets, rules)
        for name, rules in protocols.items()
    }


def match_records(
    gt: GroundTruth, dets: Detections, protocols: Mapping[str, CocoRules | None] = PROTOCOLS
) -> dict[str, MatchRecords]:
    """Match records of each protocol, for `records.save_records` and a bootstrap over images."""
    return {
        name: visdrone.match_records(gt, dets)
        if rules is None
        else coco.match_records(gt, dets, rules)
        for name, rules in protocols.items()
    }


def metrics_of(
    records: MatchRecords, weights: npt.ArrayLike | None = None
) -> dict[str, float | None]:
    """The headline metrics from match records, image i counted `weights[i]` times (default 1)."""
    if records.is_visdrone:
        return visdrone.metrics_of(records, weights)
    return {**coco.metrics_of(records, weights)}
