"""The seal of a trajectory file: digests of everything that is read from it, so that no flipped bit goes unnoticed.

Parquet's own checksums leave out page headers and the footer. The seal lies between the last row group and the footer,
which readers skip:

    SHA-256 of each row group | SHA-256 of (those digests, their number, the footer) | their number, 4 bytes | MAGIC

Other tools drop it when they rewrite the file. A file without a seal is accepted.
"""

import hashlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow.parquet as pq

from pd_pipeline.errors import PipelineError

MAGIC = b"PDSEAL01"
DIGEST_BYTES = 32
PARQUET = b"PAR1"
MAX_FOOTER_BYTES = 1 << 27  # ten thousand row groups take a tenth of it
CHUNK_BYTES = 1 << 20
GET_AGAIN = "get it again from its source, or run the stage that makes it"


class Seal(NamedTuple):
    """Digests of the row groups, which end where the seal begins."""

    groups: tuple[bytes, ...]
    begin: int


def seal_file(path: Path) -> None:
    """Add a seal to a Parquet file that has none."""
    metadata = pq.read_metadata(path)
    with path.open("r+b") as file:
        begin, footer = _footer(path, file)
        starts = [first_byte(metadata, group) for group in range(metadata.num_row_groups)]
        groups = [_digest(file, *span) for span in zip(starts, [*starts[1:], begin], strict=True)]
        body = b"".join(groups)
        count = len(groups).to_bytes(4, "little")
        file.seek(begin)
        file.write(body + hashlib.sha256(body + count + footer).digest() + count + MAGIC + footer)


def open_seal(path: Path) -> Seal | None:
    """The seal of a file, None where it has none. Raises PipelineError where the footer does not match it."""
    with path.open("rb") as file:
        end, footer = _footer(path, file)
        end -= DIGEST_BYTES + 4 + len(MAGIC)
        if end < 0:
            return None
        file.seek(end)
        total, count, magic = file.read(DIGEST_BYTES), file.read(4), file.read(len(MAGIC))
        if magic != MAGIC:
            return None
        number = int.from_bytes(count, "little")
        begin = end - number * DIGEST_BYTES
        body = b""
        if begin >= 0:
            file.seek(begin)
            body = file.read(number * DIGEST_BYTES)
        if hashlib.sha256(body + count + footer).digest() != total:
            raise PipelineError(f"{path}: damaged: its footer is not the one that was written: {GET_AGAIN}")
    groups = tuple(body[i : i + DIGEST_BYTES] for i in range(0, len(body), DIGEST_BYTES))
    return Seal(groups, begin)


def check_group(path: Path, found: Seal, metadata: Any, group: int) -> None:
    """Raise PipelineError where a row group (of a pyarrow FileMetaData) differs from its digest in the seal."""
    last = group + 1 == len(found.groups)
    end = found.begin if last else first_byte(metadata, group + 1)
    with path.open("rb") as file:
        if _digest(file, first_byte(metadata, group), end) != found.groups[group]:
            raise PipelineError(f"{path}: damaged: row group {group} is not what was written: {GET_AGAIN}")


def first_byte(metadata: Any, group: int) -> int:
    """Where the bytes of a row group begin."""
    column = metadata.row_group(group).column(0)
    return column.data_page_offset if column.dictionary_page_offset is None else column.dictionary_page_offset


def _footer(path: Path, file: BinaryIO) -> tuple[int, bytes]:
    """Where the footer of a Parquet file begins, and its bytes up to the file's end. Raises PipelineError."""
    size = file.seek(0, 2)
    file.seek(max(size - 8, 0))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little") + 8
    if tail[4:] != PARQUET or length > min(size - len(PARQUET), MAX_FOOTER_BYTES):
        raise PipelineError(f"{path}: not a readable Parquet file, perhaps truncated: no footer at its end")
    file.seek(size - length)
    return size - length, file.read(length)


def _digest(file: BinaryIO, begin: int, end: int) -> bytes:
    """SHA-256 of the bytes of a file from `begin` to `end`."""
    total = hashlib.sha256()
    file.seek(begin)
    for position in range(begin, end, CHUNK_BYTES):
        total.update(file.read(min(CHUNK_BYTES, end - position)))
    return total.digest()
