"""Data sets of LeRobot, read in the layouts v2.0, v2.1 and v3.0 and written in v3.0, without videos.

    meta/info.json                          codebase_version, fps, totals, data_path, features (name -> dtype, shape)
    meta/tasks.parquet (v2: tasks.jsonl)    task_index, task: what to do, in words
    meta/episodes/chunk-000/file-000.parquet (v2: episodes.jsonl)
                                            per episode: length, tasks, where its rows are, statistics
    meta/stats.json                         statistics of all rows
    data/chunk-000/file-000.parquet (v2: episode_000000.parquet)
        observation.*, action, next.reward, next.done, next.success
        timestamp, frame_index, episode_index, index, task_index

An import finds the episodes by the columns of the data files alone, so that all layouts are read alike. An export adds
next.terminated and, in info.json, `pd_pipeline`; an import reads both.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange.source import EXTRA, Part, Source, Steps, refuse_discrete, stated_metadata
from pd_pipeline.storage import read_json
from pd_pipeline.trajectories.reading import DAMAGE, refusing

FORMAT = "lerobot"
INFO = "meta/info.json"
STATE, ACTION = "observation.state", "action"
REWARD, DONE, SUCCESS, TERMINATED = "next.reward", "next.done", "next.success", "next.terminated"
NUMBERS = "pd_pipeline.episode_id"
COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
PICTURES = ("image", "video")
BATCH = 1 << 14


class Place(NamedTuple):
    """Where the rows of an episode are."""

    file: int
    first: int
    length: int
    task: int
    number: int
    """Its episode_index."""


def detect(source: str) -> bool:
    """Whether a path is such a folder."""
    return (Path(source) / INFO).is_file()


def open_sources(source: str, without: tuple[str, ...]) -> "list[Source]":
    """The one data set of the folder. Raises PipelineError."""
    return [LeRobotSource(Path(source), without)]


class LeRobotSource(Source):
    """One folder."""

    format = FORMAT
    packages = ("pyarrow",)

    def __init__(self, root: Path, without: tuple[str, ...]):
        self.name, self._root = str(root), root
        info = read_json(root / INFO, ": not a LeRobot data set that can be read")
        version = str(info.get("codebase_version"))
        if not version.startswith(("v2.", "v3.")):
            raise PipelineError(f"{root / INFO}: codebase_version is {version}: v2.0, v2.1 and v3.0 can be imported")
        features = info.get("features")
        if not isinstance(features, dict) or not all(isinstance(each, dict) for each in features.values()):
            raise PipelineError(f"{root / INFO}: lists no features: not a LeRobot data set")
        self._data = sorted((root / "data").glob("chunk-*/*.parquet"))
        if not self._data:
            raise PipelineError(f"{root / 'data'}: holds no Parquet files of episodes")
        self.files = [file for file in (*self._data, *sorted((root / "meta").rglob("*"))) if file.is_file()]
        self.observation = _parts(features, "observation", without, first=STATE)
        self.removed = {part.name for part in _parts(features, "observation", ())} & {*without}
        self._action = _parts(features, ACTION, ())
        if self._action and self._action[0].name == ACTION:
            self._action = self._action[:1]  # what is beside it says the same in other terms
        if not self._action:
            refuse_discrete(self.name, _described(features, ACTION))
        if not self.observation:
            raise PipelineError(
                f"{self.name}: no observation is a vector of numbers: {_described(features, 'observation')}"
            )
        self.action_size = sum(part.size for part in self._action)
        self.has_reward, self.has_success = REWARD in features, SUCCESS in features
        self._ends = next((name for name in (TERMINATED, DONE) if name in features), None)
        read = {part.name for part in (*self.observation, *self._action)}
        read |= {REWARD, SUCCESS, DONE, TERMINATED, NUMBERS, *COUNTERS}
        self.left_out = [f"{name} ({feature.get('dtype')})" for name, feature in features.items() if name not in read]
        extra = info.get(EXTRA)
        self.stated = stated_metadata(f"{root / INFO}", None if extra is None else json.dumps(extra))
        self._numbered = NUMBERS in features
        self._places = self._index()
        self.episode_count = len(self._places)
        self.horizon = max(place.length for place in self._places)
        words = _tasks(root)
        present = sorted({place.task for place in self._places})
        self.goals = {task: {"task": words[task]} if task in words else {} for task in present}
        if self.stated is not None:  # task_index counts its tasks in order
            tasks = sorted(self.stated.goals)
            if present[-1] >= len(tasks):
                raise PipelineError(f"{self.name}: task_index {present[-1]}, but {INFO} states {len(tasks)} tasks")
            self._places = [place._replace(task=tasks[place.task]) for place in self._places]
            self.goals = {tasks[index]: self.stated.goals[tasks[index]] for index in present}
            self.horizon = self.stated.horizon
            self.bounds = tuple(np.array(b, np.float32) for b in (self.stated.action_low, self.stated.action_high))  # type: ignore[assignment]
        self.mapped = [f"{self._ends or 'the last row'} -> {'terminated' if self._ends else 'truncated'}"]
        if len(self._action) > 1:
            self.mapped.append(f"{' + '.join(map(str, self._action))} -> action")

    def _index(self) -> list[Place]:
        """The episodes, from the columns that number them; their rows lie together. Raises PipelineError."""
        found: list[Place] = []
        counters = ["episode_index", "frame_index", "task_index"]
        for number, path in enumerate(self._data):
            with refusing(f"{path}: damaged, or not LeRobot data"), pq.ParquetFile(path) as file:
                missing = [name for name in (*counters, *self._columns()) if name not in file.schema_arrow.names]
                if missing:
                    raise PipelineError(f"{path}: no column {missing[0]}")
                table = file.read(columns=counters)
            if any(table[name].null_count or not pa.types.is_integer(table[name].type) for name in counters):
                raise PipelineError(f"{path}: {', '.join(counters)} must be whole numbers, none of them empty")
            if not len(table):
                continue
            episode, frame, task = (table[name].to_numpy() for name in counters)
            starts = np.flatnonzero(np.append(True, np.diff(episode) != 0))
            for first, end in zip(starts, np.append(starts[1:], len(episode)), strict=True):
                if not np.array_equal(frame[first:end], np.arange(end - first)):
                    raise PipelineError(f"{path}: episode {episode[first]}: its frame_index does not count from 0 on")
                if (task[first:end] != task[first]).any():
                    raise PipelineError(f"{path}: episode {episode[first]} changes its task: split it where it does")
                place = Place(number, int(first), int(end - first), int(task[first]), int(episode[first]))
                found.append(place)
        numbers = [place.number for place in found]
        if len(set(numbers)) < len(numbers):
            raise PipelineError(f"{self.name}: an episode_index appears twice, or an episode is in two files")
        if not found:
            raise PipelineError(f"{self.name}: holds no steps")
        return sorted(found, key=lambda place: place.number)

    def _columns(self) -> list[str]:
        """What is read of each step."""
        columns = [part.name for part in (*self.observation, *self._action)]
        columns += [REWARD] * self.has_reward + [SUCCESS] * self.has_success + [NUMBERS] * self._numbered
        return columns + ([self._ends] if self._ends else [])

    def _episodes_of(self, task: int) -> Iterator[Steps]:
        reader = _Rows(self._data, self._columns())
        for number, place in enumerate(place for place in self._places if place.task == task):
            table = reader.read(place)
            if empty := [name for name in table.column_names if table[name].null_count]:
                raise PipelineError(f"{self._data[place.file]}: episode {place.number}: empty values in {empty[0]}")
            flags = {
                name: table[name].to_numpy().astype(bool)
                for name in (SUCCESS, self._ends)
                if name in table.column_names
            }
            yield Steps(
                int(table[NUMBERS][0].as_py()) if self._numbered else number,
                np.concatenate([_matrix(table, part) for part in self.observation], axis=1),
                np.concatenate([_matrix(table, part) for part in self._action], axis=1),
                table[REWARD].to_numpy().astype(np.float32) if self.has_reward else None,
                flags.get(SUCCESS),
                bool(self._ends and flags[self._ends][-1]),
            )
        reader.close()

    def _actions(self) -> Iterator[np.ndarray]:
        for path in self._data:
            with refusing(f"{path}: damaged"), pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH, columns=[part.name for part in self._action]):
                    table = pa.Table.from_batches([batch])
                    yield np.concatenate([_matrix(table, part) for part in self._action], axis=1)


class _Rows:
    """Reads rows of some Parquet files, one row group at a time."""

    def __init__(self, files: Sequence[Path], columns: list[str]):
        self._files, self._columns = files, columns
        self._number = self._group = -1  # of the open file, and of its row group in memory
        self._file: pq.ParquetFile | None = None
        self._starts = np.zeros(1, np.int64)  # (groups + 1,) rows before each row group
        self._rows: pa.Table | None = None

    def read(self, place: Place) -> pa.Table:
        """The rows of an episode."""
        path, end = self._files[place.file], place.first + place.length
        with refusing(f"{path}: damaged"):
            if self._number != place.file:
                self.close()
                self._number, self._file = place.file, pq.ParquetFile(path, pre_buffer=False)
                about = self._file.metadata
                rows = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
                self._starts = np.concatenate(([0], np.cumsum(rows)))
            starts, parts = self._starts, []
            for group in np.flatnonzero((starts[1:] > place.first) & (starts[:-1] < end)).tolist():
                first, last = max(place.first, int(starts[group])), min(end, int(starts[group + 1]))
                parts.append(self._read_group(group).slice(first - int(starts[group]), last - first))
            return pa.concat_tables(parts).combine_chunks()

    def _read_group(self, group: int) -> pa.Table:
        assert self._file is not None
        if self._group != group:
            self._group, self._rows = group, self._file.read_row_group(group, columns=self._columns)
        return self._rows

    def close(self) -> None:
        """Close the open file."""
        if self._file is not None:
            self._file.close()
        self._number, self._group, self._file, self._rows = -1, -1, None, None


def _matrix(table: pa.Table, part: Part) -> np.ndarray:
    """A column of numbers or of lists of them as (n, size) float32. Raises PipelineError."""
    column = table[part.name]
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values = column if pa.types.is_floating(column.type) else column.flatten()
    found = values.to_numpy(zero_copy_only=False).astype(np.float32)
    if found.size != len(column) * part.size:
        raise PipelineError(
            f"{part.name}: {found.size} numbers in {len(column)} rows, but {part.size} in each are stated"
        )
    return found.reshape(len(column), part.size)


def _parts(features: dict[str, Any], prefix: str, without: tuple[str, ...], first: str = "") -> list[Part]:
    """The features below a prefix that are vectors of real numbers, by name, `first` and the prefix before others."""
    found = []
    for name, feature in features.items():
        shape: Sequence[int] = feature.get("shape") or ()
        vector = str(feature.get("dtype")).startswith("float") and len(shape) == 1
        if (name == prefix or name.startswith(f"{prefix}.")) and vector and name not in without:
            found.append(Part(name, int(shape[0])))
    return sorted(found, key=lambda part: (part.name not in (first, prefix), part.name))


def _described(features: dict[str, Any], prefix: str) -> str:
    found = [f"{n} ({f.get('dtype')} {f.get('shape')})" for n, f in features.items() if n.startswith(prefix)]
    return ", ".join(found) or f"no feature '{prefix}'"


def _tasks(root: Path) -> dict[int, str]:
    """Task index -> what to do, in words. Raises PipelineError for a damaged file."""
    table, lines = root / "meta/tasks.parquet", root / "meta/tasks.jsonl"
    if table.is_file():
        with refusing(f"{table}: damaged"):
            rows = pq.read_table(table)
            name = next((name for name in rows.column_names if name != "task_index"), None)
            if name is None:
                raise PipelineError(f"{table}: no column with what the tasks are, in words")
            return dict(zip(rows["task_index"].to_pylist(), map(str, rows[name].to_pylist()), strict=True))
    if not lines.is_file():
        return {}
    try:
        entries = [json.loads(line) for line in lines.read_text().splitlines() if line.strip()]
        return {int(entry["task_index"]): str(entry["task"]) for entry in entries}
    except (*DAMAGE, KeyError) as error:
        raise PipelineError(f"{lines}: damaged: {error}") from None
