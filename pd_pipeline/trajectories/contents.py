"""What a trajectory file holds, read from its short columns alone: the lengths of its episodes, and any success."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pd_pipeline.trajectories.reading import ROWS_PER_BATCH, open_file, refusing

COLUMNS = ["task_id", "step", "success"]


class Contents(NamedTuple):
    """The episodes of a file."""

    lengths: dict[int, np.ndarray]
    """Task -> steps of each of its episodes (m,), in the order of the file."""
    succeeds: bool
    """Whether any step is a success."""


def contents(path: Path) -> Contents:
    """Read the short columns of a file as a stream; its steps are not validated. Raises PipelineError."""
    opened = open_file(path)
    tasks, starts, rows, succeeds = [], [], 0, False
    with opened.file, refusing(f"{path}: damaged"):
        for batch in opened.file.iter_batches(ROWS_PER_BATCH, columns=COLUMNS):
            task, step, success = (batch.column(name).to_numpy(zero_copy_only=False) for name in COLUMNS)
            first = np.flatnonzero(step == 0)
            tasks.append(task[first])
            starts.append(first + rows)
            rows += batch.num_rows
            succeeds = succeeds or bool(success.any())
    of_task = np.concatenate(tasks) if tasks else np.empty(0, np.int32)
    lengths = np.diff(np.append(np.concatenate(starts) if starts else [], rows)).astype(np.int64)
    return Contents({int(task): lengths[of_task == task] for task in np.unique(of_task)}, succeeds)


def span(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(task, episode) of the first and of the last step of a file; -1 where it is empty. Raises PipelineError."""
    opened = open_file(path)
    ends = [(-1, -1), (-1, -1)]
    with opened.file, refusing(f"{path}: damaged"):
        groups = [g for g in range(opened.file.num_row_groups) if opened.file.metadata.row_group(g).num_rows]
        if groups:
            for place, (group, row) in enumerate(((groups[0], 0), (groups[-1], -1))):
                table = opened.file.read_row_group(group, columns=["task_id", "episode_id"])
                ends[place] = (int(table["task_id"].to_numpy()[row]), int(table["episode_id"].to_numpy()[row]))
    return ends[0], ends[1]


def last_episodes(path: Path) -> dict[int, int]:
    """Task -> the largest number of an episode of it in a file. Raises PipelineError."""
    opened = open_file(path)
    found: dict[int, int] = {}
    with opened.file, refusing(f"{path}: damaged"):
        for batch in opened.file.iter_batches(ROWS_PER_BATCH, columns=["task_id", "episode_id"]):
            tasks, numbers = (batch.column(i).to_numpy(zero_copy_only=False) for i in range(2))
            for task in np.unique(tasks).tolist():
                found[task] = max(found.get(task, -1), int(numbers[tasks == task].max()))
    return found
