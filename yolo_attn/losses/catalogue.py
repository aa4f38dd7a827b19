"""What there is to choose from: every name of the key ``loss`` with formula, range and paper.

Ranges are those of proper boxes inside of the image, with the default options.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One loss or modifier.

    Attributes:
        name: As the YAML has it.
        formula: In plain characters.
        span: Smallest and largest value, or what a modifier does to them.
        paper: Authors, year, arXiv id.
        options: Keys of its own with their defaults.
    """

    name: str
    formula: str
    span: str
    paper: str
    options: str = ""


BOX = (
    Entry("iou", "1 - S", "0..1", "Yu et al. 2016 (UnitBox), arXiv 1608.01471"),
    Entry("giou", "1 - S + (C-U)/C", "0..2", "Rezatofighi et al. 2019, arXiv 1902.09630"),
    Entry("diou", "1 - S + rho^2/c^2", "0..2", "Zheng et al. 2020, arXiv 1911.08287"),
    Entry(
        "ciou",
        "1 - S + rho^2/c^2 + a v (what Ultralytics trains)",
        "0..2.5",
        "Zheng et al. 2020, arXiv 1911.08287, 2005.03572",
    ),
    Entry(
        "eiou",
        "1 - S + rho^2/c^2 + (wg-w)^2/cw^2 + (hg-h)^2/ch^2",
        "0..4",
        "Zhang et al. 2021, arXiv 2101.08158",
    ),
    Entry(
        "siou", "1 - S + (Delta + Omega)/2", "0..3", "Gevorgyan 2022, arXiv 2205.12740", "theta: 4"
    ),
    Entry("mpdiou", "1 - S + (d1^2 + d2^2)/(H^2 + W^2)", "0..3", "Ma, Xu 2023, arXiv 2307.07662"),
    Entry(
        "shapeiou",
        "1 - S + distance + shape/2, by the target's shape",
        "0..3",
        "Zhang, Zhang 2023, arXiv 2312.17663",
        "scale: 0",
    ),
    Entry("piou", "2 - S - exp(-P^2)", "0..2", "Liu et al. 2024, Neural Networks 170"),
    Entry(
        "piou2",
        "3 x exp(-x^2) piou, x = lambda exp(-P)",
        "0..2.6",
        "Liu et al. 2024, Neural Networks 170",
        "lambda: 1.3",
    ),
    Entry(
        "wiou",
        "exp(rho^2/c^2) (1 - S); the name means wise 3",
        "0..e",
        "Tong et al. 2023, arXiv 2301.10051",
    ),
    Entry(
        "nwd",
        "1 - exp(-W2/C), W2 between Gaussians, in pixels",
        "0..1",
        "Wang et al. 2021, arXiv 2110.13389",
        "nwd_c: 12.8, nwd_units: pixel",
    ),
)
MODIFIER = (
    Entry(
        "inner",
        "S = IoU of the boxes scaled by r",
        "as before",
        "Zhang et al. 2023, arXiv 2311.02877",
        "inner: 0.7",
    ),
    Entry(
        "focaler",
        "S = clamp((IoU-d)/(u-d), 0, 1)",
        "as before",
        "Zhang, Zhang 2024, arXiv 2401.10525",
        "focaler: [0, 0.95]",
    ),
    Entry(
        "alpha",
        "every term to the power p (iou giou diou ciou)",
        "largest^p",
        "He et al. 2021, arXiv 2110.13675",
        "alpha: 3",
    ),
    Entry(
        "focal",
        "times IoU^gamma, no gradient through it",
        "as before",
        "Zhang et al. 2021, arXiv 2101.08158",
        "focal: 0.5",
    ),
    Entry(
        "wise",
        "times a focusing by (1-S)/running mean",
        "no limit",
        "Tong et al. 2023, arXiv 2301.10051",
        "wise: {version: 3, alpha: 1.9, delta: 3, momentum: 9.9e-05}",
    ),
    Entry(
        "nwd",
        "(1-share) L + share nwd",
        "between both",
        "Wang et al. 2021, arXiv 2110.13389",
        "nwd: 0.5",
    ),
)
CLASS = (
    Entry("bce", "BCE (what Ultralytics trains)", "0..", ""),
    Entry(
        "focal",
        "BCE (1-p_t)^gamma (t alpha + (1-t)(1-alpha))",
        "0..",
        "Lin et al. 2017, arXiv 1708.02002",
        "gamma: 1.5, alpha: 0.25",
    ),
    Entry(
        "varifocal",
        "BCE t where t > 0, else BCE alpha p^gamma",
        "0..",
        "Zhang et al. 2020, arXiv 2008.13367",
        "alpha: 0.75, gamma: 2",
    ),
    Entry(
        "quality_focal",
        "BCE |t-p|^beta",
        "0..",
        "Li et al. 2020, arXiv 2006.04388",
        "beta: 2",
    ),
    Entry(
        "slide",
        "BCE times 1 | e^(1-mu) | e^(1-t) by t against mu",
        "0..",
        "Yu et al. 2022, arXiv 2208.02019",
        "mu: 1 (start)",
    ),
    Entry(
        "ema_slide",
        "slide with a running mu",
        "0..",
        "forks of YOLOv8",
        "mu: 1 (start), decay: 0.999, tau: 2000",
    ),
)
GROUPS = {"box": BOX, "modifier": MODIFIER, "cls": CLASS}
