"""Trajectory files: round trip, streaming, and every refusal with the place of the error."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pd_pipeline.errors import PipelineError
from pd_pipeline.trajectories import reading
from pd_pipeline.trajectories.reading import Trajectories, joined, read, return_to_go, stream, write
from pd_pipeline.trajectories.schema import METADATA_KEY, arrow_schema
from pd_pipeline.trajectories.validation import Columns, Validator
from tests.builders import changed, columns, metadata


def halves(made: Columns) -> list[Columns]:
    """The two tasks as two batches, as `collect` writes them."""
    middle = len(made.step) // 2
    rows = np.arange(len(made.step))
    return [made.select(rows[:middle]), made.select(rows[middle:])]


def raw(path: Path, made: Columns, **meta: object) -> Path:
    """Write without validation, as a faulty program would."""
    about = metadata(**meta)
    schema = arrow_schema(about)
    with pq.ParquetWriter(path, schema) as writer:
        writer.write_batch(reading._record_batch(made, schema, about.quality))
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    write(tmp_path / "good.parquet", metadata(), halves(columns()))
    return tmp_path / "good.parquet"


def test_round_trip(good: Path) -> None:
    made, data = columns(), read(good)
    assert data.metadata == metadata()
    np.testing.assert_array_equal(data.observations, made.observation)
    np.testing.assert_array_equal(data.actions, made.action)
    np.testing.assert_array_equal(data.rewards, made.reward)
    np.testing.assert_array_equal(data.returns_to_go, made.return_to_go)
    np.testing.assert_array_equal(data.success, made.success)
    assert data.observations.dtype == data.actions.dtype == data.rewards.dtype == np.float32
    assert data.starts.tolist() == [0, 5, 10, 15, 20]
    assert data.task_id.tolist() == [0, 0, 1, 1]
    assert data.episode_id.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(data.episode_returns, made.reward.reshape(4, 5).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(data.episode_success, made.success.reshape(4, 5).any(1))


def test_columns_and_their_types(good: Path) -> None:
    schema = pq.read_schema(good)
    assert [(f.name, str(f.type)) for f in schema] == [
        ("task_id", "int32"),
        ("episode_id", "int64"),
        ("step", "int32"),
        ("observation", "fixed_size_list<element: float>[3]"),
        ("action", "fixed_size_list<element: float>[2]"),
        ("reward", "float"),
        ("return_to_go", "float"),
        ("terminated", "bool"),
        ("truncated", "bool"),
        ("success", "bool"),
        ("quality", "dictionary<values=string, indices=int32, ordered=0>"),
    ]
    about = json.loads(schema.metadata[METADATA_KEY])
    assert about["family"] == "point_robot"
    assert about["goals"]["1"] == {"position": [1.0]}
    assert pq.read_table(good)["quality"].to_pylist() == ["expert"] * 20


def test_one_zstd_row_group_per_task(good: Path) -> None:
    about = pq.ParquetFile(good).metadata
    assert about.num_row_groups == 2
    assert about.row_group(0).column(3).compression == "ZSTD"


def test_equal_data_gives_equal_bytes(tmp_path: Path, good: Path) -> None:
    write(tmp_path / "again.parquet", metadata(), halves(columns()))
    assert (tmp_path / "again.parquet").read_bytes() == good.read_bytes()


def test_joined_keeps_every_episode_in_order(good: Path) -> None:
    data = read(good)
    count = len(data.task_id)
    both = joined([data.select(np.array([1, 0])), data])
    expected = data.select(np.array([1, 0, *range(count)]))
    for name in Trajectories.__dataclass_fields__:
        if name != "metadata":
            np.testing.assert_array_equal(getattr(both, name), getattr(expected, name))
    assert joined([data]) is data


def test_select_keeps_episodes_whole_and_in_the_given_order(good: Path) -> None:
    data = read(good)
    picked = data.select(np.array([3, 0]))
    assert picked.task_id.tolist() == [1, 0]
    np.testing.assert_array_equal(picked.observations[:5], data.observations[15:])
    np.testing.assert_array_equal(picked.rewards[5:], data.rewards[:5])
    assert picked.starts.tolist() == [0, 5, 10]


def test_streaming_equals_reading_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch boundaries lie inside episodes."""
    path = tmp_path / "many.parquet"
    write(path, metadata(), halves(columns(episodes=20, length=7)))
    data = read(path)
    monkeypatch.setattr(reading, "ROWS_PER_BATCH", 16)
    batches = list(stream(path))
    assert len(batches) > 15
    assert max(len(batch.step) for batch in batches) == 16
    np.testing.assert_array_equal(np.concatenate([b.observation for b in batches]), data.observations)
    np.testing.assert_array_equal(np.concatenate([b.return_to_go for b in batches]), data.returns_to_go)
    again = read(path)
    np.testing.assert_array_equal(again.starts, data.starts)


def test_reading_some_tasks_reads_only_their_row_groups(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = pq.ParquetFile.iter_batches

    def spy(self: pq.ParquetFile, *args: object, **kwargs: object):
        asked.append(kwargs["row_groups"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    data = read(good, [1])
    assert asked == [[1]]
    assert data.task_id.tolist() == [1, 1]
    np.testing.assert_array_equal(data.rewards, columns().reward[10:])


def test_tasks_within_one_row_group_are_separated(tmp_path: Path) -> None:
    write(tmp_path / "one.parquet", metadata(), [columns()])
    assert read(tmp_path / "one.parquet", [1]).task_id.tolist() == [1, 1]


def test_an_absent_task_is_refused(good: Path) -> None:
    with pytest.raises(PipelineError, match=r"good\.parquet: task 7 is empty"):
        read(good, [0, 7])


rewards = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e4, 1e4, width=32))


@given(rewards)
def test_return_to_go_is_the_sum_of_the_remaining_rewards(reward: np.ndarray) -> None:
    expected = [reward[i:].astype(np.float64).sum() for i in range(len(reward))]
    found = return_to_go(reward)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-3)


@given(rewards)
def test_return_to_go_falls_by_the_reward(reward: np.ndarray) -> None:
    found = return_to_go(reward).astype(np.float64)
    assert found[-1] == reward[-1]
    scale = max(1.0, float(np.abs(found).max()))
    np.testing.assert_allclose(found[:-1] - reward[:-1], found[1:], atol=1e-6 * scale)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 10), min_size=1, max_size=8), st.integers(0, 2**16), st.floats(1e-3, 1e4))
def test_correct_returns_to_go_of_any_magnitude_are_accepted(lengths: list[int], seed: int, scale: float) -> None:
    """Long sums of any magnitude: rounding never looks like a wrong return-to-go."""
    import tempfile

    rng = np.random.default_rng(seed)
    reward = [(scale * rng.normal(size=n)).astype(np.float32) for n in lengths]
    base = columns(tasks=(0,), episodes=1, length=sum(lengths))
    step = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    made = replace(
        base,
        step=step,
        episode_id=np.repeat(np.arange(len(lengths)), lengths),
        reward=np.concatenate(reward),
        return_to_go=np.concatenate([return_to_go(r) for r in reward]),
        truncated=np.append(step[1:] == 0, True),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.parquet"
        write(path, metadata(goals={0: {}}), [made])
        assert read(path).lengths.tolist() == lengths


# rows of `columns()`: task 0 episodes 0 and 1 in rows 0-4 and 5-9, task 1 in 10-14 and 15-19
BAD: dict[str, tuple[Callable[[Columns], Columns], str]] = {
    "NaN observation": (
        lambda c: changed(c, "observation", (12, 1), np.nan),
        "task 1, episode 0, step 2: observation is not finite: .*nan",
    ),
    "infinite action": (
        lambda c: changed(c, "action", (7, 0), np.inf),
        "task 0, episode 1, step 2: action is not finite",
    ),
    "NaN reward": (lambda c: changed(c, "reward", 3, np.nan), "task 0, episode 0, step 3: reward is not finite: nan"),
    "NaN return-to-go": (
        lambda c: changed(c, "return_to_go", 19, np.nan),
        "task 1, episode 1, step 4: return_to_go is not finite",
    ),
    "action out of bounds": (
        lambda c: changed(c, "action", (16, 0), 1.01),
        r"task 1, episode 1, step 1: action \[1\.01 .*\] is outside \[\[-1\.0, -2\.0\], \[1\.0, 2\.0\]\]",
    ),
    "several bad steps": (
        lambda c: changed(c, "action", (slice(16, 19), 1), -2.5),
        r"task 1, episode 1, step 1: action .* \(3 such steps in this part of the file\)",
    ),
    "gap in the steps": (
        lambda c: c.select(np.delete(np.arange(20), 8)),
        "task 0, episode 1, step 4: gap: the step before it is missing",
    ),
    "missing first step": (
        lambda c: c.select(np.delete(np.arange(20), 5)),
        "task 0, episode 1, step 1: the episode does not begin at step 0",
    ),
    "missing last step": (
        lambda c: c.select(np.delete(np.arange(20), 9)),
        "task 0, episode 1, step 3: return_to_go of the last step differs from its reward",
    ),
    "missing last step of the file": (
        lambda c: c.select(np.arange(19)),
        "task 1, episode 1, step 3: return_to_go of the last step differs from its reward",
    ),
    "wrong return-to-go": (
        lambda c: changed(c, "return_to_go", 7, c.return_to_go[7] + 0.01),
        "task 0, episode 1, step 2: return_to_go .* is not the previous one minus its reward",
    ),
    "wrong return-to-go at the first step": (
        lambda c: changed(c, "return_to_go", 10, 99.0),
        "task 1, episode 0, step 1: return_to_go",
    ),
    "return-to-go shifted as a whole": (
        lambda c: changed(c, "return_to_go", slice(10, 15), c.return_to_go[10:15] + 1),
        "task 1, episode 0, step 4: return_to_go of the last step differs from its reward by 1",
    ),
    "duplicate episode": (
        lambda c: c.select(np.concatenate((np.arange(10), np.arange(5, 10), np.arange(10, 20)))),
        "task 0, episode 1, step 0: the step already exists: duplicate episode",
    ),
    "duplicate episode later": (
        lambda c: c.select(np.concatenate((np.arange(10), np.arange(5), np.arange(10, 20)))),
        "task 0, episode 0, step 0: episodes are not sorted by task and episode, or one appears twice",
    ),
    "duplicate step": (
        lambda c: c.select(np.concatenate((np.arange(8), np.arange(7, 20)))),
        "task 0, episode 1, step 2: the step already exists",
    ),
    "unsorted tasks": (
        lambda c: c.select(np.concatenate((np.arange(10, 20), np.arange(10)))),
        "task 0, episode 0, step 0: episodes are not sorted",
    ),
    "goes on after its end": (
        lambda c: changed(c, "terminated", 6, True),
        "task 0, episode 1, step 2: the episode goes on after it terminated or was truncated",
    ),
    "empty task": (
        lambda c: c.select(np.arange(10)),
        "task 1 is empty: its goal is listed, but the file has no episode",
    ),
    "task without a goal": (
        lambda c: changed(c, "task_id", slice(15, 20), 5),
        "task 5, episode 1, step 0: the task has no goal in the file's metadata",
    ),
    "no steps": (lambda c: c.select(np.arange(0)), "task 0 is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_on_writing_and_the_old_file_is_kept(good: Path, case: str) -> None:
    spoil, message = BAD[case]
    before = good.read_bytes()
    with pytest.raises(PipelineError, match=rf"good\.parquet: {message}"):
        write(good, metadata(), [spoil(columns())])
    assert good.read_bytes() == before
    assert list(good.parent.iterdir()) == [good]


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("rows", [1 << 14, 3])
def test_bad_data_is_refused_on_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, rows: int) -> None:
    """Inside a batch and at its boundary."""
    spoil, message = BAD[case]
    monkeypatch.setattr(reading, "ROWS_PER_BATCH", rows)
    message = message.split(r" \(3 such")[0]
    with pytest.raises(PipelineError, match=rf"bad\.parquet: {message}"):
        read(raw(tmp_path / "bad.parquet", spoil(columns())))


def test_discounted_returns_are_refused(tmp_path: Path) -> None:
    made = columns(length=10)
    discounted = np.zeros(10)
    for part in range(0, 40, 10):
        rest = 0.0
        for i in reversed(range(10)):
            rest = made.reward[part + i] + 0.999 * rest
            discounted[i] = rest
        made.return_to_go[part : part + 10] = discounted
    with pytest.raises(PipelineError, match="return_to_go"):
        write(tmp_path / "x.parquet", metadata(), [made])


def test_an_episode_beyond_the_horizon_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="task 0, episode 0, step 4: beyond the horizon of 4"):
        write(tmp_path / "x.parquet", metadata(horizon=4), [columns()])


@pytest.mark.parametrize("name", ["observation", "action"])
def test_a_wrong_width_is_refused_on_writing(tmp_path: Path, name: str) -> None:
    made = columns()
    wide = np.concatenate([getattr(made, name)] * 2, axis=1)
    with pytest.raises(PipelineError, match=rf"x\.parquet: {name} has shape"):
        write(tmp_path / "x.parquet", metadata(), [replace(made, **{name: wide})])
    assert not (tmp_path / "x.parquet").exists()


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)
    return path


def retyped(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda t: t.set_column(t.schema.get_field_index(name), name, t[name].cast(kind))


SCHEMAS: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "wrong type": (retyped("reward", pa.float64()), "column 'reward' has type double, expected float"),
    "wrong integer": (retyped("task_id", pa.int64()), "column 'task_id' has type int64, expected int32"),
    "variable width": (
        retyped("observation", pa.list_(pa.float32())),
        r"column 'observation' has type list<.*>, expected fixed_size_list<.*>\[3\]",
    ),
    "wrong width": (
        lambda t: t.set_column(4, "action", pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(60, np.float32)), 3)),
        r"column 'action' has type fixed_size_list<.*>\[3\], expected fixed_size_list<.*>\[2\]",
    ),
    "missing column": (lambda t: t.drop_columns(["success"]), "column 'success' is missing: expected bool"),
    "empty values": (
        lambda t: t.set_column(5, "reward", pa.array([None] + [0.0] * 19, pa.float32())),
        "column 'reward' has empty values",
    ),
    "empty numbers inside": (
        lambda t: t.set_column(
            4,
            "action",
            pa.FixedSizeListArray.from_arrays(pa.array([None] + [0.0] * 39, pa.float32()), 2),
        ),
        "column 'action' has empty values: every step needs 2 numbers",
    ),
}


@pytest.mark.parametrize("case", SCHEMAS)
def test_wrong_schemas_are_refused(good: Path, case: str) -> None:
    change, message = SCHEMAS[case]
    with pytest.raises(PipelineError, match=rf"good\.parquet: {message}"):
        read(rewritten(good, change))


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -9])
def test_truncated_files_are_refused(good: Path, keep: int) -> None:
    good.write_bytes(good.read_bytes()[:keep])
    with pytest.raises(PipelineError, match=r"good\.parquet: not a readable Parquet file, perhaps truncated"):
        read(good)


def test_damaged_pages_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.parquet"
    write(path, metadata(), halves(columns(episodes=100, length=10)))
    damaged = bytearray(path.read_bytes())
    damaged[4:2000] = bytes(1996)
    path.write_bytes(bytes(damaged))
    with pytest.raises(PipelineError, match=r"large\.parquet: "):
        read(path)


def test_missing_files_and_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no such file"):
        read(tmp_path / "none.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    with pytest.raises(PipelineError, match="not a trajectory file of this pipeline"):
        read(tmp_path / "foreign.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "metadata 'pd_pipeline' is not JSON"),
        ("{}", r"metadata\.family"),
        (metadata().model_dump_json().replace('"horizon":10', '"horizon":"long"'), r"metadata\.horizon: .*'long'"),
        (metadata(schema_version=99).model_dump_json(), "schema version 99, but this program reads 1"),
    ],
)
def test_bad_metadata_is_refused(good: Path, text: str, message: str) -> None:
    table = pq.read_table(good).replace_schema_metadata({METADATA_KEY: text.encode()})
    pq.write_table(table, good)
    with pytest.raises(PipelineError, match=rf"{re.escape(str(good))}: {message}"):
        read(good)


def test_rewards_may_be_large_on_one_side_of_a_border_between_batches() -> None:
    """Returns in float32: what they lose beside a large reward is no error in the next batch either."""
    made = columns(tasks=(0,), episodes=1, length=6)
    rewards = np.array([0.0, 0.0, 1e4, 0.1, 0.2, 0.3], np.float32)
    returns = np.array([10000.6, 10000.6, 10000.6, 0.625, 0.5, 0.3], np.float32)
    made = replace(made, reward=rewards, return_to_go=returns)
    for borders in ([0, 6], [0, 3, 6], [0, 1, 4, 6]):
        validator = Validator("a", metadata())
        for start, end in pairwise(borders):
            validator.feed(made.select(np.arange(start, end)))
        assert validator.episodes == 1
