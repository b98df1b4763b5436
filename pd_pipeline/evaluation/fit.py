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


def compare(
    real: np.ndarray, generated: np.ndarray, rng: np.random.Generator, kept: np.ndarray | None = None
) -> dict[str, Any]:
    """Distances of generated to real prompts, both (n, K*, channels) normalised, beside what two real samples have.

    The real prompts are split in two random halves: one half is the reference, and what the other half shows against
    it is as close as a perfect generator comes. `kept` are the prompts that are evaluated: too few for a distribution,
    so that of them there is the distance to the nearest alone.
    """
    order = rng.permutation(len(real))
    half = min(len(real) // 2, len(generated))
    reference, other = real[order[:half]], real[order[half : 2 * half]]
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
