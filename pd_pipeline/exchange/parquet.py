"""Trajectory files in this pipeline's own schema: one file, or a folder of them (see `trajectories.schema`)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pd_pipeline.exchange.source import Part, Source, Steps
from pd_pipeline.trajectories.contents import contents
from pd_pipeline.trajectories.episodes import episodes
from pd_pipeline.trajectories.reading import read_metadata
from pd_pipeline.trajectories.schema import METADATA_KEY

FORMAT = "parquet"


def detect(source: str) -> bool:
    """Whether a path is such a file, or a folder that holds one."""
    return any(_is_ours(file) for file in _files(source))


def _files(source: str) -> list[Path]:
    path = Path(source)
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []


def _is_ours(file: Path) -> bool:
    try:
        return METADATA_KEY in (pq.read_schema(file).metadata or {})
    except (OSError, ValueError):  # damaged, or no Parquet
        return False


def open_sources(source: str, without: tuple[str, ...]) -> "list[Source]":
    """One source per file. Raises PipelineError."""
    return [ParquetSource(file) for file in _files(source)]


class ParquetSource(Source):
    """One trajectory file."""

    format = FORMAT
    packages = ("pyarrow",)

    def __init__(self, path: Path):
        metadata, held = read_metadata(path), contents(path)
        self.name, self.files, self.stated = str(path), [path], metadata
        self.observation = [Part("observation", metadata.observation_size)]
        self.action_size = metadata.action_size
        self.bounds = (np.array(metadata.action_low, np.float32), np.array(metadata.action_high, np.float32))
        self.horizon, self.goals = metadata.horizon, dict(metadata.goals)
        self.episode_count = sum(len(lengths) for lengths in held.lengths.values())
        self.has_success = held.succeeds

    def _episodes_of(self, task: int) -> Iterator[Steps]:
        for episode in episodes(self.files[0], tasks=[task]):
            steps = episode.steps
            yield Steps(
                episode.number,
                steps.observation,
                steps.action,
                steps.reward,
                steps.success,
                bool(steps.terminated[-1]),
            )
