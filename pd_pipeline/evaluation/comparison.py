"""Many methods compared with one, on one family or over several, as Agarwal et al. (NeurIPS 2021) ask for.

Returns are put on a scale first, for each target by itself: 0 is the mean of the floor and 1 that of the ceiling, both
over all seeds. Then, as everywhere, several seeds give Student's interval of one value per seed, and one seed a
bootstrap of its runs within tasks. For each method:

    IQM          interquartile mean of its normalised runs
    improvement  P(X > Y) + P(X = Y) / 2 of its runs X and those Y of the reference, mean over targets
    difference   mean over targets of its normalised return less that of the reference
    p            of a difference of 0: Student's paired test over seeds

and p is corrected for the number of methods that are compared (Holm 1979), so that the chance of calling any of them
different where none is stays below 5 %. One seed gives no p: what its runs share is not sampled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pd_pipeline.errors import PipelineError
from pd_pipeline.evaluation.statistics import (
    Estimate,
    Scores,
    estimate,
    interquartile_mean,
    paired_difference,
    seed_differences,
    student,
)

SIGNIFICANT = 0.05
ALL = "all"
"""Name of the comparison over all families."""


@dataclass(frozen=True)
class Compared:
    """One method against the reference."""

    family: str
    method: str
    seeds: int
    targets: int
    iqm: Estimate
    improvement: Estimate | None
    """None for the reference itself, as what follows; with one seed there is no p either."""
    difference: Estimate | None
    p: float | None
    """Before the correction."""
    corrected: float | None

    @property
    def verdict(self) -> str:
        """better, worse or not different, at a corrected p of 0.05; open with one seed."""
        if self.difference is None:
            return "reference"
        if self.corrected is None:
            return "one seed"
        if self.corrected >= SIGNIFICANT:
            return "not different"
        return "better" if self.difference.value > 0 else "worse"


def normalised(runs: Mapping[str, Scores], floor: str, ceiling: str, family: str) -> dict[str, Scores]:
    """The runs of every method on a scale from floor (0) to ceiling (1), which each target has for itself.

    Raises PipelineError where the ceiling of a target is not above its floor: there is no such scale.
    """
    lows, highs = (np.mean([[r.mean() for r in seed] for seed in runs[name]], axis=0) for name in (floor, ceiling))
    if (flat := np.flatnonzero(highs <= lows)).size:
        raise PipelineError(
            f"{family}: {ceiling} is not above {floor} on target number {flat[0]}, in order (mean return "
            f"{highs[flat[0]]:.6g} and {lows[flat[0]]:.6g}), so that returns cannot be normalised: choose other "
            "methods with --floor and --ceiling, or leave the family out"
        )
    return {
        method: [[(r - low) / (high - low) for r, low, high in zip(seed, lows, highs, strict=True)] for seed in scores]
        for method, scores in runs.items()
    }


def over_families(families: Mapping[str, Mapping[str, Scores]]) -> dict[str, Scores]:
    """Normalised runs of the methods that all families have, with the targets of all of them in a row, seed by seed.

    Raises PipelineError where families have different numbers of seeds.
    """
    counts = {family: len(next(iter(runs.values()))) for family, runs in families.items()}
    if len({*counts.values()}) > 1:
        found = ", ".join(f"{family} has {count}" for family, count in counts.items())
        raise PipelineError(f"families have different numbers of seeds, {found}: compare them one by one")
    common = [m for m in next(iter(families.values())) if all(m in runs for runs in families.values())]
    return {
        method: [
            [r for part in parts for r in part] for parts in zip(*(f[method] for f in families.values()), strict=True)
        ]
        for method in common
    }


def compared(family: str, runs: Mapping[str, Scores], reference: str, draws: int = 2000) -> list[Compared]:
    """Every method against `reference`, from normalised runs, highest IQM first."""
    theirs, rows = runs[reference], []
    p = {method: p_value(ours, theirs) for method, ours in runs.items() if method != reference and len(ours) > 1}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    for method, ours in runs.items():
        rng = np.random.default_rng(0)  # anew, so that what other methods are there changes no interval
        iqm = estimate(ours, interquartile_mean, rng, draws)
        better = None if method == reference else improvement(ours, theirs, rng, draws)
        difference = None if method == reference else paired_difference(ours, theirs, rng, draws)
        about = family, method, len(ours), len(ours[0])
        rows.append(Compared(*about, iqm, better, difference, p.get(method), corrected.get(method)))
    return sorted(rows, key=lambda row: -row.iqm.value)


def improvement(ours: Scores, theirs: Scores, rng: np.random.Generator, draws: int = 2000) -> Estimate:
    """Probability that a run of ours is above one of theirs of the same seed and target, mean over targets."""
    seeds = [_above(one, other) for one, other in zip(ours, theirs, strict=True)]
    if len(seeds) > 1:
        found = student(float(np.mean(seeds)), seeds)
    else:
        drawn = [
            _above(
                [rng.choice(runs, len(runs)) for runs in ours[0]], [rng.choice(runs, len(runs)) for runs in theirs[0]]
            )
            for _ in range(draws)
        ]
        low, high = np.quantile(drawn, (0.025, 0.975))
        found = Estimate(seeds[0], float(low), float(high))
    return Estimate(found.value, max(0.0, found.low), min(1.0, found.high))


def _above(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """P(X > Y) + P(X = Y) / 2 over all pairs of a target, mean over targets: Mann and Whitney's U, scaled."""
    pairs = [one[:, None] - other for one, other in zip(ours, theirs, strict=True)]
    return float(np.mean([(gap > 0).mean() + (gap == 0).mean() / 2 for gap in pairs]))


def p_value(ours: Scores, theirs: Scores) -> float:
    """Two-sided p of no difference: the paired t test over at least two seeds."""
    from scipy.stats import ttest_1samp

    seeds = seed_differences(ours, theirs)
    if np.ptp(seeds) == 0:  # no test can be made of identical differences: nothing is called different
        return 1.0
    return float(ttest_1samp(seeds, 0.0).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number, each at most 1 and in the same order (Holm 1979)."""
    order, found, largest = np.argsort(p, kind="stable"), np.empty(len(p)), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        found[i] = largest
    return found.tolist()


def profile(scores: Scores, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Performance profile: the share of runs above each of the `levels`, mean over targets, with its interval.

    Three arrays (levels,). With one seed there is no interval: both ends are the share itself.
    """
    seeds = np.array([np.mean([(runs[:, None] > levels).mean(0) for runs in seed], axis=0) for seed in scores])
    value = seeds.mean(0)  # (levels,)
    if len(seeds) == 1:
        return value, value, value
    ends = np.array([student(0.0, column)[2] for column in seeds.T])
    return value, np.clip(value - ends, 0, 1), np.clip(value + ends, 0, 1)
