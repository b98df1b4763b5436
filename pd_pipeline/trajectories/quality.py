"""Statistics of collected data: return, success, early ends and state coverage by quality and task."""

from typing import Any

import numpy as np
from scipy.special import entr

from pd_pipeline.families.base import ExpertBars, Family
from pd_pipeline.trajectories.reading import Trajectories

CELLS = 20  # per state dimension
EXPERT = "expert"


def summarise(family: Family, data: dict[str, Trajectories]) -> dict[str, Any]:
    """Statistics of every quality; means over tasks give each task the same weight, whatever its number of episodes.

    `coverage` measures how evenly a quality's states fill the space that all qualities together visit.
    """
    pooled = np.concatenate([d.observations for d in data.values()])
    low, high = np.percentile(pooled, [0.5, 99.5], axis=0)  # (d_s,) each
    return {
        quality: _statistics(family, d) | {"coverage": coverage(d.observations, low, high)}
        for quality, d in data.items()
    }


def _statistics(family: Family, data: Trajectories) -> dict[str, Any]:
    early = data.lengths < family.horizon
    tasks = {
        int(task): {
            "episodes": int(rows.sum()),
            "return_mean": float(data.episode_returns[rows].mean()),
            "return_deviation": float(data.episode_returns[rows].std()),
            "success_rate": float(data.episode_success[rows].mean()) if family.has_success else None,
            "early_ends": float(early[rows].mean()),
        }
        for task in np.unique(data.task_id)
        for rows in [data.task_id == task]
    }
    return {
        "steps": len(data.rewards),
        "episodes": len(data.task_id),
        "return_mean": float(np.mean([t["return_mean"] for t in tasks.values()])),
        "success_rate": float(np.mean([t["success_rate"] for t in tasks.values()])) if family.has_success else None,
        "early_ends": float(np.mean([t["early_ends"] for t in tasks.values()])),
        "tasks": tasks,
    }


def coverage(observations: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """How evenly observations (n, d_s) fill the twenty cells of each dimension between `low` and `high` (d_s,).

    The effective number of cells (exp of the entropy of their shares) over their number: 1 where all are visited
    equally, 1 / 20 where only one is. Mean over the dimensions that vary.
    """
    vary = high - low > 1e-6
    if not vary.any():
        return 0.0
    scaled = (observations[:, vary] - low[vary]) / (high - low)[vary]  # (n, d) 0 to 1 between the percentiles
    inside = (scaled >= 0) & (scaled < 1)
    effective = []
    for column, rows in zip(scaled.T, inside.T, strict=True):
        counts = np.bincount((column[rows] * CELLS).astype(int), minlength=CELLS)
        effective.append(np.exp(entr(counts / counts.sum()).sum()) if counts.any() else 0.0)
    return float(np.mean(effective) / CELLS)


def missed_bars(summary: dict[str, Any], bars: ExpertBars) -> list[str]:
    """The bars that the expert data of a summary misses, in words; empty where it is good enough."""
    if EXPERT not in summary:
        return []
    found = summary[EXPERT]
    missed = []
    if bars.return_mean is not None and found["return_mean"] < bars.return_mean:
        missed.append(f"mean return {found['return_mean']:,.1f} is below {bars.return_mean:,.0f}")
    if bars.success_rate is not None and found["success_rate"] < bars.success_rate:
        missed.append(f"success rate {found['success_rate']:.1%} is below {bars.success_rate:.0%}")
    if bars.early_ends is not None and found["early_ends"] > bars.early_ends:
        missed.append(f"{found['early_ends']:.1%} of episodes end early, above {bars.early_ends:.0%}")
    return missed
