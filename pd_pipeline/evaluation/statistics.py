"""Point estimates with intervals: mean, interquartile mean, success, and differences between methods.

Scores are given as one array a task, the strata: runs are resampled within a task, never across, since tasks are
fixed and runs are not (Agarwal et al., NeurIPS 2021).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Scores = Sequence[np.ndarray]
"""One array (runs,) a task."""


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
    """`statistic` of all runs pooled, with its percentile interval over runs resampled within each task."""
    resampled = np.concatenate(
        [task[rng.integers(0, len(task), (draws, len(task)))] for task in scores], axis=1
    )  # (draws, all runs)
    low, high = np.quantile(statistic(resampled), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(statistic(np.concatenate(list(scores)))), float(low), float(high))


def paired_difference(
    scores: Scores, reference: Scores, rng: np.random.Generator, draws: int = 2000, confidence: float = 0.95
) -> Estimate:
    """Mean over tasks of (mean score - mean reference), tasks paired, runs of both resampled within the task."""

    def task_means(tasks: Scores) -> np.ndarray:
        return np.stack([t[rng.integers(0, len(t), (draws, len(t)))].mean(1) for t in tasks])  # (tasks, draws)

    differences = (task_means(scores) - task_means(reference)).mean(0)  # (draws,)
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    value = np.mean([a.mean() - b.mean() for a, b in zip(scores, reference, strict=True)])
    return Estimate(float(value), float(low), float(high))


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
