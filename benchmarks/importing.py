"""Memory of `pd-pipeline import`: the same for a data set of 2 GB as for one of 0.2 GB.

The data sets are in our own format, so that reading another program's files does not count. Each import is a separate
process. Speed is relative to pyarrow reading and writing the same file by row groups, with nothing checked.
"""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.children import child
from benchmarks.common import Figure, at_least, at_most, command, share_of
from benchmarks.streaming import write_file

CODE = """
from pathlib import Path
import pyarrow.parquet as pq
from pd_pipeline.exchange.importing import bring
from pd_pipeline.exchange.mapping import Asked
from pd_pipeline.progress import silent

source, root, started = sys.argv[1], Path(sys.argv[2]), time.perf_counter()
if sys.argv[3] == "import":
    bring(root, source, "robot", Asked(), None, None, silent, lambda _: None)
elif sys.argv[3] == "copy":
    file = pq.ParquetFile(source)
    with pq.ParquetWriter(root / "copy.parquet", file.schema_arrow, compression="zstd") as writer:
        for group in range(file.num_row_groups):
            writer.write_table(file.read_row_group(group))
"""


def imported(source: Path, how: str) -> dict[str, float]:
    """Import or copy a file, to a folder that is removed."""
    with tempfile.TemporaryDirectory(dir=source.parent) as root:
        return child(CODE, str(source), root, how)


def measure(quick: bool) -> tuple[list[Figure], dict[str, Any]]:
    """A small data set, a large one, and the large one copied."""
    small, large = (0.04, 0.2) if quick else (0.2, 2.0)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "synthetic.parquet"
        small_size = write_file(source, small)
        little = imported(source, "import")
        large_size = write_file(source, large)
        much, copied = imported(source, "import"), imported(source, "copy")
        idle = imported(source, "nothing")
    details = {
        "small data set, GB": small_size,
        "large data set, GB": large_size,
        "peak of the imports of Python alone, MB": idle["peak_mb"],
        "large data set, seconds": much["seconds"],
    }
    speed = large_size / much["seconds"], large_size / copied["seconds"]
    figures = [
        at_most(f"peak memory, {large:g} GB against {small:g} GB", much["peak_mb"], little["peak_mb"], "MB", goal=1.1),
        share_of("peak memory against the size of the file", much["peak_mb"], 1000 * large_size, "MB"),
        at_least("speed against a bare copy by pyarrow, nothing checked", *speed, "GB/s", goal=0.2),
    ]
    return figures, details


if __name__ == "__main__":
    command("importing", measure)
