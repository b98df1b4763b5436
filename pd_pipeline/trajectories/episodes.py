"""Whole episodes of a trajectory file, one at a time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pd_pipeline.families.base import Family
from pd_pipeline.trajectories.reading import stream
from pd_pipeline.trajectories.validation import Columns

ROWS_PER_GROUP = 1 << 16


class Episode(NamedTuple):
    """One whole episode of a file."""

    task: int
    number: int
    path: Path
    steps: Columns


def episodes(path: Path, family: Family | None = None, tasks: Iterable[int] | None = None) -> Iterator[Episode]:
    """The episodes of a file, or of some of its tasks, validated, each in memory of its own. Raises PipelineError."""
    parts: list[Columns] = []
    for batch in stream(path, tasks, family):
        bounds = np.unique([0, *np.flatnonzero(batch.step == 0), len(batch.step)]).tolist()
        for first, last in pairwise(bounds):
            if batch.step[first] == 0 and parts:
                yield _episode(path, parts)
                parts = []
            parts.append(_rows(batch, first, last))
    if parts:
        yield _episode(path, parts)


def _episode(path: Path, parts: list[Columns]) -> Episode:
    steps = joined(parts)
    return Episode(int(steps.task_id[0]), int(steps.episode_id[0]), path, steps)


def _rows(batch: Columns, first: int, last: int) -> Columns:
    return replace(batch, **{name: getattr(batch, name)[first:last] for name in Columns.__dataclass_fields__})


def row_groups(parts: Iterable[Columns]) -> Iterator[Columns]:
    """Whole episodes of one task, joined into row groups that end once they have ROWS_PER_GROUP steps."""
    waiting: list[Columns] = []
    rows = 0
    for steps in parts:
        waiting.append(steps)
        rows += len(steps.step)
        if rows >= ROWS_PER_GROUP:
            yield joined(waiting)
            waiting, rows = [], 0
    if waiting:
        yield joined(waiting)


def joined(parts: Sequence[Columns]) -> Columns:
    """Batches one after another, copied."""
    return Columns(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in Columns.__dataclass_fields__})
