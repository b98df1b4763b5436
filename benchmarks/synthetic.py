"""Synthetic trajectories of the size of a real data set."""

import numpy as np

from pd_pipeline.trajectories.reading import Trajectories, return_to_go
from pd_pipeline.trajectories.schema import TrajectoryMetadata
from pd_pipeline.trajectories.validation import Columns

OBSERVATION_SIZE, ACTION_SIZE = 39, 4  # of Meta-World


def metadata(tasks: int, horizon: int) -> TrajectoryMetadata:
    """Metadata like that of reach."""
    return TrajectoryMetadata(
        family="synthetic",
        quality="expert",
        observation_size=OBSERVATION_SIZE,
        action_low=(-1.0,) * ACTION_SIZE,
        action_high=(1.0,) * ACTION_SIZE,
        horizon=horizon,
        seed=0,
        goals={task: {} for task in range(tasks)},
        environment={},
        versions={},
    )


def columns(task: int, first: int, episodes: int, horizon: int) -> Columns:
    """`episodes` whole episodes of a task, numbered from `first`: random numbers, which do not compress."""
    rng = np.random.default_rng([task, first])
    count = episodes * horizon
    reward = rng.random((episodes, horizon), np.float32)
    step = np.tile(np.arange(horizon, dtype=np.int32), episodes)
    return Columns(
        task_id=np.full(count, task, np.int32),
        episode_id=np.repeat(np.arange(first, first + episodes, dtype=np.int64), horizon),
        step=step,
        observation=rng.random((count, OBSERVATION_SIZE), np.float32),
        action=2 * rng.random((count, ACTION_SIZE), np.float32) - 1,
        reward=reward.reshape(-1),
        return_to_go=np.concatenate([return_to_go(one) for one in reward]),
        terminated=np.zeros(count, bool),
        truncated=step == horizon - 1,
        success=np.zeros(count, bool),
    )


def trajectories(tasks: int, episodes: int, horizon: int) -> Trajectories:
    """A data set in memory."""
    parts = [columns(task, 0, episodes, horizon) for task in range(tasks)]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    starts = np.arange(tasks * episodes + 1) * horizon
    return Trajectories(
        metadata(tasks, horizon),
        joined("observation"),
        joined("action"),
        joined("reward"),
        joined("return_to_go"),
        joined("success"),
        starts,
        joined("task_id")[starts[:-1]],
        joined("episode_id")[starts[:-1]],
    )
