"""Accepting a trajectory file: good in itself, and of a family that this project knows."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import Family
from pd_pipeline.trajectories.reading import open_file, stream
from pd_pipeline.trajectories.schema import TrajectoryMetadata


class FileSummary(NamedTuple):
    """What an accepted file holds."""

    metadata: TrajectoryMetadata
    episodes: int
    steps: int


def check_file(path: Path, families: Mapping[str, Family]) -> FileSummary:
    """Check a whole file as it streams by, in constant memory. Raises PipelineError where it is not good."""
    _, metadata = open_file(path)
    if metadata.family not in families:
        known = ", ".join(sorted(families)) or "none"
        raise PipelineError(f"{path}: unknown family '{metadata.family}': known are {known}; add it to params.yaml")
    _check_family(path, metadata, families[metadata.family])
    episodes = steps = 0
    for batch in stream(path):
        episodes += int((batch.step == 0).sum())
        steps += len(batch.step)
    return FileSummary(metadata, episodes, steps)


def _check_family(path: Path, metadata: TrajectoryMetadata, family: Family) -> None:
    """Raise PipelineError where the file's metadata contradicts the family of that name."""
    expected = {
        "observation_size": family.observation_size,
        "action_low": tuple(family.action_low.tolist()),
        "action_high": tuple(family.action_high.tolist()),
        "horizon": family.horizon,
    }
    for name, value in expected.items():
        if getattr(metadata, name) != value:
            raise PipelineError(
                f"{path}: {name} is {getattr(metadata, name)}, but family '{family.name}' of this project has {value}"
            )
    if unknown := set(metadata.goals) - {*family.train_tasks, *family.test_tasks}:
        raise PipelineError(f"{path}: task {min(unknown)} is not among the tasks of family '{family.name}'")
