"""Reading and writing trajectory files, whole or as a stream, always validated."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import Family
from pd_pipeline.storage import atomic_file
from pd_pipeline.trajectories.schema import METADATA_KEY, TrajectoryMetadata, arrow_schema, parse_metadata
from pd_pipeline.trajectories.seal import GET_AGAIN, Seal, check_group, open_seal, seal_file
from pd_pipeline.trajectories.validation import Columns, Validator, check_family, check_schema

ROWS_PER_BATCH = 1 << 14
BUFFER_BYTES = 1 << 20  # per column while streaming
SMALL_BYTES = 1 << 28  # a file without a seal up to this size is read unbuffered
MAX_COLUMN_DEPTH = 16  # lists inside lists
# what pyarrow raises on damaged files; MemoryError where a page claims to be larger than the machine's memory
DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, RecursionError)


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


def joined(parts: Sequence[Trajectories]) -> Trajectories:
    """The episodes of several data sets of one family, one data set after the other, with the first one's metadata."""
    if len(parts) == 1:
        return parts[0]  # without a copy
    shifts = np.cumsum([0, *(part.starts[-1] for part in parts)])
    starts = [part.starts[:-1] + shift for part, shift in zip(parts, shifts[:-1], strict=True)]
    columns = ("observations", "actions", "rewards", "returns_to_go", "success", "task_id", "episode_id")
    rows = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
    return Trajectories(metadata=parts[0].metadata, starts=np.concatenate([*starts, shifts[-1:]]), **rows)


def return_to_go(rewards: np.ndarray) -> np.ndarray:
    """Reverse cumulative sum of one episode's rewards (T,), summed in float64, as float32."""
    return np.cumsum(rewards[::-1], dtype=np.float64)[::-1].astype(np.float32)


class Opened(NamedTuple):
    """A trajectory file that was opened and passed its checks."""

    file: pq.ParquetFile
    metadata: TrajectoryMetadata
    seal: Seal | None
    """None: written by another program."""


def open_file(path: Path, family: Family | None = None, new_task: int | None = None) -> Opened:
    """Open a trajectory file and check its schema and metadata. Raises PipelineError.

    With a `family`, a file of another family, or one that contradicts it, is refused; `new_task` may be in it although
    the family does not know it.
    """
    if not path.exists():
        raise PipelineError(f"{path}: no such file")
    if not path.is_file():  # opening a pipe would wait for its writer
        raise PipelineError(f"{path}: not a regular file")
    with refusing(f"{path}: not a readable Parquet file, perhaps truncated"):
        seal = open_seal(path)
        # Pre-buffering would keep the whole file in memory, and so would unbuffered chunks of one large row group. With
        # a buffer, a damaged page takes as much memory as it claims; in a sealed file, damage is found before reading.
        buffered = seal is not None or path.stat().st_size > SMALL_BYTES
        file = pq.ParquetFile(
            path,
            pre_buffer=False,
            buffer_size=BUFFER_BYTES if buffered else 0,
            page_checksum_verification=True,
            schema_depth_limit=MAX_COLUMN_DEPTH,
        )
        schema = file.schema_arrow
        text = (schema.metadata or {}).get(METADATA_KEY)
        _check_layout(path, file, seal)
    if text is None:
        raise PipelineError(f"{path}: no '{METADATA_KEY.decode()}' metadata: not a trajectory file of this pipeline")
    metadata = parse_metadata(str(path), text)
    check_schema(str(path), schema, metadata)
    if family is not None:
        check_family(str(path), metadata, family, new_task)
    return Opened(file, metadata, seal)


def read_metadata(path: Path, family: Family | None = None, new_task: int | None = None) -> TrajectoryMetadata:
    """The metadata of a trajectory file that passed the checks of `open_file`. Raises PipelineError as that does."""
    with (opened := open_file(path, family, new_task)).file:
        return opened.metadata


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Turn pyarrow's errors on a damaged file into one line."""
    try:
        yield
    except PipelineError:
        raise
    except DAMAGE as error:
        raise PipelineError(f"{message}: {str(error) or type(error).__name__}") from None


def _check_layout(path: Path, file: pq.ParquetFile, seal: Seal | None) -> None:
    """Raise PipelineError where the counts of the footer contradict each other."""
    rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != file.metadata.num_rows:
        raise PipelineError(
            f"{path}: damaged: its footer claims {file.metadata.num_rows:,} rows, but {sum(rows):,} in row groups"
        )
    if seal is not None and len(seal.groups) != len(rows):
        raise PipelineError(
            f"{path}: damaged: {len(rows)} row groups, {len(seal.groups)} when it was sealed: {GET_AGAIN}"
        )


def stream(
    path: Path, tasks: Iterable[int] | None = None, family: Family | None = None, new_task: int | None = None
) -> Iterator[Columns]:
    """Yield the validated steps of a file, one batch at a time, in constant memory.

    With `tasks`, only the row groups that may hold one of them are read, and only their rows are yielded; order and
    uniqueness are then checked among these. Raises PipelineError at the first bad step, and as `open_file` does.
    """
    return _stream(path, open_file(path, family, new_task), None if tasks is None else np.fromiter(tasks, np.int64))


def _stream(path: Path, opened: Opened, wanted: np.ndarray | None) -> Iterator[Columns]:
    validator = Validator(str(path), opened.metadata)
    for columns in _batches(path, opened, wanted):
        kept = columns
        if wanted is not None:
            kept = columns.select(np.isin(columns.task_id, wanted))
        validator.feed(kept)
        yield kept
    validator.finish(wanted)


def _batches(path: Path, opened: Opened, wanted: np.ndarray | None) -> Iterator[Columns]:
    """The batches of the row groups that may hold a task of `wanted`, each group checked before it is read."""
    file, metadata, seal = opened
    names = [field.name for field in arrow_schema(metadata)]
    with file, refusing(f"{path}: damaged"):
        for group in range(file.num_row_groups):
            if wanted is not None and not _may_hold(file, group, wanted, trusted=seal is not None):
                continue
            if seal is not None:
                check_group(path, seal, file.metadata, group)
            rows = 0
            for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=names):
                rows += batch.num_rows
                yield Columns.from_batch(str(path), batch, metadata)
            if rows != (claimed := file.metadata.row_group(group).num_rows):
                raise PipelineError(f"{path}: damaged: row group {group} claims {claimed:,} rows but holds {rows:,}")


def _may_hold(file: pq.ParquetFile, group: int, tasks: np.ndarray, trusted: bool) -> bool:
    """Whether a row group may hold one of `tasks`: by its statistics if they are `trusted`, else by its task column.

    Damaged statistics could hide a task, and pyarrow ends the process where it cannot parse them.
    """
    if trusted:
        column = file.schema_arrow.get_field_index("task_id")
        found = file.metadata.row_group(group).column(column).statistics
        return not found or not found.has_min_max or bool(((tasks >= found.min) & (tasks <= found.max)).any())
    batches = file.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=["task_id"])
    return any(np.isin(batch.column(0).to_numpy(zero_copy_only=False), tasks).any() for batch in batches)


def read(
    path: Path, tasks: Iterable[int] | None = None, family: Family | None = None, new_task: int | None = None
) -> Trajectories:
    """Read a file, or only the episodes of `tasks`, into contiguous arrays. Raises PipelineError."""
    opened = open_file(path, family, new_task)
    batches = list(_stream(path, opened, None if tasks is None else np.fromiter(tasks, np.int64)))
    columns = {
        name: np.concatenate([getattr(batch, name) for batch in batches]) if batches else np.empty(0)
        for name in Columns.__dataclass_fields__
    }
    starts = np.flatnonzero(columns["step"] == 0)
    return Trajectories(
        opened.metadata,
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
    """Validate `batches` and write each as a row group, so that `path` appears complete and valid or not at all."""
    schema = arrow_schema(metadata)
    with atomic_file(path) as temporary:
        validator = Validator(str(path), metadata)
        with pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer:
            for columns in batches:
                for name, width in (("observation", metadata.observation_size), ("action", metadata.action_size)):
                    if (shape := getattr(columns, name).shape)[1:] != (width,):
                        raise PipelineError(f"{path}: {name} has shape {shape}, expected (steps, {width})")
                validator.feed(columns)
                writer.write_batch(_record_batch(columns, schema, metadata.quality))
        validator.finish()
        seal_file(temporary)


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
