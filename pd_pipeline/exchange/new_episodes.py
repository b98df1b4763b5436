"""Which episodes of a source a family does not have yet."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange.mapping import Asked, Goals, assign, goals_of
from pd_pipeline.exchange.source import Source, Steps
from pd_pipeline.trajectories.copies import episode_digest
from pd_pipeline.trajectories.episodes import episodes
from pd_pipeline.trajectories.reading import return_to_go
from pd_pipeline.trajectories.schema import TrajectoryMetadata
from pd_pipeline.trajectories.validation import Columns

Digests = dict[int, set[bytes]]
"""Task of the family -> the digests of its episodes."""


class New(NamedTuple):
    """What a source holds that its family does not have yet."""

    source: Source
    asked: Asked
    tasks: dict[int, int]
    """Task of the source -> that of the family; only those with a new episode."""
    episodes: dict[int, list[bool]]
    """Task of the source -> whether each of its episodes is new."""

    @property
    def copies(self) -> int:
        """Episodes that are left out."""
        return self.source.episode_count - sum(sum(of_task) for of_task in self.episodes.values())


def digests_of(known: Iterable[Path]) -> Digests:
    """The episodes of a family's files. Raises PipelineError for a damaged one."""
    found: Digests = {}
    for path in known:
        for episode in episodes(path):
            found.setdefault(episode.task, set()).add(episode_digest(episode.steps))
    return found


def new_episodes(
    source: Source,
    asked: Asked,
    known: Mapping[Path, TrajectoryMetadata],
    present: Digests,
    same: dict[int, int],
) -> New:
    """Which task of the family each of the source is, and which of its episodes are new.

    An episode whose observations, actions and rewards are those of one that its task has already is a copy, so that a
    log that has grown may be imported again. New ones are added to `present`, and tasks to `same`: what sources of one
    family were told before. Raises PipelineError if it cannot be told which task one is.
    """
    digests = {
        task: [episode_digest(columns_of(steps, 0, 0, asked)) for steps in source.episodes(task)]
        for task in source.goals
    }
    existing = goals_of(known)
    unknown = {task: found for task, found in digests.items() if task not in same and asked.task is None}
    sharing = same | _sharing(source, unknown, present, existing)
    tasks = assign(source.goals, existing, asked.task, sharing)
    same |= tasks
    new: dict[int, list[bool]] = {}
    for task in sorted(tasks):
        there = present.setdefault(tasks[task], set())
        new[task] = []
        for each in digests[task]:
            new[task].append(each not in there)
            there.add(each)
    with_new = {task: of_task for task, of_task in new.items() if any(of_task)}
    return New(source, asked, {task: of for task, of in tasks.items() if task in with_new}, with_new)


def _sharing(
    source: Source, digests: Mapping[int, Sequence[bytes]], present: Digests, existing: Goals
) -> dict[int, int]:
    """Task of the source -> the task of the family that has half of its episodes, or of which it has half.

    Fewer may be equal by chance, such as an episode that a robot stood through. A task with a goal has that of the
    family's. Raises PipelineError if it cannot be told which one it is.
    """
    found: dict[int, int] = {}
    for task, own in digests.items():
        goal = source.goals[task]
        alike = [
            of
            for of, there in sorted(present.items())
            if (not goal or goal == existing.get(of)) and 2 * len(there & {*own}) >= min(len({*own}), len(there)) > 0
        ]
        if len(alike) > 1:
            others = " and ".join(map(str, alike))
            raise PipelineError(
                f"{source.name}: task {task} shares episodes with tasks {others}: say by --task which it is"
            )
        if alike and alike[0] in found.values():
            raise PipelineError(
                f"{source.name}: task {task} shares episodes with task {alike[0]}, but so does a task before it: say "
                "by --task which all of them are, or split the source"
            )
        if alike:
            found[task] = alike[0]
    return found


def columns_of(steps: Steps, task: int, number: int, asked: Asked) -> Columns:
    """The rows of an episode, as they are written under this task and number."""
    count = len(steps.action)
    success = np.zeros(count, bool) if steps.success is None else steps.success
    if asked.reward is None:
        assert steps.reward is not None, "a source without rewards is refused"
        reward = steps.reward
    else:
        reward = success.astype(np.float32) if asked.reward == "success" else np.full(count, asked.reward, np.float32)
    last = np.arange(count) == count - 1
    return Columns(
        task_id=np.full(count, task, np.int32),
        episode_id=np.full(count, number, np.int64),
        step=np.arange(count, dtype=np.int32),
        observation=steps.observation,
        action=steps.action,
        reward=reward,
        return_to_go=return_to_go(reward),
        terminated=last & steps.terminated,
        truncated=last & (not steps.terminated),
        success=success,
    )
