"""A family without a simulator: a folder of recorded trajectories, declared in params.yaml."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from pydantic import Field

from pd_pipeline.config import MAX_HORIZON, MAX_TASKS, PARAMS_FILE
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import Family, FamilyParams, Policy
from pd_pipeline.trajectories.contents import contents
from pd_pipeline.trajectories.reading import read_metadata
from pd_pipeline.trajectories.schema import MAX_SIZE, Bound, Task, TrajectoryMetadata

TARGET_SHARE = 5
"""One task in so many is a target, by default."""


class RecordedParams(FamilyParams):
    """Where the trajectories are. What is left out is read off the metadata of the files."""

    data: str = Field(
        min_length=1,
        max_length=1000,
        description="folder of trajectory files (Parquet), relative to params.yaml's folder or absolute",
    )
    targets: tuple[Task, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_TASKS,
        description="tasks to tune for; null: the last fifth of the tasks in the files, at least one",
    )
    train_tasks: tuple[Task, ...] | None = Field(
        default=None, min_length=1, max_length=MAX_TASKS, description="tasks to pre-train on; null: all but the targets"
    )
    horizon: int | None = Field(  # type: ignore[assignment]
        default=None, gt=0, le=MAX_HORIZON, description="steps per episode at most; null: the largest of the files"
    )
    observation_size: int | None = Field(
        default=None, ge=1, le=MAX_SIZE, description="numbers per observation; null: as in the files"
    )
    action_low: tuple[Bound, ...] | None = Field(
        default=None, min_length=1, max_length=MAX_SIZE, description="lower bounds; null: the lowest of the files"
    )
    action_high: tuple[Bound, ...] | None = Field(
        default=None, min_length=1, max_length=MAX_SIZE, description="upper bounds; null: the highest of the files"
    )


class RecordedFamily(Family):
    """Tasks of which there are trajectories and no simulator.

        families:
          my_robot:
            environment: {data: data/imported/my_robot}    # written by `pd-pipeline import`, or by hand

    The folder holds Parquet files in the schema of `trajectories.schema`, in any number; each names its quality, its
    tasks and their goals. Stage trajectories checks them and joins those of one quality; they are never changed.

    Observation, action and horizon: those of the files, which must agree in their sizes; bounds and horizon are the
    widest of all files. Reward and success: as recorded. Tasks: all that the files name. The last fifth of them, at
    least one, are targets unless `targets` names others; a task that is added later can change what the rule gives.
    Methods are not rolled out but scored by their action loss on held-out trajectories of the targets.
    """

    Params = RecordedParams
    params: RecordedParams
    is_recorded = True

    @property
    def _where(self) -> str:
        return f"{PARAMS_FILE}: families.{self.name}.environment"

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.root / self.params.data

    @cached_property
    def metadata(self) -> dict[Path, TrajectoryMetadata]:
        """File -> its metadata. Raises PipelineError if there is none, or two contradict each other."""
        if not self.folder.is_dir():
            raise PipelineError(
                f"{self._where}.data: {self.folder}: no such folder: `pd-pipeline import SOURCE --family {self.name}` "
                f"writes data/imported/{self.name}"
            )
        found = {}
        for path in sorted(self.folder.glob("*.parquet")):
            if not path.name.startswith("."):  # what another process is writing
                found[path] = read_metadata(path)
        if not found:
            raise PipelineError(f"{self._where}.data: {self.folder} holds no Parquet files: import trajectories first")
        self._check_agreement(found)
        return found

    def _check_agreement(self, found: Mapping[Path, TrajectoryMetadata]) -> None:
        first, expected = next(iter(found.items()))
        goals: dict[int, tuple[Path, dict[str, Any]]] = {}
        for path, metadata in found.items():
            if metadata.family != self.name:
                raise PipelineError(f"{path}: holds trajectories of family '{metadata.family}', not of '{self.name}'")
            for name in ("observation_size", "action_size"):
                if (size := getattr(metadata, name)) != (wanted := getattr(expected, name)):
                    raise PipelineError(f"{path}: {name} is {size}, but {wanted} in {first}: give it another family")
            for task, goal in metadata.goals.items():
                before, known = goals.setdefault(task, (path, goal))
                if goal != known:
                    raise PipelineError(
                        f"{path}: task {task} has the goal {goal}, but {known} in {before}: give it another number"
                    )

    @cached_property
    def _goals(self) -> dict[int, dict[str, Any]]:
        """Task -> goal, for all tasks in the files, sorted."""
        return dict(sorted((task, goal) for found in self.metadata.values() for task, goal in found.goals.items()))

    @property
    def test_tasks(self) -> tuple[int, ...]:  # type: ignore[override]
        """The targets: those named in params.yaml, else the last fifth of all tasks, at least one."""
        if self.params.targets is not None:
            return self._known("targets", self.params.targets)
        tasks = [task for task in self._goals if task not in (self.params.train_tasks or ())]
        if len(self._goals) < 2:
            raise PipelineError(
                f"{self._where}.data: {self.folder} holds one task: pre-training and a target need at least two: "
                "import another"
            )
        return tuple(tasks[-max(1, len(self._goals) // TARGET_SHARE) :])

    @property
    def train_tasks(self) -> tuple[int, ...]:  # type: ignore[override]
        """The tasks to pre-train on: those named in params.yaml, else all but the targets."""
        if self.params.train_tasks is not None:
            return self._known("train_tasks", self.params.train_tasks)
        targets = self.test_tasks
        return tuple(task for task in self._goals if task not in targets)

    def _known(self, name: str, tasks: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(tasks)) < len(tasks):
            raise PipelineError(f"{self._where}.{name}: contains duplicates: {list(tasks)}")
        return tasks

    @property
    def qualities(self) -> tuple[str, ...]:  # type: ignore[override]
        """The qualities of the files."""
        return tuple(self.recordings)

    @property
    def recordings(self) -> dict[str, list[Path]]:
        """Quality -> its files."""
        found: dict[str, list[Path]] = {}
        for path, metadata in self.metadata.items():
            found.setdefault(metadata.quality, []).append(path)
        return found

    @cached_property
    def episode_lengths(self) -> dict[str, dict[int, np.ndarray]]:
        """Quality -> task -> steps of each of its episodes (m,). Reads the short columns of all files."""
        found: dict[str, dict[int, np.ndarray]] = {}
        for quality, paths in self.recordings.items():
            of_quality = found.setdefault(quality, {})
            for path in paths:
                for task, lengths in contents(path).lengths.items():
                    of_quality[task] = np.concatenate((of_quality.get(task, np.empty(0, np.int64)), lengths))
        return found

    @cached_property
    def has_success(self) -> bool:  # type: ignore[override]
        """Whether any recorded step is a success."""
        return any(contents(path).succeeds for path in self.metadata)

    @property
    def observation_size(self) -> int:  # type: ignore[override]
        """Width d_s of an observation."""
        return self.params.observation_size or next(iter(self.metadata.values())).observation_size

    @property
    def action_low(self) -> np.ndarray:  # type: ignore[override]
        """Lower bounds (d_a,) float32."""
        if self.params.action_low is not None:
            return np.array(self.params.action_low, np.float32)
        return np.min([found.action_low for found in self.metadata.values()], axis=0).astype(np.float32)

    @property
    def action_high(self) -> np.ndarray:  # type: ignore[override]
        """Upper bounds (d_a,) float32."""
        if self.params.action_high is not None:
            return np.array(self.params.action_high, np.float32)
        return np.max([found.action_high for found in self.metadata.values()], axis=0).astype(np.float32)

    @property
    def horizon(self) -> int:
        """The largest number of steps of an episode."""
        return self.params.horizon or max(found.horizon for found in self.metadata.values())

    def goal(self, task: int) -> dict[str, Any]:
        """The goal in the metadata of the files; may be empty."""
        return self._goals[task]

    def make(self, task: int) -> gymnasium.Env:
        """Raises PipelineError: there is no simulator."""
        raise PipelineError(f"family '{self.name}' has no simulator: it is a folder of recorded trajectories")

    def behavior(self, description: dict[str, Any]) -> Policy:
        """Raises PipelineError: nothing is collected."""
        raise PipelineError(
            f"families.{self.name}.behavior_policies: nothing is collected for recorded trajectories: remove this block"
        )

    def default_behaviors(self) -> dict[str, dict[str, Any]]:
        """None."""
        return {}

    def versions(self) -> dict[str, str]:
        """Those in the metadata of the files."""
        found: dict[str, set[str]] = {}
        for metadata in self.metadata.values():
            for package, version in metadata.versions.items():
                found.setdefault(package, set()).add(version)
        return {package: ", ".join(sorted(versions)) for package, versions in sorted(found.items())}
