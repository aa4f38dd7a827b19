"""Is an arm better than the baseline? Paired bootstrap over images, spread over seeds, and both.

Koehn, "Statistical Significance Tests" (EMNLP 2004); Scheffe, "Practical Solutions of the
Behrens-Fisher Problem" (JASA 1970); Holm (Scandinavian Journal of Statistics 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from yolo_attn.ablation.resampling import metric_draws, multinomial_weights
from yolo_attn.errors import YoloAttnError
from yolo_attn.evaluation.boxes import Floats
from yolo_attn.evaluation.records import MatchRecords

ALPHA = 0.05  # two-sided; intervals are 95 %
POWER = 0.8  # of the smallest detectable difference
BETTER, WORSE = "better", "worse"
NO_DIFFERENCE, TOO_FEW_SEEDS = "no significant difference", "too few seeds to tell"
NO_OBJECTS = "no objects of this size"
VERDICTS = (BETTER, WORSE, NO_DIFFERENCE, TOO_FEW_SEEDS)
# The interval with seeds may be this much wider than that over images before seeds are the limit.
SEEDS_ARE_THE_LIMIT = 2.0

Interval = tuple[float, float]
Records = Mapping[str, Mapping[int, MatchRecords]]  # arm -> seed -> records of one protocol


@dataclass(frozen=True)
class Comparison:
    """An arm minus the baseline in one metric, in percent points.

    Attributes:
        metric: name of the metric.
        arm: the arm.
        seeds: seeds that both arms have.
        baseline_mean: mean of the baseline over these seeds.
        arm_mean: mean of the arm over these seeds.
        difference: mean of the differences by seed.
        images: 95 % interval over images, these very trainings given.
        over_seeds: 95 % interval over trainings, these very images given; None for one seed.
        interval: 95 % interval over both; None for one seed.
        p_better: probability that the arm is better, from the same distribution as `interval`
            (for one seed: as `images`).
        p: two-sided p-value; None for one seed.
        p_holm: p corrected for the number of arms; None for one seed.
        verdict: one of `VERDICTS`, or `NO_OBJECTS`.
        detectable: smallest true difference that this many seeds and images would find in 80 % of
            studies; None for one seed.
    """

    metric: str
    arm: str
    seeds: tuple[int, ...]
    baseline_mean: float | None
    arm_mean: float | None
    difference: float | None
    images: Interval | None
    over_seeds: Interval | None
    interval: Interval | None
    p_better: float | None
    p: float | None
    p_holm: float | None
    verdict: str
    detectable: float | None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def compare_arms(
    records: Records,
    baseline: str,
    metrics: Sequence[str] | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> list[Comparison]:
    """Compare every arm with the baseline on the same images.

    Args:
        records: match records of one protocol, all of the same images in the same order.
        baseline: the arm that the others are compared with.
        metrics: of `resampling.metric_names`; by default all.
        draws: bootstrap draws over images, the same for all trials.
        seed: of the draws.

    Returns:
        One comparison for each metric and other arm; Holm's correction is over the arms.

    Raises:
        YoloAttnError: trials of different images or ground truth, or an unknown metric.
    """
    if not records.get(baseline):
        raise YoloAttnError(f"baseline {baseline!r} has no finished trial")
    _check_same_images(records)
    first = next(iter(records[baseline].values()))
    weights = multinomial_weights(len(first.names), draws, seed)
    # The last row is the evaluation itself.
    weights = np.concatenate([weights, np.ones((1, len(first.names)))])
    drawn = {
        arm: {s: metric_draws(r, weights, metrics) for s, r in trials.items()}
        for arm, trials in records.items()
    }
    out = []
    names = list(next(iter(drawn[baseline].values())))
    for metric in names:
        rows = []
        for arm in records:
            seeds = tuple(s for s in records[arm] if s in records[baseline])
            if arm == baseline or not seeds:
                continue
            pair = [np.stack([drawn[a][s][metric] for s in seeds]) for a in (baseline, arm)]
            rows.append(compare_draws(metric, arm, seeds, *pair))
        out.extend(with_holm(rows))
    return out


def compare_draws(
    metric: str, arm: str, seeds: Sequence[int], baseline: Floats, other: Floats
) -> Comparison:
    """One comparison from draws of a metric; Holm's correction is for `with_holm` to do.

    Var(mean difference) = A + (B + C) / S for S seeds, with A from the images, B from the seeds, C
    from both together. The spread of the S differences estimates B + C; the covariance between
    seeds of the drawn differences estimates A. The interval adds the drawn deviations (scaled to
    A) and Student's t with S - 1 degrees of freedom: with few seeds, resampling the seeds would
    miss most of their spread.

    Args:
        metric: its name.
        arm: its name.
        seeds: S of them.
        baseline: (S, draws + 1) percent; the last column is the evaluation itself.
        other: likewise, paired by seed and draw.
    """
    both = np.stack([baseline, other])
    observed, drawn = both[..., -1], both[..., :-1]
    nothing: dict[str, Any] = dict.fromkeys(
        ("images", "over_seeds", "interval", "p_better", "p", "p_holm")
    )
    if not np.isfinite(observed).all():
        return Comparison(
            metric, arm, tuple(seeds), None, None, None, **nothing,
            verdict=NO_OBJECTS, detectable=None,
        )  # fmt: skip
    drawn = drawn[..., np.isfinite(drawn).all((0, 1))]  # draws that hold such objects
    by_seed = observed[1] - observed[0]
    drawn = drawn[1] - drawn[0]  # (S, draws)
    mean = float(by_seed.mean())
    shared = drawn.mean(0) - drawn.mean()
    images = tuple(float(v) for v in mean + np.quantile(shared, (ALPHA / 2, 1 - ALPHA / 2)))
    found = Comparison(
        metric, arm, tuple(seeds), float(observed[0].mean()), float(observed[1].mean()), mean,
        **{**nothing, "images": images, "p_better": 1 - _share_below(mean + shared)},
        verdict=TOO_FEW_SEEDS, detectable=None,
    )  # fmt: skip
    if len(seeds) < 2:
        return found
    nested = _Nested(mean, shared * _image_share(drawn), by_seed)
    interval = (nested.quantile(ALPHA / 2), nested.quantile(1 - ALPHA / 2))
    below = nested.cdf(0.0)
    return replace(
        found,
        over_seeds=_student(by_seed),
        interval=interval,
        p_better=1 - below,
        p=min(1.0, 2 * min(below, 1 - below)),
        detectable=(interval[1] - interval[0]) / 2 + _normal_quantile(POWER) * nested.error,
    )


def with_holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one metric with corrected p-values and verdicts."""
    corrected = holm([c.p for c in comparisons])
    return [
        replace(c, p_holm=p, verdict=c.verdict if c.difference is None else verdict_of(c, p))
        for c, p in zip(comparisons, corrected)
    ]


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction; None stays None and does not count."""
    order = sorted((value, i) for i, value in enumerate(p) if value is not None)
    out: list[float | None] = [None] * len(p)
    highest = 0.0
    for place, (value, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * value))
        out[i] = highest
    return out


def verdict_of(c: Comparison, p_holm: float | None) -> str:
    """The verdict in words.

    "too few seeds to tell": not significant, and seeds are why. There is only one; or the very
    models at hand do differ on these images; or the spread over seeds makes the interval more
    than twice as wide as images alone do.
    """
    if c.difference is None or c.interval is None or c.images is None or p_holm is None:
        return TOO_FEW_SEEDS
    if p_holm < ALPHA and not c.interval[0] <= 0 <= c.interval[1]:
        return BETTER if c.difference > 0 else WORSE
    width, by_images = c.interval[1] - c.interval[0], c.images[1] - c.images[0]
    if not c.images[0] <= 0 <= c.images[1] or width > SEEDS_ARE_THE_LIMIT * by_images:
        return TOO_FEW_SEEDS
    return NO_DIFFERENCE


class _Nested:
    """Distribution of the mean difference: deviations over images plus scaled Student's t."""

    def __init__(self, mean: float, deviations: Floats, by_seed: Floats):
        self.centres = mean + deviations
        self.degrees = len(by_seed) - 1
        self.scale = float(by_seed.std(ddof=1)) / np.sqrt(len(by_seed))
        self.error = float(np.hypot(deviations.std(), self.scale))
        self.mean = mean

    def cdf(self, x: float) -> float:
        """P(mean difference < x)."""
        from scipy.special import stdtr

        if not self.scale:
            return _share_below(self.centres, x)
        return float(stdtr(self.degrees, (x - self.centres) / self.scale).mean())

    def quantile(self, q: float) -> float:
        """The value that a share `q` lies below."""
        from scipy.optimize import brentq
        from scipy.special import stdtrit

        if not self.scale:
            return float(np.quantile(self.centres, q))
        reach = self.scale * float(stdtrit(self.degrees, q))
        low, high = self.centres.min() + reach, self.centres.max() + reach
        if high - low <= 1e-12 * max(1.0, abs(high)):
            return float(low)
        return float(brentq(lambda x: self.cdf(x) - q, low - 1e-9, high + 1e-9, xtol=1e-9))


def _image_share(drawn: Floats) -> float:
    """Scale of the deviations of the mean over seeds that leaves what all seeds have in common."""
    covariance = np.atleast_2d(np.cov(drawn))
    total = covariance.mean()
    s = len(covariance)
    common = (covariance.sum() - np.trace(covariance)) / (s * (s - 1))
    return float(np.sqrt(np.clip(common / total, 0, 1))) if total > 0 else 0.0


def _student(by_seed: Floats) -> Interval:
    from scipy.special import stdtrit

    n = len(by_seed)
    half = float(stdtrit(n - 1, 1 - ALPHA / 2) * by_seed.std(ddof=1) / np.sqrt(n))
    return float(by_seed.mean() - half), float(by_seed.mean() + half)


def _share_below(values: Floats, x: float = 0.0) -> float:
    """Share of the values below x; ties count half."""
    return float((values < x).mean() + (values == x).mean() / 2)


def _normal_quantile(q: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(q))


def _check_same_images(records: Records) -> None:
    first: tuple[str, MatchRecords] | None = None
    for arm, trials in records.items():
        for seed, r in trials.items():
            name = f"{arm}, seed {seed}"
            if first is None:
                first = (name, r)
            same = r.names == first[1].names and r.protocol == first[1].protocol
            if not same or not np.array_equal(r.positives, first[1].positives):
                raise YoloAttnError(
                    f"{name} and {first[0]} were evaluated on different images or ground truth, so "
                    "they cannot be compared; run the older one again (--only with --force)"
                )
