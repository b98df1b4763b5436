"""What an import makes of a source: its tasks become tasks of the family, its actions get bounds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from pd_pipeline.config import Name, Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange.source import Source
from pd_pipeline.parsing import parse
from pd_pipeline.trajectories.schema import Bound, Origin, Task, TrajectoryMetadata

QUALITY = "expert"
Goals = dict[int, dict[str, Any]]
Bounds = Bound | Annotated[tuple[Bound, ...], Field(min_length=1)]


class Asked(Parameters):
    """What is asked of an import; kept with the data."""

    task: Task | None = Field(default=None, description="the task of all episodes; null: the tasks of the source")
    quality: Name | None = Field(default=None, description="null: that of the source, else expert")
    reward: float | Literal["success"] | None = Field(default=None, description="of every step; success: 1 and else 0")
    without: tuple[str, ...] = Field(default=(), description="parts of observations to leave out")
    action_low: Bounds | None = Field(default=None, description="lower bound of all numbers of an action, or of each")
    action_high: Bounds | None = Field(default=None, description="upper bound of all numbers of an action, or of each")


def refuse(source: Source, asked: Asked, known: Mapping[Path, TrajectoryMetadata], limits: Mapping[str, Any]) -> None:
    """Raise PipelineError if a source lacks what is asked for, or has steps of other sizes than the family.

    `known`: the family's files; `limits`: those of the family itself, where they hold (`limits_of`).
    """
    if not source.has_reward and asked.reward is None:
        success = ", or --reward success for 1 at steps that succeed and else 0" if source.has_success else ""
        raise PipelineError(
            f"{source.name}: holds no rewards: --reward 0 gives every step the same{success}; without rewards a policy "
            "cannot be asked for a better return than another"
        )
    if asked.reward == "success" and not source.has_success:
        raise PipelineError(f"{source.name}: --reward success: it does not say which steps succeed: give a number")
    sizes = [
        (f"in {file.origin[-1].source if file.origin else path}", file.observation_size, file.action_size)
        for path, file in known.items()
    ]
    if limits:
        sizes.append(("in this family", limits["observation_size"], len(limits["action_low"])))
    for where, *wanted in sizes:
        for name, size in zip(("observation_size", "action_size"), wanted, strict=True):
            if (found := getattr(source, name)) != size:
                raise PipelineError(
                    f"{source.name}: {name} is {found}, but {size} {where}: import it for another family"
                )


def describe(
    source: Source,
    family: str,
    asked: Asked,
    origin: Origin,
    known: Mapping[Path, TrajectoryMetadata],
    tasks: Mapping[int, int],
    bounds: "ActionBounds",
    horizon: int,
) -> TrajectoryMetadata:
    """The metadata of the new file; `tasks`: task of the source -> task of the family. Raises PipelineError."""
    existing = goals_of(known)
    goals = {new: existing.get(new, _common(source, tasks, new)) for new in sorted(set(tasks.values()))}
    stated = source.stated
    values = {
        "family": family,
        "quality": asked.quality or (stated.quality if stated else QUALITY),
        "observation_size": source.observation_size,
        "action_low": tuple(bounds.low.tolist()),
        "action_high": tuple(bounds.high.tolist()),
        "horizon": horizon,
        "seed": stated.seed if stated else 0,
        "goals": goals,
        "environment": stated.environment if stated else {},
        "versions": stated.versions if stated else {},
        "origin": (*(stated.origin if stated else ()), origin),
    }
    return parse(TrajectoryMetadata, values, f"{source.name}: metadata")


def goals_of(known: Mapping[Path, TrajectoryMetadata]) -> Goals:
    """Task -> goal, of all tasks in some files."""
    return {task: goal for metadata in known.values() for task, goal in metadata.goals.items()}


def assign(goals: Goals, existing: Goals, asked: int | None, sharing: Mapping[int, int]) -> dict[int, int]:
    """Task of the source -> task of the family.

    A task with a goal that the family has is that task, and so is one without a goal that shares episodes with it
    (`sharing`: task of the source -> that of the family); of several with the goal, the one that shares episodes. Any
    other keeps its number if the family does not have it, else it gets the next free one.
    """
    if asked is not None:
        return dict.fromkeys(goals, asked)
    found: dict[int, int] = {}
    for task, goal in sorted(goals.items()):
        taken, alike = {*existing, *found.values()}, sharing.get(task)
        with_goal = sorted(of for of, known in existing.items() if known == goal) if goal else []
        same = (
            alike
            if not goal or alike in with_goal
            else next((of for of in with_goal if of not in found.values()), None)
        )
        found[task] = same if same is not None else task if task not in taken else max(taken) + 1
    return found


def _common(source: Source, tasks: Mapping[int, int], new: int) -> dict[str, Any]:
    """The goal of a new task: that of its tasks in the source, if they agree."""
    goals = [source.goals[task] for task, of in tasks.items() if of == new]
    return goals[0] if all(goal == goals[0] for goal in goals) else {}


class ActionBounds(NamedTuple):
    """Bounds of the numbers of an action."""

    low: np.ndarray  # (d_a,) float32
    high: np.ndarray  # (d_a,) float32
    origin: str
    """Where they come from, in words."""


def action_bounds(
    source: Source, asked: Asked, known: Mapping[Path, TrajectoryMetadata], limits: Mapping[str, Any]
) -> ActionBounds:
    """Bounds of actions: as asked, else the limits of the family, else as the source states.

    Where it states none, those of the family's files, widened where an action lies beyond, or the range of its actions.
    Raises PipelineError.
    """
    low, high = _as_asked(source, "action_low", asked.action_low), _as_asked(source, "action_high", asked.action_high)
    if low is not None and high is not None:
        return _with_a_range(source, ActionBounds(low, high, "as asked"))
    if limits:
        own = (np.array(limits[name], np.float32) for name in ("action_low", "action_high"))
        found = ActionBounds(next(own), next(own), "those of the family")
    elif source.bounds is not None:
        found = ActionBounds(*source.bounds, "as stated")
    elif known:
        least, most = _extremes(source)
        for file in known.values():
            least = np.minimum(least, np.array(file.action_low, np.float32))
            most = np.maximum(most, np.array(file.action_high, np.float32))
        found = ActionBounds(least, most, "those of the family's files and of the actions")
    else:
        found = ActionBounds(*_range(source), "read off the actions")
    if low is None and high is None:
        return found
    mixed = found.low if low is None else low, found.high if high is None else high
    return _with_a_range(source, ActionBounds(*mixed, f"one as asked, the other {found.origin}"))


def _with_a_range(source: Source, bounds: ActionBounds) -> ActionBounds:
    """The bounds. Raises PipelineError where a lower one is not below the upper one."""
    for number in np.flatnonzero(~(bounds.low < bounds.high)):
        raise PipelineError(
            f"{source.name}: number {number} of an action would be between {bounds.low[number]:g} and "
            f"{bounds.high[number]:g} ({bounds.origin}): give --action-low and --action-high with a range between them"
        )
    return bounds


def _as_asked(source: Source, name: str, asked: Bounds | None) -> np.ndarray | None:
    """A bound as (d_a,) float32. Raises PipelineError for another number of them."""
    if asked is None or isinstance(asked, float):
        return None if asked is None else np.full(source.action_size, asked, np.float32)
    if len(asked) != source.action_size:
        option = f"--{name.replace('_', '-')}"
        raise PipelineError(
            f"{option}: {len(asked)} numbers, but an action of {source.name} has {source.action_size}: give one for "
            "all, or one for each"
        )
    return np.array(asked, np.float32)


def _range(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """[-1, 1] if all actions are in it, else the smallest and largest of each number; apart by 2 if these are equal."""
    low, high = _extremes(source)
    if (low >= -1).all() and (high <= 1).all():
        return np.full_like(low, -1), np.full_like(high, 1)
    still = low == high  # a number that never changes has no range
    return np.where(still, low - 1, low), np.where(still, high + 1, high)


def _extremes(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest (d_a,) of each number of the actions. Raises PipelineError if one is not finite."""
    low, high = np.full(source.action_size, np.inf, np.float32), np.full(source.action_size, -np.inf, np.float32)
    for actions in source.actions():
        low, high = np.minimum(low, actions.min(0)), np.maximum(high, actions.max(0))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise PipelineError(f"{source.name}: it holds actions that are not finite: remove these episodes")
    return low, high
