"""How well generated prompts fit real ones they were not trained on."""

from typing import Any

import numpy as np
from scipy.spatial import cKDTree


def wasserstein(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wasserstein-1 distance of each column of a (n, c) and b (n, c), equal in number: mean gap of sorted values."""
    return np.abs(np.sort(a, axis=0) - np.sort(b, axis=0)).mean(0)


def nearest(a: np.ndarray, b: np.ndarray) -> float:
    """Median over a (n, d) of the root-mean-square distance to the nearest of b (m, d)."""
    distances, _ = cKDTree(b).query(a)
    return float(np.median(distances) / np.sqrt(a.shape[1]))


def halves(episodes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two halves of prompts, of which none shares an episode with the other half, in random order.

    `episodes` (n, 2 or more): the task of each prompt, then what tells its episode from others of that task. The
    prompts of a task with a single episode are split themselves, though those next to each other are much alike.
    """
    first = np.zeros(len(episodes), bool)
    for task in np.unique(episodes[:, 0]):
        rows = np.flatnonzero(episodes[:, 0] == task)
        _, of = np.unique(episodes[rows], axis=0, return_inverse=True)
        of = of.reshape(-1) if of.max() else np.arange(len(rows))
        chosen = rng.permutation(of.max() + 1)[: (of.max() + 1 + rng.integers(2)) // 2]
        first[rows] = np.isin(of, chosen)
    if first.all() or not first.any():  # of few tasks with a prompt each
        first = rng.permutation(len(first)) < len(first) // 2
    return rng.permutation(np.flatnonzero(first)), rng.permutation(np.flatnonzero(~first))


def compare(
    real: np.ndarray,
    episodes: np.ndarray,
    generated: np.ndarray,
    rng: np.random.Generator,
    kept: np.ndarray | None = None,
) -> dict[str, Any]:
    """Distances of generated to real prompts, both (n, K*, channels) normalised, beside what two real samples have.

    The real prompts are split in `halves`: one half is the reference, and what the other half shows against it is as
    close as a perfect generator comes. Halves that shared `episodes` would be closer: prompts that overlap are nearly
    the same. `kept` are the prompts that are evaluated: too few for a distribution, so that of them there is the
    distance to the nearest alone. Raises ValueError unless there are two real prompts.
    """
    if len(real) < 2:
        raise ValueError("two real prompts are needed, to compare them with each other")
    one, two = halves(episodes, rng)
    half = min(len(one), len(two), len(generated))
    reference, other = real[one[:half]], real[two[:half]]
    made = generated[rng.permutation(len(generated))[:half]]
    channels = real.shape[2]
    flat = [part.reshape(-1, channels) for part in (reference, other, made)]
    varying = flat[0].std(0) > 1e-3  # channels that never change fit by definition and would flatter the mean
    real_distance, made_distance = wasserstein(flat[0], flat[1])[varying], wasserstein(flat[0], flat[2])[varying]
    rows = [part.reshape(half, -1) for part in (reference, other, made)]
    of_kept = {} if kept is None else {"kept": len(kept), "nearest_kept": nearest(kept.reshape(len(kept), -1), rows[0])}
    return {
        "prompts": half,
        "varying_channels": int(varying.sum()),
        "wasserstein_real": float(real_distance.mean()),
        "wasserstein_generated": float(made_distance.mean()),
        "wasserstein_generated_per_channel": made_distance.tolist(),
        "wasserstein_real_per_channel": real_distance.tolist(),
        "nearest_real": nearest(rows[1], rows[0]),
        "nearest_generated": nearest(rows[2], rows[0]),
        **of_kept,
    }
