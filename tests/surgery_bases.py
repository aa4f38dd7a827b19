"""Parameters of bases with other levels, at nc 80: what the rule of levels has to give.

Columns: with a P2 level added, P2 without what is coarser than P4, P3 and P4, P4 and P5.
"""

from __future__ import annotations

COUNTS = {
    "yolov5n": (2838000, 1956384, 1773200, 2819856),
    "yolov6n": (4681488, 3782080, 3600672, 4352928),
    "yolov8n": (3354144, 2275920, 2078976, 3322240),
    "yolov9t": (2368240, 1774624, 1535104, 2025728),
    "yolov9s": (7342224, 5621696, 5393360, 7535056),
    "yolov9m": (19177232, 14796192, 14917840, 21475128),
    "yolov9c": (24196752, 19336448, 19687664, 30961904),
    "yolov9e": (57008144, 42407040, 42562544, 63577584),
    "yolov10n": (2978720, 2225824, 2022624, 2674464),
    "yolov10s": (8348976, 6396848, 6097904, 8247280),
    "yolov10m": (17060768, 14090944, 13422816, 17714656),
    "yolov10x": (33070496, 28409536, 26531232, 35470112),
    "yolo11n": (2740032, 1987328, 1871376, 2573552),
    "yolo12n": (2715856, 1963152, 1849584, 2551760),
    "yolo26n": (2662400, 1898232, 1808112, 2742960),
    "yolov7-tiny": (7750192, 4946272, 5025872, 9441104),
    "yolov7": (41127152, 28663648, 29493456, 50139856),
    "yolov7x": (78316632, 49832904, 50633720, 92098168),
}
# The first column is P2 to P6.
COUNTS_P6 = {
    "yolov5n-p6": (4518080, 2737696, 2554512, 3373456),
    "yolo26n-p6": (4153992, 2698360, 2608240, 3244976),
    "yolov7-w6": (75975904, 54554048, 55363504, 70424496),
}
FAST = {"yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n"}


def levels_of(name: str) -> list[list[str]]:
    """The levels of each column."""
    top = 6 if name in COUNTS_P6 else 5
    return [[f"P{k}" for k in range(a, b + 1)] for a, b in ((2, top), (2, 4), (3, 4), (4, 5))]
