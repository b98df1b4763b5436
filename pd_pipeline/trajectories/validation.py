"""Refuses bad trajectories, naming file, task, episode and step; used on every write and every read.

`Validator` takes batches in order and keeps only the last step and the set of tasks, so that a file larger than memory
can be checked as a stream. Return-to-go is checked forward: it must fall by the reward at every step and equal the
reward at the last one.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pd_pipeline.errors import PipelineError, one_line
from pd_pipeline.families.base import Family
from pd_pipeline.trajectories.schema import TrajectoryMetadata, arrow_schema, limits_of

ACTION_TOLERANCE = 1e-6
# Relative to the batch's largest return-to-go, at least 1. Float32 rounds at 6e-8 of it; a larger tolerance would let
# discounted returns pass.
RETURN_TOLERANCE = 1e-5


def check_schema(source: str, found: pa.Schema, metadata: TrajectoryMetadata) -> None:
    """Raise PipelineError where a column is missing or of another type or width."""
    for field in arrow_schema(metadata):
        index = found.get_field_index(field.name)
        if index < 0:
            raise PipelineError(f"{source}: column '{field.name}' is missing: expected {field.type}")
        if found.field(index).type != field.type:
            raise PipelineError(
                f"{source}: column '{field.name}' has type {found.field(index).type}, expected {field.type}"
            )


def check_family(source: str, metadata: TrajectoryMetadata, family: Family, new_task: int | None = None) -> None:
    """Raise PipelineError where a file is of another family, or its metadata contradicts `family`.

    `new_task` is allowed, although the family does not know it.
    """
    if metadata.family != family.name:
        raise PipelineError(f"{source}: holds trajectories of family '{metadata.family}', not of '{family.name}'")
    for name, value in limits_of(family).items():
        found = getattr(metadata, name)
        if found != value and not (family.is_recorded and _within(name, np.asarray(found), np.asarray(value))):
            raise PipelineError(
                f"{source}: {name} is {_short(found)}, but family '{family.name}' of this project has {_short(value)}"
            )
    if unknown := set(metadata.goals) - {*family.train_tasks, *family.test_tasks, new_task}:
        raise PipelineError(f"{source}: task {min(unknown)} is not among the tasks of family '{family.name}'")


def _within(name: str, found: np.ndarray, family: np.ndarray) -> bool:
    """Whether a file of a recorded family keeps to its bounds or horizon: these are the widest of all its files."""
    if found.shape != family.shape or name == "observation_size":
        return False
    found = found.astype(family.dtype if name == "horizon" else np.float32)  # the precision that bounds are kept in
    return bool((found >= family).all() if name == "action_low" else (found <= family).all())


def _short(value: object) -> str:
    return one_line(str(value), 200)


@dataclass(frozen=True)
class Columns:
    """One batch as numpy arrays, n rows."""

    task_id: np.ndarray  # (n,) int32
    episode_id: np.ndarray  # (n,) int64
    step: np.ndarray  # (n,) int32
    observation: np.ndarray  # (n, d_s) float32
    action: np.ndarray  # (n, d_a) float32
    reward: np.ndarray  # (n,) float32
    return_to_go: np.ndarray  # (n,) float32
    terminated: np.ndarray  # (n,) bool
    truncated: np.ndarray  # (n,) bool
    success: np.ndarray  # (n,) bool

    def select(self, rows: np.ndarray) -> "Columns":
        """The given rows: a mask (n,) or indices (k,)."""
        return Columns(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    @classmethod
    def from_batch(cls, source: str, batch: pa.RecordBatch, metadata: TrajectoryMetadata) -> "Columns":
        """Views into an Arrow batch (bit-packed booleans are unpacked). Raises PipelineError on nulls.

        The quality is not kept: every row must have that of the metadata.
        """
        for name in (*cls.__dataclass_fields__, "quality"):
            if batch.column(name).null_count:
                raise PipelineError(f"{source}: column '{name}' has empty values: every step needs one")

        quality = batch.column("quality")
        same = pc.fill_null(pc.equal(quality.dictionary, metadata.quality), False).to_numpy(zero_copy_only=False)
        if not same[quality.indices.to_numpy()].all():
            raise PipelineError(
                f"{source}: column 'quality' is not '{metadata.quality}' throughout, as the metadata says"
            )

        def flat(name: str) -> np.ndarray:
            return batch.column(name).to_numpy(zero_copy_only=False)

        def wide(name: str, width: int) -> np.ndarray:
            values = batch.column(name).flatten()
            if values.null_count:
                raise PipelineError(f"{source}: column '{name}' has empty values: every step needs {width} numbers")
            return values.to_numpy().reshape(-1, width)  # (n width,) -> (n, width)

        return cls(
            observation=wide("observation", metadata.observation_size),
            action=wide("action", metadata.action_size),
            **{n: flat(n) for n in cls.__dataclass_fields__ if n not in ("observation", "action")},
        )


class Validator:
    """Checks the steps of one file, batch after batch."""

    def __init__(self, source: str, metadata: TrajectoryMetadata):
        self.source = source
        self.metadata = metadata
        self._last: tuple[int, int, int, float, bool] | None = None  # task, episode, step, rtg - reward, ended
        self._tasks: set[int] = set()
        self._scale = 1.0
        self.episodes = 0
        self.rows = 0

    def _refuse(self, columns: Columns, bad: np.ndarray, message: str) -> None:
        """Raise PipelineError for the first bad row, if any."""
        rows = np.flatnonzero(bad)
        if len(rows):
            row = int(rows[0])
            more = f" ({len(rows):,} such steps in this part of the file)" if len(rows) > 1 else ""
            raise PipelineError(
                f"{self.source}: task {columns.task_id[row]}, episode {columns.episode_id[row]}, "
                f"step {columns.step[row]}: {message.format(row=row, **_shown(columns, row))}{more}"
            )

    def feed(self, columns: Columns) -> None:
        """Check the next batch. Raises PipelineError."""
        if not len(columns.step):
            return
        low, high = (np.asarray(bound, np.float32) for bound in (self.metadata.action_low, self.metadata.action_high))
        for name in ("task_id", "episode_id", "step"):
            self._refuse(columns, getattr(columns, name) < 0, f"{name} is negative")
        for name in ("observation", "action"):
            self._refuse(columns, ~np.isfinite(getattr(columns, name)).all(1), f"{name} is not finite: {{{name}}}")
        for name in ("reward", "return_to_go"):
            self._refuse(columns, ~np.isfinite(getattr(columns, name)), f"{name} is not finite: {{{name}}}")
        inside = np.clip(columns.action, low - ACTION_TOLERANCE, high + ACTION_TOLERANCE) == columns.action
        self._refuse(columns, ~inside.all(1), f"action {{action}} is outside [{low.tolist()}, {high.tolist()}]")
        known = np.isin(columns.task_id, list(self.metadata.goals))
        self._refuse(columns, ~known, "the task has no goal in the file's metadata")
        self._check_order(columns)
        self._tasks.update(np.unique(columns.task_id).tolist())
        self.rows += len(columns.step)

    def _check_order(self, columns: Columns) -> None:
        """Check: episodes sorted and unique, steps contiguous, return-to-go consistent, nothing after the end."""
        task, episode, step = (a.astype(np.int64) for a in (columns.task_id, columns.episode_id, columns.step))
        rtg, reward = columns.return_to_go.astype(np.float64), columns.reward.astype(np.float64)
        ended = columns.terminated | columns.truncated
        before = self._last or (int(task[0]) - 1, -1, 0, 0.0, False)
        previous_task = np.insert(task[:-1], 0, before[0])
        previous_episode = np.insert(episode[:-1], 0, before[1])
        previous_step = np.insert(step[:-1], 0, before[2])
        previous_rest = np.concatenate(([before[3]], (rtg - reward)[:-1]))  # the expected next return-to-go
        previous_ended = np.concatenate(([before[4]], ended[:-1]))

        new = (task != previous_task) | (episode != previous_episode)
        backward = (task < previous_task) | ((task == previous_task) & (episode < previous_episode))
        self._refuse(columns, new & backward, "episodes are not sorted by task and episode, or one appears twice")
        self._refuse(columns, new & (step != 0), "the episode does not begin at step 0, or begins twice")
        again = ~new & (step <= previous_step)
        self._refuse(columns, again, "the step already exists: duplicate episode, or steps out of order")
        self._refuse(columns, ~new & (step != previous_step + 1), "gap: the step before it is missing")
        self._refuse(columns, ~new & previous_ended, "the episode goes on after it terminated or was truncated")
        self._refuse(columns, step >= self.metadata.horizon, f"beyond the horizon of {self.metadata.horizon}")
        # of the largest return so far, not of this batch: rewards may be large on one side of a border between batches
        self._scale = max(self._scale, float(np.abs(rtg).max()))
        tolerance = RETURN_TOLERANCE * self._scale
        drift = np.abs(np.where(new, 0.0, rtg - previous_rest))
        wrong = "return_to_go {return_to_go} is not the previous one minus its reward"
        self._refuse(columns, drift > tolerance, wrong)
        # the return-to-go of an episode's last step is its reward; a rest is noticed when the next episode begins
        left_over = np.where(new, np.abs(previous_rest), 0.0)
        if self._last is None:
            left_over[0] = 0.0
        self._check_left_over(left_over, tolerance, previous_task, previous_episode, previous_step)
        self.episodes += int(new.sum())
        self._last = (int(task[-1]), int(episode[-1]), int(step[-1]), float(rtg[-1] - reward[-1]), bool(ended[-1]))

    def _check_left_over(
        self, left_over: np.ndarray, tolerance: float, task: np.ndarray, episode: np.ndarray, step: np.ndarray
    ) -> None:
        rows = np.flatnonzero(left_over > tolerance)
        if len(rows):
            row = rows[0]
            raise PipelineError(
                f"{self.source}: task {task[row]}, episode {episode[row]}, step {step[row]}: return_to_go of the last "
                f"step differs from its reward by {left_over[row]:g}: recompute it, or the episode is cut short"
            )

    def finish(self, tasks: np.ndarray | None = None) -> None:
        """Check the last episode, and that no task (of all, or of `tasks`) is without data. Raises PipelineError."""
        if self._last is not None:
            task, episode, step, rest, _ = self._last
            place = np.array([task]), np.array([episode]), np.array([step])
            self._check_left_over(np.abs([rest]), RETURN_TOLERANCE * self._scale, *place)
        if empty := set(self.metadata.goals if tasks is None else tasks.tolist()) - self._tasks:
            listed = "its goal is listed, but " if min(empty) in self.metadata.goals else ""
            raise PipelineError(f"{self.source}: task {min(empty)} is empty: {listed}the file has no episode of it")
        if self._last is None:
            raise PipelineError(f"{self.source}: holds no steps")


def _shown(columns: Columns, row: int) -> dict[str, str]:
    """The values of one row, short enough for an error line."""
    return {
        name: np.array2string(np.asarray(getattr(columns, name)[row]), precision=4, threshold=8)
        for name in ("observation", "action", "reward", "return_to_go")
    }
