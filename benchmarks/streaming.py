"""Memory of reading and validating a trajectory file as a stream: the same for 4 GB as for 0.4 GB.

Each file is written to a temporary folder, read in a separate process, and deleted. Speed is relative to reading the
same columns with pyarrow alone, without checks.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.children import child
from benchmarks.common import Figure, at_least, at_most, command, share_of
from benchmarks.synthetic import columns, metadata
from pd_pipeline.trajectories.reading import write
from pd_pipeline.trajectories.validation import Columns

HORIZON, TASKS, EPISODES_PER_GROUP = 200, 10, 200
BYTES_PER_ROW = 188  # 47 random or nearly random numbers of 4 bytes; the rest compresses away

CODE = """
import pyarrow.parquet as pq
from pathlib import Path
from pd_pipeline.trajectories.reading import BUFFER_BYTES, ROWS_PER_BATCH, stream

path = Path(sys.argv[1])
started = time.perf_counter()
if sys.argv[2] == "stream":
    for batch in stream(path):
        rows += len(batch.step)
elif sys.argv[2] == "bare":
    file = pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES)
    for batch in file.iter_batches(ROWS_PER_BATCH):
        rows += batch.num_rows
"""


def batches(groups: int) -> Iterator[Columns]:
    """Row groups of 200 episodes, task after task."""
    for group in range(groups):
        yield columns(group * TASKS // groups, group * EPISODES_PER_GROUP, EPISODES_PER_GROUP, HORIZON)


def write_file(path: Path, gigabytes: float) -> float:
    """Write about `gigabytes` of steps; returns the size of the file in GB."""
    groups = max(TASKS, round(gigabytes * 1e9 / (BYTES_PER_ROW * EPISODES_PER_GROUP * HORIZON)))
    write(path, metadata(TASKS, HORIZON), batches(groups))
    return path.stat().st_size / 1e9


def measure(quick: bool) -> tuple[list[Figure], dict[str, Any]]:
    """The small file, the large one, and the large one without validation."""
    small, large = (0.04, 0.2) if quick else (0.4, 4.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "synthetic.parquet"
        small_size = write_file(path, small)
        little = child(CODE, str(path), "stream")
        large_size = write_file(path, large)
        much, bare = child(CODE, str(path), "stream"), child(CODE, str(path), "bare")
        idle = child(CODE, str(path), "nothing")
    details = {
        "small file, GB": small_size,
        "large file, GB": large_size,
        "rows of the large file": int(much["rows"]),
        "peak of the imports alone, MB": idle["peak_mb"],
        "large file, GB/s": large_size / much["seconds"],
    }
    speed = much["rows"] / much["seconds"], bare["rows"] / bare["seconds"]
    figures = [
        at_most(f"peak memory, {large:g} GB against {small:g} GB", much["peak_mb"], little["peak_mb"], "MB", goal=1.1),
        share_of("peak memory against the size of the file", much["peak_mb"], 1000 * large_size, "MB"),
        at_least("speed against bare pyarrow, nothing checked", *speed, "rows/s", goal=0.3),
    ]
    return figures, details


if __name__ == "__main__":
    command("streaming", measure)
