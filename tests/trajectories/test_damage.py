"""Damaged trajectory files: refused in one line, quickly and in little memory, and never read as other values."""

import json
import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pd_pipeline.errors import MAX_MESSAGE, PipelineError
from pd_pipeline.trajectories import seal
from pd_pipeline.trajectories.reading import Trajectories, open_file, read, write
from pd_pipeline.trajectories.schema import METADATA_KEY
from pd_pipeline.trajectories.validation import Columns
from tests.builders import changed, columns, metadata
from tests.trajectories.test_reading import halves, raw

FLIPS = 240
ROWS = 1009  # rows of the file with falsified counts: a number that appears nowhere else in its footer
MOST_SECONDS, MOST_MEGABYTES = 5.0, 300.0


@pytest.fixture
def good(tmp_path: Path) -> Path:
    write(tmp_path / "good.parquet", metadata(), halves(columns(episodes=6, length=8)))
    return tmp_path / "good.parquet"


def equal(one: Trajectories, other: Trajectories) -> bool:
    arrays = [field.name for field in fields(one) if field.name != "metadata"]
    return one.metadata == other.metadata and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


def refusal(path: Path, tasks: list[int] | None = None) -> str:
    """The message that refuses a file: one printable line, quickly and in little memory."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PipelineError) as caught:
        read(path, tasks)
    assert time.monotonic() - began < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MEGABYTES
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) <= MAX_MESSAGE
    assert path.name in text
    return text


def flipped(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        damaged = bytearray(content)
        damaged[int(rng.integers(len(damaged)))] ^= int(rng.integers(1, 256))
        yield bytes(damaged)


def test_no_flipped_byte_is_read_as_another_value(good: Path) -> None:
    whole, refused = read(good), 0
    for damaged in flipped(good.read_bytes(), 0, FLIPS):
        good.write_bytes(damaged)
        try:
            assert equal(read(good), whole), "read as other values"
        except PipelineError:
            refusal(good)
            refused += 1
    assert refused > 0.95 * FLIPS, "nearly every byte matters"


@pytest.mark.parametrize(("part", "share"), [("pages", 0.25), ("footer", 0.6)])
def test_files_without_a_seal_are_refused_in_one_line_or_read(tmp_path: Path, part: str, share: float) -> None:
    """Files of other programs: pyarrow must not raise anything else or end the process.

    A byte of the footer that is not noticed changes nothing; one of a page may be a value, of which nothing is known.
    """
    path = raw(tmp_path / "raw.parquet", columns(episodes=6, length=8))
    content, whole = path.read_bytes(), [read(path), read(path, [1])]
    footer = int.from_bytes(content[-8:-4], "little") + 8
    begin, end = (len(content) - footer, len(content)) if part == "footer" else (0, len(content) - footer)
    refused = 0
    for index, middle in enumerate(flipped(content[begin:end], 1, FLIPS)):
        path.write_bytes(content[:begin] + middle + content[end:])
        tasks, expected = ([1] if index % 2 else None), whole[index % 2]
        try:
            found = read(path, tasks)
        except PipelineError:
            refusal(path, tasks)
            refused += 1
            continue
        assert found.metadata == expected.metadata
        assert found.task_id.tolist() == expected.task_id.tolist()
        assert found.observations.shape == expected.observations.shape
        assert all(np.isfinite(values).all() for values in (found.observations, found.actions, found.rewards))
        assert part == "pages" or equal(found, expected)
    assert share * FLIPS < refused < FLIPS


def test_other_readers_ignore_the_seal(good: Path) -> None:
    """Other programs can read the file, and their copies have no seal that could be wrong."""
    whole, table = read(good), pq.read_table(good)
    assert open_file(good).seal is not None
    pq.write_table(table, good)
    assert open_file(good).seal is None
    assert equal(read(good), whole)


def test_page_checksums_are_written_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pd_pipeline.trajectories.reading.seal_file", lambda path: None)
    path = tmp_path / "unsealed.parquet"
    write(path, metadata(), halves(columns(episodes=6, length=8)))
    assert open_file(path).seal is None
    content, page = path.read_bytes(), pq.ParquetFile(path).metadata.row_group(1).column(5)
    damaged = bytearray(content)
    damaged[page.data_page_offset + page.total_compressed_size - 3] ^= 1
    path.write_bytes(bytes(damaged))
    assert "CRC checksum" in refusal(path)


def test_undamaged_row_groups_of_a_damaged_sealed_file_can_be_read(good: Path) -> None:
    about = pq.ParquetFile(good).metadata
    damaged = bytearray(good.read_bytes())
    damaged[seal.first_byte(about, 1) + 20] ^= 1
    good.write_bytes(bytes(damaged))
    assert read(good, [0]).task_id.tolist() == [0] * 6
    assert "row group 1 is not what was written" in refusal(good, [1])


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "dangling link"])
def test_anything_but_a_regular_file_is_refused_before_it_is_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd.parquet"
    if kind == "pipe":
        os.mkfifo(path)  # opening it would wait forever
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "nowhere")
    wanted = "no such file" if kind == "dangling link" else "not a regular file"
    assert wanted in refusal(path)


def falsified(value: object) -> Callable[[dict], bytes]:
    """Metadata with some values changed."""
    assert isinstance(value, dict)
    return lambda about: json.dumps(about | value).encode()


METADATA: dict[str, tuple[Callable[[dict], bytes], str]] = {
    "nested": (lambda about: b'{"goals": ' + b"[" * 100_000, "nested too deeply"),
    "not UTF-8": (lambda about: b'{"family": "\xff\xfe"}', "is not JSON"),
    "control characters": (falsified({"family": "a\x1b[2J\x07b"}), "metadata.family"),
    "long name": (falsified({"family": "f" * 1_000_000}), "metadata.family"),
    "longer than any": (falsified({"family": "f" * 5_000_000}), "more than 4,000,000"),
    "a list": (lambda about: b"[1]", "is not a JSON object but list"),
    "a number": (lambda about: b"7", "is not a JSON object but int"),
    "empty": (lambda about: b"", "is not JSON"),
    "not a number": (lambda about: json.dumps(about | {"goals": {"0": {"x": float("nan")}}}).encode(), "not a finite"),
    "beyond float": (lambda about: json.dumps(about).replace("10", "1e999").encode(), "1e999 is not a finite"),
    "no width": (falsified({"observation_size": 0}), "metadata.observation_size"),
    "negative width": (falsified({"observation_size": -7}), "metadata.observation_size"),
    "width 2^31": (falsified({"observation_size": 2**31}), "metadata.observation_size"),
    "width 10^12": (falsified({"observation_size": 10**12}), "metadata.observation_size"),
    "horizon 0": (falsified({"horizon": 0}), "metadata.horizon"),
    "horizon 10^12": (falsified({"horizon": 10**12}), "metadata.horizon"),
    "no actions": (falsified({"action_low": [], "action_high": []}), "metadata.action_low"),
    "bounds of two lengths": (falsified({"action_low": [-1.0]}), "action_low has 1 numbers, action_high has 2"),
    "bounds without a range": (falsified({"action_low": [-1.0, 2.0]}), "action_low 2.0 is not below action_high 2.0"),
    "bounds beyond float32": (falsified({"action_high": [1.0, 1e300]}), "metadata.action_high.1"),
    "quality is a path": (falsified({"quality": "../../x"}), "metadata.quality"),
    "quality is a number": (falsified({"quality": 3}), "metadata.quality"),
    "negative seed": (falsified({"seed": -1}), "metadata.seed"),
    "enormous seed": (falsified({"seed": 10**30}), "metadata.seed"),
    "negative task": (falsified({"goals": {"-1": {}}}), "metadata.goals.-1"),
    "no tasks": (falsified({"goals": {}}), "metadata.goals"),
    "unknown key": (falsified({"horizn": 3}), "did you mean 'horizon'"),
    "another version": (falsified({"schema_version": "9\n9"}), "schema version"),
}


@pytest.mark.parametrize("case", METADATA)
def test_impossible_metadata_is_refused(tmp_path: Path, case: str) -> None:
    change, message = METADATA[case]
    path = tmp_path / "odd.parquet"
    table = pa.Table.from_batches([pq.ParquetFile(raw(path, columns())).read().to_batches()[0]])
    about = json.loads(table.schema.metadata[METADATA_KEY])
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: change(about)}), path)
    assert message in refusal(path)


def test_control_characters_in_names_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "odd\x1b[2J\nname.parquet"
    with pytest.raises(PipelineError) as caught:
        read(path)
    assert str(caught.value).isprintable()


COLUMNS: dict[str, tuple[Callable[[Columns], Columns], str]] = {
    "negative episodes": (lambda c: changed(c, "episode_id", slice(10, 15), -1), "step 0: episode_id is negative"),
    "negative task": (lambda c: changed(c, "task_id", slice(0, 10), -1), "step 0: task_id is negative"),
    "negative steps": (lambda c: changed(c, "step", slice(5, 10), np.arange(-5, 0)), "step -5: step is negative"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_negative_ids_and_steps_are_refused(tmp_path: Path, case: str) -> None:
    change, message = COLUMNS[case]
    assert message in refusal(raw(tmp_path / "odd.parquet", change(columns())))
    with pytest.raises(PipelineError, match=message):
        write(tmp_path / "new.parquet", metadata(), [change(columns())])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["expert"] * 19 + [None], "column 'quality' has empty values"),
        (["expert"] * 19 + ["medium"], "column 'quality' is not 'expert' throughout"),
        (["random"] * 20, "column 'quality' is not 'expert' throughout"),
    ],
)
def test_the_quality_column_must_match_the_metadata(tmp_path: Path, values: list, message: str) -> None:
    path = raw(tmp_path / "odd.parquet", columns())
    table = pq.read_table(path)
    coded = pa.array(values).dictionary_encode()
    pq.write_table(table.set_column(table.schema.get_field_index("quality"), "quality", coded), path)
    assert message in refusal(path)


def varint(value: int) -> bytes:
    """An integer in Thrift's compact protocol."""
    rest, written = ((value << 1) ^ (value >> 63)) & (2**64 - 1), b""
    while rest > 127:
        written, rest = written + bytes([rest & 127 | 128]), rest >> 7
    return written + bytes([rest])


@pytest.mark.parametrize("value", [10**12, -7, 2**31, 2**62, 0])
def test_impossible_counts_in_the_footer_are_refused(tmp_path: Path, value: int) -> None:
    """Rows, values and sizes, one at a time and all together."""
    path = raw(tmp_path / "odd.parquet", columns(tasks=(0,), episodes=1, length=ROWS), goals={0: {}}, horizon=ROWS)
    whole, content = read(path), path.read_bytes()
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = content[begin:-8]
    places = [place.start() for place in re.finditer(re.escape(varint(ROWS)), footer)]
    assert len(places) > 11
    changes = [footer[:at] + varint(value) + footer[at + len(varint(ROWS)) :] for at in places]
    refused = 0
    for damaged in (*changes, footer.replace(varint(ROWS), varint(value))):
        path.write_bytes(content[:begin] + damaged + len(damaged).to_bytes(4, "little") + b"PAR1")
        try:
            assert equal(read(path), whole), "pyarrow does not need these counts"
        except PipelineError:
            refusal(path)
            refused += 1
    assert refused >= 3


PAGE = re.compile(rb"\x15.\x15((?:[\x80-\xff])*.)\x15((?:[\x80-\xff])*.)", re.DOTALL)  # type, two sizes


@pytest.mark.parametrize("which", [1, 2], ids=["uncompressed", "compressed"])
@pytest.mark.parametrize("value", [10**12, -7, 2**31 - 1])
def test_impossible_page_sizes_are_refused(tmp_path: Path, which: int, value: int) -> None:
    path = raw(tmp_path / "odd.parquet", columns())
    content = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(0).column(10)  # the last page: nothing after it moves
    found = PAGE.match(content, column.data_page_offset)
    assert found
    path.write_bytes(content[: found.start(which)] + varint(value) + content[found.end(which) :])
    refusal(path)


def test_a_footer_longer_than_the_file_is_refused(good: Path) -> None:
    for length in (2**31 - 1, 2**32 - 1, good.stat().st_size):
        good.write_bytes(good.read_bytes()[:-8] + length.to_bytes(4, "little") + b"PAR1")
        assert "perhaps truncated" in refusal(good)


def test_parts_of_two_files_are_not_read_as_one(tmp_path: Path, good: Path) -> None:
    """Bytes that are valid in themselves, in another file."""
    other = tmp_path / "other.parquet"
    write(other, metadata(), halves(columns(episodes=6, length=8, seed=1)))
    ours, theirs = good.read_bytes(), other.read_bytes()
    about = pq.ParquetFile(good).metadata
    end = seal.first_byte(about, 1)
    assert end == seal.first_byte(pq.ParquetFile(other).metadata, 1), "or the parts do not fit together"
    good.write_bytes(theirs[:end] + ours[end:])
    assert "row group 0 is not what was written" in refusal(good)
    good.write_bytes(ours[: -len(ours) // 2] + theirs[-len(ours) // 2 :])
    refusal(good)


def test_any_division_into_row_groups_is_read(tmp_path: Path) -> None:
    """More rows than pyarrow puts into one row group by default, and empty row groups between others."""
    made = columns(episodes=4, length=5)
    path = tmp_path / "many.parquet"
    write(path, metadata(), [made.select(rows) for rows in (np.arange(0), np.arange(3), np.arange(3, 40))])
    assert read(path, [1]).task_id.tolist() == [1] * 4
    assert len(read(path).task_id) == 8
