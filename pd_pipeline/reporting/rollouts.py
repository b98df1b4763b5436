"""The rollouts that evaluation recorded. Apart from `gather`, so that replaying them imports no plots."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pd_pipeline.storage import load_arrays


@dataclass(frozen=True)
class Episode:
    """One recorded rollout: the first prompt of a method for a target."""

    method: str
    task: int
    seed: int
    observations: np.ndarray  # (T, d_s), without what follows the end
    actions: np.ndarray  # (T, d_a)
    episode_return: float
    success: bool | None
    """None where the family knows no success."""


def read_episodes(evaluation: Path) -> list[Episode]:
    """The rollouts that one key of `evaluation` recorded."""
    arrays, _ = load_arrays(evaluation / "rollouts.safetensors")
    rows = pl.read_parquet(evaluation / "scores.parquet")[arrays["rows"].tolist()].to_dicts()
    return [
        Episode(
            row["method"],
            row["task"],
            row["seed"],
            observations[: row["length"]],
            actions[: row["length"]],
            row["return"],
            row["success"],
        )
        for row, observations, actions in zip(rows, arrays["observations"], arrays["actions"], strict=True)
    ]
