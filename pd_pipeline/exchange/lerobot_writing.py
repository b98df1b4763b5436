"""Writes a LeRobot data set, layout v3.0: see `lerobot` for the files."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pd_pipeline.exchange.lerobot import (
    ACTION,
    DONE,
    INFO,
    NUMBERS,
    REWARD,
    STATE,
    SUCCESS,
    TERMINATED,
)
from pd_pipeline.exchange.source import EXTRA
from pd_pipeline.storage import atomic_directory, write_json
from pd_pipeline.trajectories.episodes import Episode
from pd_pipeline.trajectories.schema import TrajectoryMetadata
from pd_pipeline.trajectories.validation import Columns

VERSION = "v3.0"
FILES_PER_CHUNK = 1000
FILE_MEGABYTES = 100
VIDEO_MEGABYTES = 500
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PER_FLUSH = 1000


def write(out: Path, metadata: TrajectoryMetadata, episodes: Iterable[Episode], fps: int) -> None:
    """Write a folder, one episode at a time; `fps` are the steps per second that the time stamps tell."""
    features = _features(metadata)
    with atomic_directory(out) as root:
        data, listing = _DataFiles(root, features), _EpisodeFile(root)
        totals = {name: _Statistics() for name in features}
        indices = {task: index for index, task in enumerate(sorted(metadata.goals))}
        index = 0
        for number, episode in enumerate(episodes):
            columns = _columns(episode.steps, number, index, indices[episode.task], fps)
            place = data.add(columns)
            own = {name: _Statistics() for name in features}
            for name, values in columns.items():
                own[name].add(values)
                totals[name].add(values)
            length = len(episode.steps.step)
            listing.add(number, _words(metadata, episode.task), length, place, index, own)
            index += length
        data.close()
        listing.close()
        _write_tasks(root, metadata)
        write_json(root / "meta/stats.json", {name: found.summary() for name, found in totals.items()})
        write_json(
            root / INFO,
            {
                "codebase_version": VERSION,
                "robot_type": metadata.family,
                "total_episodes": listing.count,
                "total_frames": index,
                "total_tasks": len(metadata.goals),
                "chunks_size": FILES_PER_CHUNK,
                "data_files_size_in_mb": FILE_MEGABYTES,
                "video_files_size_in_mb": VIDEO_MEGABYTES,
                "fps": fps,
                "splits": {"train": f"0:{listing.count}"},
                "data_path": DATA_PATH,
                "video_path": None,
                "features": features,
                EXTRA: json.loads(metadata.model_dump_json()),
            },
        )


def _features(metadata: TrajectoryMetadata) -> dict[str, dict[str, Any]]:
    def feature(dtype: str, size: int = 1) -> dict[str, Any]:
        return {"dtype": dtype, "shape": [size], "names": None}

    return {
        STATE: feature("float32", metadata.observation_size),
        ACTION: feature("float32", metadata.action_size),
        REWARD: feature("float32"),
        **{name: feature("bool") for name in (DONE, SUCCESS, TERMINATED)},
        NUMBERS: feature("int64"),
        "timestamp": feature("float32"),
        **{name: feature("int64") for name in ("frame_index", "episode_index", "index", "task_index")},
    }


def _columns(steps: Columns, number: int, index: int, task: int, fps: int) -> dict[str, np.ndarray]:
    length = len(steps.step)
    frames = np.arange(length)
    return {
        STATE: steps.observation,
        ACTION: steps.action,
        REWARD: steps.reward,
        DONE: steps.terminated | steps.truncated,
        SUCCESS: steps.success,
        TERMINATED: steps.terminated,
        NUMBERS: steps.episode_id,
        "timestamp": (frames / fps).astype(np.float32),
        "frame_index": frames,
        "episode_index": np.full(length, number),
        "index": index + frames,
        "task_index": np.full(length, task),
    }


def _words(metadata: TrajectoryMetadata, task: int) -> str:
    """What to do in a task, in words: its goal."""
    goal = metadata.goals[task]
    return str(goal["task"]) if goal.keys() == {"task"} else f"{metadata.family} task {task}: {json.dumps(goal)}"


class _DataFiles:
    """The rows of all episodes, one row group each, in files of a limited size."""

    def __init__(self, root: Path, features: dict[str, dict[str, Any]]):
        self._root = root
        fields = []
        for name, feature in features.items():
            kind = pa.bool_() if feature["dtype"] == "bool" else getattr(pa, feature["dtype"])()
            size = feature["shape"][0]  # LeRobot keeps a vector of one number as a number
            fields.append(pa.field(name, pa.list_(kind, size) if size > 1 else kind))
        self._schema = pa.schema(fields)
        self._number = -1
        self._writer: pq.ParquetWriter | None = None
        self._bytes = 0

    def add(self, columns: dict[str, np.ndarray]) -> tuple[int, int]:
        """Write an episode; returns (chunk, file)."""
        if self._writer is None or self._bytes > FILE_MEGABYTES << 20:
            self.close()
            self._number += 1
            path = self._root / DATA_PATH.format(**dict(zip(("chunk_index", "file_index"), self._place, strict=True)))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer, self._bytes = pq.ParquetWriter(path, self._schema, compression="snappy"), 0
        arrays = []
        for field in self._schema:
            values = columns[field.name]
            if pa.types.is_fixed_size_list(field.type):
                flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
            else:
                arrays.append(pa.array(values.reshape(-1), field.type))
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._bytes += table.nbytes
        assert self._writer is not None
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        return self._place

    @property
    def _place(self) -> tuple[int, int]:
        return divmod(self._number, FILES_PER_CHUNK)

    def close(self) -> None:
        """Finish the open file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _EpisodeFile:
    """The table of episodes."""

    def __init__(self, root: Path):
        self._path = root / EPISODES_PATH.format(chunk_index=0, file_index=0)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[dict[str, Any]] = []
        self.count = 0

    def add(
        self, number: int, task: str, length: int, place: tuple[int, int], index: int, found: dict[str, "_Statistics"]
    ) -> None:
        """Add an episode whose rows begin at `index` of all rows."""
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [task],
            "length": length,
            "data/chunk_index": place[0],
            "data/file_index": place[1],
            "dataset_from_index": index,
            "dataset_to_index": index + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for name, statistics in found.items():
            row |= {f"stats/{name}/{kind}": values for kind, values in statistics.summary().items()}
        self._waiting.append(row)
        self.count += 1
        if len(self._waiting) == EPISODES_PER_FLUSH:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_pylist(self._waiting)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="snappy")
        self._writer.write_table(table)
        self._waiting = []

    def close(self) -> None:
        """Finish the file."""
        if self._waiting:
            self._flush()
        if self._writer is not None:
            self._writer.close()


class _Statistics:
    """Smallest, largest, mean and standard deviation of each number of a feature, added up piece by piece."""

    def __init__(self) -> None:
        self._count = 0
        self._low = self._high = self._mean = self._squares = np.zeros(0)

    def add(self, values: np.ndarray) -> None:
        """Add rows (n,) or (n, size)."""
        rows = values.reshape(len(values), -1).astype(np.float64)
        mean, squares, count = rows.mean(0), ((rows - rows.mean(0)) ** 2).sum(0), len(rows)
        if not self._count:
            self._low, self._high, self._mean, self._squares = rows.min(0), rows.max(0), mean, squares
        else:  # of two parts the squares about the common mean
            total, apart = self._count + count, mean - self._mean
            self._low, self._high = np.minimum(self._low, rows.min(0)), np.maximum(self._high, rows.max(0))
            self._squares = self._squares + squares + apart**2 * self._count * count / total
            self._mean = self._mean + apart * count / total
        self._count += count

    def summary(self) -> dict[str, list[float]]:
        """In the form of meta/stats.json."""
        deviation = np.sqrt(self._squares / max(self._count, 1))
        values = {"min": self._low, "max": self._high, "mean": self._mean, "std": deviation}
        return {name: found.tolist() for name, found in values.items()} | {"count": [self._count]}


def _write_tasks(root: Path, metadata: TrajectoryMetadata) -> None:
    """Words and numbers of the tasks; as pandas reads it, the words are the index."""
    words = [_words(metadata, task) for task in sorted(metadata.goals)]
    table = pa.table({"task_index": pa.array(range(len(words)), pa.int64()), "task": words})
    types = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    described = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, (kind, numpy) in types.items()
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), root / "meta/tasks.parquet")
