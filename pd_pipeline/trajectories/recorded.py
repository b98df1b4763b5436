"""Stage trajectories for a family without a simulator: the user's files, checked and joined by quality."""

import heapq
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import Family
from pd_pipeline.progress import Progress
from pd_pipeline.storage import file_digest
from pd_pipeline.trajectories.contents import span
from pd_pipeline.trajectories.episodes import Episode, episodes, row_groups
from pd_pipeline.trajectories.reading import read_metadata, write
from pd_pipeline.trajectories.schema import Origin, TrajectoryMetadata, metadata_of
from pd_pipeline.trajectories.validation import Columns


def take(family: Family, out: Path, progress: Progress) -> None:
    """Write `out`/<quality>.parquet from the files of each quality, in constant memory; the files stay as they are.

    Every step is checked as `pd-pipeline validate` does. Raises PipelineError for a bad one, and for an episode that is
    in two files.
    """
    recordings = family.recordings
    for done, (quality, paths) in enumerate(recordings.items()):
        progress(f"trajectories {family.name}", done, len(recordings), quality)
        write(out / f"{quality}.parquet", _metadata(family, quality, paths), _groups(family, paths))
    progress(f"trajectories {family.name}", len(recordings), len(recordings))


def _metadata(family: Family, quality: str, paths: Sequence[Path]) -> TrajectoryMetadata:
    found: list[TrajectoryMetadata] = []
    origins: list[Origin] = []
    for path in paths:
        metadata = read_metadata(path, family)
        found.append(metadata)
        by_hand = Origin(source=path.name, format="parquet", digest=file_digest(path).hex())
        origins += metadata.origin or [by_hand]
    tasks = {task for metadata in found for task in metadata.goals}
    return metadata_of(family, quality, tasks, found[0].seed, tuple(origins))


def _groups(family: Family, paths: Sequence[Path]) -> Iterator[Columns]:
    """Batches of whole episodes of one task, sorted: a row group each."""
    merged = (
        episode
        for cluster in _overlapping(paths)
        for episode in heapq.merge(*(episodes(path, family) for path in cluster), key=lambda episode: episode[:2])
    )
    for _, of_task in groupby(_distinct(merged), key=lambda episode: episode.task):
        yield from row_groups(episode.steps for episode in of_task)


def _overlapping(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """The files in order, those together whose episodes lie between one another: only these are open at once."""
    spans = sorted((*span(path), path) for path in paths)
    cluster: list[Path] = []
    end = (-1, -1)
    for first, last, path in spans:
        if cluster and first > end:
            yield cluster
            cluster = []
        cluster.append(path)
        end = max(end, last)
    if cluster:
        yield cluster


def _distinct(merged: Iterator[Episode]) -> Iterator[Episode]:
    before: Episode | None = None
    for episode in merged:
        if before is not None and episode[:2] == before[:2]:
            raise PipelineError(
                f"{episode.path}: task {episode.task}, episode {episode.number} is in {before.path.name} too: give it "
                "another number, or remove one of the files"
            )
        before = episode
        yield episode
