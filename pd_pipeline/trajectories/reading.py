"""Reading and writing trajectory files, whole or as a stream, always validated."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pd_pipeline.config import parse
from pd_pipeline.errors import PipelineError
from pd_pipeline.storage import atomic_file
from pd_pipeline.trajectories.schema import METADATA_KEY, SCHEMA_VERSION, TrajectoryMetadata, arrow_schema
from pd_pipeline.trajectories.validation import Columns, Validator, check_schema

ROWS_A_BATCH = 1 << 14
BUFFER_BYTES = 1 << 20  # of a column while streaming


@dataclass(frozen=True)
class Trajectories:
    """Whole episodes in contiguous arrays: n steps, m episodes; episode i is the rows starts[i] : starts[i + 1]."""

    metadata: TrajectoryMetadata
    observations: np.ndarray  # (n, d_s) float32
    actions: np.ndarray  # (n, d_a) float32
    rewards: np.ndarray  # (n,) float32
    returns_to_go: np.ndarray  # (n,) float32
    success: np.ndarray  # (n,) bool
    starts: np.ndarray  # (m + 1,) int64
    task_id: np.ndarray  # (m,) int32
    episode_id: np.ndarray  # (m,) int64

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode, (m,)."""
        return np.diff(self.starts)

    @property
    def episode_returns(self) -> np.ndarray:
        """Undiscounted return of each episode, (m,)."""
        return self.returns_to_go[self.starts[:-1]]

    @property
    def episode_success(self) -> np.ndarray:
        """Whether each episode was successful at any step, (m,)."""
        return np.maximum.reduceat(self.success, self.starts[:-1])

    def select(self, episodes: np.ndarray) -> "Trajectories":
        """The episodes of these indices, in this order."""
        lengths = self.lengths[episodes]
        starts = np.concatenate(([0], np.cumsum(lengths)))
        shift = np.repeat(self.starts[:-1][episodes] - starts[:-1], lengths)
        rows = np.arange(starts[-1]) + shift
        return Trajectories(
            self.metadata,
            self.observations[rows],
            self.actions[rows],
            self.rewards[rows],
            self.returns_to_go[rows],
            self.success[rows],
            starts,
            self.task_id[episodes],
            self.episode_id[episodes],
        )


def return_to_go(rewards: np.ndarray) -> np.ndarray:
    """Reverse cumulative sum of one episode's rewards (T,), summed in float64, as float32."""
    return np.cumsum(rewards[::-1], dtype=np.float64)[::-1].astype(np.float32)


def open_file(path: Path) -> tuple[pq.ParquetFile, TrajectoryMetadata]:
    """Open a trajectory file and check its schema. Raises PipelineError."""
    try:
        # pre-buffering would keep the whole file in memory, and so would unbuffered chunks of one large row group
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES)
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise PipelineError(f"{path}: not a readable Parquet file, truncated perhaps: {error}") from None
    text = (file.schema_arrow.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise PipelineError(f"{path}: no '{METADATA_KEY.decode()}' metadata: not a trajectory file of this pipeline")
    try:
        metadata = TrajectoryMetadata.model_validate_json(text)
    except ValueError:
        import json

        try:
            values = json.loads(text)
        except ValueError as error:
            raise PipelineError(f"{path}: metadata '{METADATA_KEY.decode()}' is not JSON: {error}") from None
        metadata = parse(TrajectoryMetadata, values, f"{path}: metadata")
    if metadata.schema_version != SCHEMA_VERSION:
        raise PipelineError(f"{path}: schema version {metadata.schema_version}, this program reads {SCHEMA_VERSION}")
    check_schema(str(path), file.schema_arrow, metadata)
    return file, metadata


def stream(path: Path, tasks: Iterable[int] | None = None) -> Iterator[Columns]:
    """Yield the validated steps of a file, a batch at a time, in constant memory.

    `tasks` reads only the row groups that may hold one of them, and yields only their rows; order and uniqueness are
    then checked within what is read. Raises PipelineError at the first bad step.
    """
    file, metadata = open_file(path)
    validator = Validator(str(path), metadata)
    wanted = None if tasks is None else np.fromiter(tasks, np.int64)
    groups = list(range(file.num_row_groups)) if wanted is None else _groups_with(file, wanted)
    names = [field.name for field in arrow_schema(metadata)]
    try:
        for batch in file.iter_batches(ROWS_A_BATCH, row_groups=groups, columns=names):
            columns = Columns.from_batch(str(path), batch, metadata)
            if wanted is not None:
                kept = np.isin(columns.task_id, wanted)
                columns = Columns(**{n: getattr(columns, n)[kept] for n in Columns.__dataclass_fields__})
            validator.feed(columns)
            yield columns
    except (pa.ArrowInvalid, OSError) as error:
        raise PipelineError(f"{path}: damaged: {error}") from None
    validator.finish(wanted)


def _groups_with(file: pq.ParquetFile, tasks: np.ndarray) -> list[int]:
    """Row groups whose task range (Parquet statistics) holds one of `tasks`."""
    column = file.schema_arrow.get_field_index("task_id")
    groups = []
    for index in range(file.num_row_groups):
        statistics = file.metadata.row_group(index).column(column).statistics
        told = statistics is not None and statistics.has_min_max
        if not told or ((tasks >= statistics.min) & (tasks <= statistics.max)).any():
            groups.append(index)
    return groups


def read(path: Path, tasks: Iterable[int] | None = None) -> Trajectories:
    """Read a file, or the episodes of some tasks of it, into contiguous arrays. Raises PipelineError."""
    wanted = None if tasks is None else list(tasks)
    _, metadata = open_file(path)
    batches = list(stream(path, wanted))
    columns = {
        name: np.concatenate([getattr(batch, name) for batch in batches]) if batches else np.empty(0)
        for name in Columns.__dataclass_fields__
    }
    starts = np.flatnonzero(columns["step"] == 0)
    return Trajectories(
        metadata,
        columns["observation"],
        columns["action"],
        columns["reward"],
        columns["return_to_go"],
        columns["success"],
        np.append(starts, len(columns["step"])),
        columns["task_id"][starts],
        columns["episode_id"][starts],
    )


def write(path: Path, metadata: TrajectoryMetadata, batches: Iterable[Columns]) -> None:
    """Validate `batches` and write them, a row group each, so that `path` appears whole and good or not at all."""
    schema = arrow_schema(metadata)
    with atomic_file(path) as temporary:
        validator = Validator(str(path), metadata)
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for columns in batches:
                for name, width in (("observation", metadata.observation_size), ("action", metadata.action_size)):
                    if (shape := getattr(columns, name).shape)[1:] != (width,):
                        raise PipelineError(f"{path}: {name} has the shape {shape}, expected (steps, {width})")
                validator.feed(columns)
                writer.write_batch(_record_batch(columns, schema, metadata.quality))
        validator.finish()


def _record_batch(columns: Columns, schema: pa.Schema, quality: str) -> pa.RecordBatch:
    rows = len(columns.step)
    arrays = []
    for field in schema:
        if field.name == "quality":
            codes = pa.array(np.zeros(rows, np.int32))
            arrays.append(pa.DictionaryArray.from_arrays(codes, pa.array([quality])))
        elif field.name in ("observation", "action"):
            flat = np.ascontiguousarray(getattr(columns, field.name), np.float32).reshape(-1)
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), type=field.type))
        else:
            arrays.append(pa.array(getattr(columns, field.name), field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
