"""Which episodes of a source a family does not have yet."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange.mapping import Asked, Goals, assign, goals_of
from pd_pipeline.exchange.source import Source, Steps
from pd_pipeline.trajectories.copies import beginning_digests, motion_digest
from pd_pipeline.trajectories.episodes import episodes
from pd_pipeline.trajectories.reading import return_to_go
from pd_pipeline.trajectories.schema import TrajectoryMetadata
from pd_pipeline.trajectories.validation import Columns

Digests = dict[int, set[bytes]]
"""Task of the family -> digests of its episodes."""


class New(NamedTuple):
    """What a source holds that its family does not have yet."""

    source: Source
    asked: Asked
    tasks: dict[int, int]
    """Task of the source -> that of the family; only those with a new episode."""
    episodes: dict[int, list[bool]]
    """Task of the source -> whether each of its episodes is new."""
    longer: int
    """Episodes that are left out since their task has their beginning as an episode."""
    of_targets: int
    """Episodes that are left out since they are accepted data of a target."""

    @property
    def copies(self) -> int:
        """Episodes that are left out since their task has them."""
        new = sum(sum(of_task) for of_task in self.episodes.values())
        return self.source.episode_count - self.longer - self.of_targets - new


@dataclass
class Present:
    """The episodes that a family has."""

    whole: Digests = field(default_factory=dict)
    motions: dict[int, dict[bytes, object]] = field(default_factory=dict)
    """Task -> digest of observations and actions -> which rewards were asked for, as in `Asked`."""
    lengths: dict[bytes, set[int]] = field(default_factory=dict)
    """Digest of a first step -> lengths of the episodes that begin with it and did not end by themselves."""
    longest: dict[bytes, int] = field(default_factory=dict)
    """Digest of a first step -> length of the longest episode that begins with it."""

    def add(self, task: int, episode: "_Episode", reward: object) -> None:
        """Add an episode of a task, with rewards that were asked for so."""
        self.whole.setdefault(task, set()).add(episode.whole)
        self.motions.setdefault(task, {})[episode.motion] = reward
        self.longest[episode.first] = max(self.longest.get(episode.first, 0), episode.length)
        if not episode.terminated:
            self.lengths.setdefault(episode.first, set()).add(episode.length)


class _Episode(NamedTuple):
    """Digests of an episode."""

    whole: bytes
    motion: bytes
    first: bytes
    length: int
    terminated: bool
    beginnings: tuple[bytes, ...]
    """Of its beginnings that are as long as an episode of the family with the same first step."""

    def is_in(self, there: Collection[bytes]) -> bool:
        """Whether it, or a beginning of it, is one of these episodes."""
        return any(digest in there for digest in (self.whole, *self.beginnings))


def present_in(known: Mapping[Path, TrajectoryMetadata]) -> Present:
    """The episodes of a family's files. Raises PipelineError for a damaged one."""
    found = Present()
    for path, metadata in known.items():
        reward = metadata.origin[-1].options.get("reward") if metadata.origin else None
        for episode in episodes(path):
            found.add(episode.task, _digests(episode.steps, found), reward)
    return found


def new_episodes(
    source: Source,
    asked: Asked,
    known: Mapping[Path, TrajectoryMetadata],
    present: Present,
    same: dict[int, int],
    accepted: Collection[bytes] = (),
) -> New:
    """Which task of the family each of the source is, and which of its episodes are new.

    An episode whose observations, actions and rewards are those of one that its task has already is a copy, so that a
    log that has grown may be imported again. One that goes on where an episode of its task ends is left out too: that
    one was imported before its recording had ended; so is one that is the beginning of an episode of its task. So are
    those that are `accepted` data of a target, by their digests: methods are tuned to them and scored on them. New ones
    are added to `present`, and tasks to `same`: what sources of one family were told before. Raises PipelineError if it
    cannot be told which task one is, and if its rewards were asked for differently before.
    """
    digests = {
        task: [_digests(columns_of(steps, 0, 0, asked), present) for steps in source.episodes(task)]
        for task in source.goals
    }
    _refuse_other_rewards(source, asked, digests, present)
    existing, begun = goals_of(known), _begun(digests, known, present)
    unknown = {task: found for task, found in digests.items() if task not in same and asked.task is None}
    sharing = same | _sharing(source, unknown, present.whole, begun, existing)
    tasks = assign(source.goals, existing, asked.task, sharing)
    same |= tasks
    new: dict[int, list[bool]] = {}
    longer = of_targets = 0
    for task in sorted(tasks):
        new[task] = []
        for each in digests[task]:
            there = present.whole.get(tasks[task], set())
            of_target = each.whole in accepted
            has = each.is_in(there) or each.whole in begun.get(tasks[task], ())
            of_targets += of_target
            longer += each.is_in(there) and each.whole not in there and not of_target
            new[task].append(not has and not of_target)
            if new[task][-1]:
                present.add(tasks[task], each, asked.reward)
    with_new = {task: of_task for task, of_task in new.items() if any(of_task)}
    kept = {task: of for task, of in tasks.items() if task in with_new}
    return New(source, asked, kept, with_new, longer, of_targets)


def _digests(steps: Columns, present: Present) -> _Episode:
    length = len(steps.step)
    first = next(beginning_digests(steps, [1]))
    shorter = sorted(each for each in present.lengths.get(first, ()) if each < length)
    *beginnings, whole = beginning_digests(steps, [*shorter, length])
    return _Episode(whole, motion_digest(steps), first, length, bool(steps.terminated[-1]), tuple(beginnings))


def _begun(
    digests: Mapping[int, Sequence[_Episode]], known: Mapping[Path, TrajectoryMetadata], present: Present
) -> Digests:
    """Task -> digests of beginnings of its episodes, as long as those of the source that did not end by themselves."""
    wanted: dict[bytes, set[int]] = {}
    for each in (each for of_task in digests.values() for each in of_task):
        if not each.terminated and present.longest.get(each.first, 0) > each.length:
            wanted.setdefault(each.first, set()).add(each.length)
    found: Digests = {}
    for path in known if wanted else ():
        for episode in episodes(path):
            lengths = wanted.get(next(beginning_digests(episode.steps, [1])), ())
            shorter = sorted(length for length in lengths if length < len(episode.steps.step))
            found.setdefault(episode.task, set()).update(beginning_digests(episode.steps, shorter))
    return found


def _refuse_other_rewards(
    source: Source, asked: Asked, digests: Mapping[int, Sequence[_Episode]], present: Present
) -> None:
    """Raise PipelineError for a task with half the motions of one whose rewards were asked for differently.

    By `--task` it may become another task: the same motions may be given other rewards there.
    """
    for task, own in digests.items():
        motions = {each.motion for each in own}
        for of, there in present.motions.items():
            shared = [there[motion] for motion in motions if motion in there and there[motion] != asked.reward]
            if asked.task in (None, of) and shared and 2 * len(shared) >= min(len(motions), len(there)):
                before = shared[0]
                said = f"{before:g}" if isinstance(before, float) else before
                was = "without --reward" if before is None else f"with --reward {said}"
                raise PipelineError(
                    f"{source.name}: task {task} has the observations and actions of task {of}, which was imported "
                    f"{was}: import it so again, or as another task by --task"
                )


def _sharing(
    source: Source, digests: Mapping[int, Sequence[_Episode]], present: Digests, begun: Digests, existing: Goals
) -> dict[int, int]:
    """Task of the source -> the task of the family that has half of its episodes, or of which it has half.

    An episode that has the beginning of one, or is the beginning of one, counts as that one. Fewer may be equal by
    chance, such as an episode that a robot stood through. A task with a goal has that of the family's. Raises
    PipelineError if it cannot be told which one it is.
    """
    found: dict[int, int] = {}
    for task, own in digests.items():
        goal = source.goals[task]
        different = {each.whole: each for each in own}.values()
        alike = [
            of
            for of, there in sorted(present.items())
            if (not goal or goal == existing.get(of))
            and 2 * sum(each.is_in(there) or each.whole in begun.get(of, ()) for each in different)
            >= min(len(different), len(there))
            > 0
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
