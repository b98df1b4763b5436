"""Point estimates with intervals: mean, interquartile mean, success, and differences between methods.

Scores are given as one array a task, the strata: runs are resampled within a task, never across, since tasks are
fixed and runs are not (Agarwal et al., NeurIPS 2021). Runs of one seed share its policy and its tuning, so that with
several seeds these are resampled first, for all tasks alike, and runs within them: twenty episodes of three policies
are not sixty independent ones.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Scores = Sequence[Sequence[np.ndarray]]
"""Of each seed, one array (runs,) a task; a task has the same number of runs under every seed."""


class Estimate(NamedTuple):
    """A value with its interval."""

    value: float
    low: float
    high: float


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return values.mean(-1)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half over the last axis: a quarter cut off at each end, whole values only."""
    count = values.shape[-1]
    cut = count // 4
    return np.sort(values, axis=-1)[..., cut : count - cut].mean(-1)


def stratified_bootstrap(
    scores: Scores,
    statistic: Callable[[np.ndarray], np.ndarray],
    rng: np.random.Generator,
    draws: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """`statistic` of all runs pooled, with its percentile interval over seeds and over runs within each task."""
    tasks = _resampled(scores, _drawn_seeds(scores, rng, draws), rng)
    low, high = np.quantile(statistic(np.concatenate(tasks, 1)), [(1 - confidence) / 2, (1 + confidence) / 2])
    pooled = np.concatenate([runs for seed in scores for runs in seed])
    return Estimate(float(statistic(pooled)), float(low), float(high))


def paired_difference(
    scores: Scores, reference: Scores, rng: np.random.Generator, draws: int = 2000, confidence: float = 0.95
) -> Estimate:
    """Mean over tasks of (mean score - mean reference), tasks and seeds paired, runs of both resampled within."""
    seeds = _drawn_seeds(scores, rng, draws)
    drawn = zip(_resampled(scores, seeds, rng), _resampled(reference, seeds, rng), strict=True)
    differences = np.mean([one.mean(1) - other.mean(1) for one, other in drawn], axis=0)  # (draws,)
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    pairs = zip(_pooled(scores), _pooled(reference), strict=True)
    return Estimate(float(np.mean([a.mean() - b.mean() for a, b in pairs])), float(low), float(high))


def _drawn_seeds(scores: Scores, rng: np.random.Generator, draws: int) -> np.ndarray:
    """(draws, seeds): which seeds each draw is made of."""
    return rng.integers(0, len(scores), (draws, len(scores)))


def _pooled(scores: Scores) -> list[np.ndarray]:
    """A task's runs of all seeds (seeds x runs,)."""
    return [np.concatenate(runs) for runs in zip(*scores, strict=True)]


def _resampled(scores: Scores, seeds: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Of each task (draws, seeds x runs): runs drawn with replacement within the drawn seeds."""
    drawn = []
    for task in zip(*scores, strict=True):
        runs = np.stack(task)  # (seeds, runs)
        picked = rng.integers(0, runs.shape[1], (*seeds.shape, runs.shape[1]))  # (draws, seeds, runs)
        drawn.append(runs[seeds[..., None], picked].reshape(len(seeds), -1))
    return drawn


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Estimate:
    """A success rate with its Wilson score interval."""
    from scipy.stats import norm

    z = float(norm.ppf((1 + confidence) / 2))
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    # rounding must not put the rate itself outside
    return Estimate(rate, float(np.clip(centre - half, 0.0, rate)), float(np.clip(centre + half, rate, 1.0)))


def normalized(value: float, floor: float, ceiling: float) -> float | None:
    """Position of `value` between floor (0) and ceiling (1); None where the ceiling is not above the floor."""
    return (value - floor) / (ceiling - floor) if ceiling > floor else None
