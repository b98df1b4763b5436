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
    metadata = open_file(path).metadata
    if metadata.family not in families:
        known = ", ".join(sorted(families)) or "none"
        raise PipelineError(f"{path}: unknown family '{metadata.family}': known are {known}; add it to params.yaml")
    episodes = steps = 0
    for batch in stream(path, family=families[metadata.family]):
        episodes += int((batch.step == 0).sum())
        steps += len(batch.step)
    return FileSummary(metadata, episodes, steps)
