"""What an import makes of a source: its tasks become tasks of the family, its actions get bounds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pd_pipeline.config import Name, Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange.source import Source
from pd_pipeline.parsing import parse
from pd_pipeline.trajectories.schema import Bound, Origin, Task, TrajectoryMetadata

QUALITY = "expert"
Goals = dict[int, dict[str, Any]]


class Asked(Parameters):
    """What is asked of an import; kept with the data."""

    task: Task | None = Field(default=None, description="the task of all episodes; null: the tasks of the source")
    quality: Name | None = Field(default=None, description="null: that of the source, else expert")
    reward: float | Literal["success"] | None = Field(default=None, description="of every step; success: 1 and else 0")
    without: tuple[str, ...] = Field(default=(), description="parts of observations to leave out")
    action_low: Bound | None = Field(default=None, description="lower bound of all actions")
    action_high: Bound | None = Field(default=None, description="upper bound of all actions")


def plan(
    source: Source, family: str, asked: Asked, origin: Origin, known: Mapping[Path, TrajectoryMetadata]
) -> tuple[TrajectoryMetadata, dict[int, int]]:
    """The metadata of the new file, and task of the source -> task of the family. Raises PipelineError."""
    if not source.has_reward and asked.reward is None:
        success = ", or --reward success for 1 at steps that succeed and else 0" if source.has_success else ""
        raise PipelineError(
            f"{source.name}: holds no rewards: --reward 0 gives every step the same{success}; without rewards a policy "
            "cannot be asked for a better return than another"
        )
    if asked.reward == "success" and not source.has_success:
        raise PipelineError(f"{source.name}: --reward success: it does not say which steps succeed: give a number")
    for path, metadata in known.items():
        for name in ("observation_size", "action_size"):
            if (size := getattr(source, name)) != (wanted := getattr(metadata, name)):
                raise PipelineError(
                    f"{source.name}: {name} is {size}, but {wanted} in {path}: import it for another family"
                )
    existing: Goals = {task: goal for metadata in known.values() for task, goal in metadata.goals.items()}
    tasks = assign(source.goals, existing, asked.task)
    low, high = _bounds(source, asked)
    goals = {new: existing.get(new, _common(source, tasks, new)) for new in sorted(set(tasks.values()))}
    stated = source.stated
    values = {
        "family": family,
        "quality": asked.quality or (stated.quality if stated else QUALITY),
        "observation_size": source.observation_size,
        "action_low": tuple(low.tolist()),
        "action_high": tuple(high.tolist()),
        "horizon": source.horizon,
        "seed": stated.seed if stated else 0,
        "goals": goals,
        "environment": stated.environment if stated else {},
        "versions": stated.versions if stated else {},
        "origin": (*(stated.origin if stated else ()), origin),
    }
    return parse(TrajectoryMetadata, values, f"{source.name}: metadata"), tasks


def assign(goals: Goals, existing: Goals, asked: int | None) -> dict[int, int]:
    """Task of the source -> task of the family.

    A task with a goal that the family has is that task. Any other keeps its number if the family does not have it,
    else it gets the next free one.
    """
    if asked is not None:
        return dict.fromkeys(goals, asked)
    found: dict[int, int] = {}
    by_goal = {repr(sorted(goal.items())): task for task, goal in existing.items() if goal}
    for task, goal in sorted(goals.items()):
        taken = {*existing, *found.values()}
        same = by_goal.get(repr(sorted(goal.items()))) if goal else None
        found[task] = same if same is not None else task if task not in taken else max(taken) + 1
    return found


def _common(source: Source, tasks: Mapping[int, int], new: int) -> dict[str, Any]:
    """The goal of a new task: that of its tasks in the source, if they agree."""
    goals = [goal for task, goal in source.goals.items() if tasks[task] == new]
    return goals[0] if all(goal == goals[0] for goal in goals) else {}


def _bounds(source: Source, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of actions: as asked, else as the source states, else the range of its actions."""
    size = source.action_size
    wanted = [None if b is None else np.full(size, b, np.float32) for b in (asked.action_low, asked.action_high)]
    low, high = wanted
    if low is None or high is None:
        stated = source.bounds or _range(source)
        low, high = (stated[0] if low is None else low), (stated[1] if high is None else high)
    return low, high


def _range(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """[-1, 1] if all actions are in it, else the smallest and largest of each number, apart by at least 2."""
    low, high = np.full(source.action_size, np.inf, np.float32), np.full(source.action_size, -np.inf, np.float32)
    for actions in source.actions():
        low, high = np.minimum(low, actions.min(0)), np.maximum(high, actions.max(0))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise PipelineError(f"{source.name}: it holds actions that are not finite: remove these episodes")
    if (low >= -1).all() and (high <= 1).all():
        return np.full_like(low, -1), np.full_like(high, 1)
    still = low == high  # a number that never changes has no range
    return np.where(still, low - 1, low), np.where(still, high + 1, high)
