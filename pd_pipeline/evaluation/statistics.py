"""Point estimates with intervals: mean, interquartile mean, success, and differences between methods.

Scores are given by seed and, within it, by task. With one seed runs are resampled within a task, never across, since
tasks are fixed and runs are not (Agarwal et al., NeurIPS 2021): the interval is over prompts and starts. Runs of one
seed share its policy, so that with several seeds an interval is Student's, of one value per seed: a bootstrap over
three seeds, or over their runs as if these were independent, covers the mean far less often than its confidence.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Scores = Sequence[Sequence[np.ndarray]]
"""For each seed one array (runs,) per task; the same tasks for every seed."""


class Estimate(NamedTuple):
    """A value with its interval."""

    value: float
    low: float
    high: float


class Position(NamedTuple):
    """A place on a scale between two methods, with its interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return values.mean(-1)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half over the last axis: a quarter cut off at each end, whole values only."""
    count = values.shape[-1]
    cut = count // 4
    return np.sort(values, axis=-1)[..., cut : count - cut].mean(-1)


def estimate(
    scores: Scores,
    statistic: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    draws: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """`statistic` of all runs pooled, with its interval: bootstrap within tasks of one seed, over seeds of several."""
    value = float(statistic(np.concatenate([runs for seed in scores for runs in seed])))
    if len(scores) > 1:
        return student(value, [float(statistic(np.concatenate(list(seed)))) for seed in scores], confidence)
    drawn = np.concatenate([_resampled(runs, rng, draws) for runs in scores[0]], axis=1)  # (draws, all runs)
    return Estimate(value, *_percentiles(statistic(drawn), confidence))


def mean_over_tasks(scores: Scores, rng: np.random.Generator, draws: int = 2000, confidence: float = 0.95) -> Estimate:
    """Mean over tasks of the mean of their runs, each task with the same weight however many runs it has.

    Given differences of runs that are paired, it is their mean with the interval of a paired comparison.
    """
    seeds = [_mean_over_tasks(seed) for seed in scores]
    if len(seeds) > 1:
        return student(float(np.mean(seeds)), seeds, confidence)
    return Estimate(seeds[0], *_percentiles(_drawn_means(scores[0], rng, draws), confidence))


def seed_differences(scores: Scores, reference: Scores) -> list[float]:
    """Per seed the mean over tasks of (mean score - mean reference), both in the same order of seeds and tasks."""
    return [
        float(np.mean([one.mean() - other.mean() for one, other in zip(ours, theirs, strict=True)]))
        for ours, theirs in zip(scores, reference, strict=True)
    ]


def paired_difference(
    scores: Scores, reference: Scores, rng: np.random.Generator, draws: int = 2000, confidence: float = 0.95
) -> Estimate:
    """Mean over tasks of (mean score - mean reference), tasks and seeds paired.

    With one seed the runs of both are resampled within the task, each for itself though prompt i of both meets the
    same start: on the published scores, to pair them too makes the interval 1 % narrower. With as few runs as eight per
    task, a bootstrap is itself rather too narrow.
    """
    seeds = seed_differences(scores, reference)
    if len(seeds) > 1:
        return student(float(np.mean(seeds)), seeds, confidence)
    drawn = _drawn_means(scores[0], rng, draws) - _drawn_means(reference[0], rng, draws)  # (draws,)
    return Estimate(seeds[0], *_percentiles(drawn, confidence))


def position(
    scores: Scores,
    floor: Scores,
    ceiling: Scores,
    rng: np.random.Generator,
    draws: int = 2000,
    confidence: float = 0.95,
) -> Position | None:
    """Where the mean of `scores` lies from that of `floor` (0) to that of `ceiling` (1); None unless this is above.

    With one seed all three are resampled within tasks. With several the place is that of the means over seeds, and its
    interval is as wide as Student's of the seeds' own places, which scatter more the closer the two are to each other.
    There is no interval where in some draw or seed the ceiling is not above the floor: no scale, no place on it.
    """
    three = (scores, floor, ceiling)
    means = _seed_means(three)  # (3, seeds)
    value = normalized(*means.mean(1).tolist())
    if value is None:
        return None
    if len(scores) > 1:
        places = [normalized(*seed) for seed in means.T.tolist()]
        known = [place for place in places if place is not None]
        return Position(*student(value, known, confidence)) if len(known) == len(places) else Position(value)
    place, low, high = (_drawn_means(each[0], rng, draws) for each in three)  # (draws,) each
    if not (high > low).all():
        return Position(value)
    return Position(value, *_percentiles((place - low) / (high - low), confidence))


def above_middle(
    scores: Scores,
    floor: Scores,
    ceiling: Scores,
    rng: np.random.Generator,
    draws: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """How far the mean of `scores` is above the middle of those of `floor` and `ceiling`, tasks and seeds paired.

    Unlike a margin taken from the two means, its interval knows that the distance between them is uncertain as well.
    """
    three = (scores, floor, ceiling)
    ours, low, high = _seed_means(three)  # (seeds,) each
    above = ours - (low + high) / 2  # (seeds,)
    if len(above) > 1:
        return student(float(above.mean()), above, confidence)
    ours, low, high = (_drawn_means(each[0], rng, draws) for each in three)  # (draws,) each
    return Estimate(float(above[0]), *_percentiles(ours - (low + high) / 2, confidence))


def _seed_means(several: Sequence[Scores]) -> np.ndarray:
    """(methods, seeds): the means of some methods over tasks."""
    return np.array([[_mean_over_tasks(seed) for seed in scores] for scores in several])


def _mean_over_tasks(tasks: Sequence[np.ndarray]) -> float:
    return float(np.mean([runs.mean() for runs in tasks]))


def _drawn_means(tasks: Sequence[np.ndarray], rng: np.random.Generator, draws: int) -> np.ndarray:
    """(draws,): the mean over tasks of the means of resampled runs."""
    return np.stack([_resampled(runs, rng, draws).mean(1) for runs in tasks]).mean(0)


def _resampled(runs: np.ndarray, rng: np.random.Generator, draws: int) -> np.ndarray:
    """(draws, runs): the runs drawn with replacement."""
    return runs[rng.integers(0, len(runs), (draws, len(runs)))]


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def student(value: float, values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Estimate:
    """`value` with Student's interval of k independent values, such as those of the seeds: k - 1 degrees of freedom."""
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Estimate(value, value - half, value + half)


def success_rate(seeds: Sequence[np.ndarray], confidence: float = 0.95) -> Estimate:
    """Mean success of all runs, given one array (runs,) of shares from 0 to 1 per seed, with Wilson's interval.

    With several seeds the interval reaches as far as Student's interval of their rates, where that is farther:
    Wilson's takes runs for independent, and Student's knows no uncertainty where all seeds are alike.
    """
    runs = np.concatenate(list(seeds))
    found = wilson(float(runs.sum()), len(runs), confidence)
    if len(seeds) == 1:
        return found
    over = student(found.value, [float(seed.mean()) for seed in seeds], confidence)
    return Estimate(found.value, max(0.0, min(found.low, over.low)), min(1.0, max(found.high, over.high)))


def wilson(successes: float, trials: int, confidence: float = 0.95) -> Estimate:
    """A success rate with its Wilson score interval; trials may succeed in part."""
    from scipy.special import ndtri

    z = float(ndtri((1 + confidence) / 2))
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    # rounding must not put the rate itself outside
    return Estimate(rate, float(np.clip(centre - half, 0.0, rate)), float(np.clip(centre + half, rate, 1.0)))


def normalized(value: float, floor: float, ceiling: float) -> float | None:
    """Position of `value` between floor (0) and ceiling (1); None where the ceiling is not above the floor."""
    return (value - floor) / (ceiling - floor) if ceiling > floor else None
