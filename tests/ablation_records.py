"""Match records with a known true difference, drawn without any model."""

from __future__ import annotations

from functools import cache

import numpy as np

from yolo_attn.evaluation.records import FALSE, TRUE, MatchRecords, sort_records

OBJECTS = 6  # in each image


class World:
    """Images of a data set: each has a difficulty that every model meets."""

    def __init__(self, rng: np.random.Generator, images: int):
        self.rng = rng
        self.hard = rng.normal(0, 0.6, images)
        # Objects that are hard for everybody make trials correlated, as in a real validation set.
        self.luck = rng.normal(0, 1, (images, OBJECTS))

    def trial(self, skill: float) -> MatchRecords:
        """Records of a model: it finds an object when skill beats difficulty, luck and noise."""
        n = len(self.hard)
        noise = self.rng.normal(0, 0.7, (n, OBJECTS))
        found = skill - self.hard[:, None] + self.luck + noise > 0
        image = np.repeat(np.arange(n), OBJECTS)[found.ravel()]
        false = np.repeat(np.arange(n), self.rng.poisson(4, n))
        score = np.r_[self.rng.beta(4, 2, len(image)), self.rng.beta(2, 3, len(false))]
        outcome = np.r_[np.full(len(image), TRUE), np.full(len(false), FALSE)].astype(np.uint8)
        every = np.r_[image, false]
        columns = sort_records(every, np.zeros(len(every), int), score, outcome[None, None], n)
        return MatchRecords(
            protocol="COCO",
            names=tuple(map(str, range(n))),
            classes={0: "object"},
            thresholds=np.array([0.5]),
            views=("all",),
            max_dets=(100,),
            positives=np.full((1, n, 1), OBJECTS),
            **columns,
        )


@cache
def true_ap(skill: float, seed_sd: float) -> float:
    """AP50 in percent over endless images, averaged over trainings (Gauss-Hermite)."""
    from yolo_attn.ablation.resampling import metric_draws

    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    total = 0.0
    for node, weight in zip(nodes, weights / weights.sum()):
        records = World(np.random.default_rng(1), 20_000).trial(skill + seed_sd * node)
        total += weight * metric_draws(records, np.ones((1, 20_000)), ["AP50"])["AP50"][0]
    return total


def study(
    rng: np.random.Generator, skills: dict[str, float], seeds: int, seed_sd: float, images: int
) -> dict[str, dict[int, MatchRecords]]:
    """Arm -> seed -> records, all on the same new images."""
    world = World(rng, images)
    return {
        arm: {s: world.trial(skill + rng.normal(0, seed_sd)) for s in range(seeds)}
        for arm, skill in skills.items()
    }
