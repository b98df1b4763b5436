"""The user's files become one file per quality: checked, joined and left as they were."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import Family, load_family
from pd_pipeline.progress import silent
from pd_pipeline.storage import digest
from pd_pipeline.trajectories import episodes as module
from pd_pipeline.trajectories import recorded
from pd_pipeline.trajectories.contents import contents, span
from pd_pipeline.trajectories.episodes import Episode, episodes
from pd_pipeline.trajectories.reading import read, read_metadata, stream, write
from pd_pipeline.trajectories.recorded import take
from pd_pipeline.trajectories.validation import Columns
from tests.builders import changed
from tests.recorded_project import FAMILY, FOLDER, columns_of, metadata_of, record, record_project, short_episodes
from tests.trajectories.test_reading import raw


@pytest.fixture
def expert(trained_project: Path) -> Path:
    return trained_project / "data/trajectories/point_robot/expert.parquet"


@pytest.fixture
def root(trained_project: Path, tmp_path: Path) -> Path:
    return record_project(trained_project, tmp_path / "recorded")


def joined(root: Path, out: str = "out") -> Path:
    (root / out).mkdir()
    take(family(root), root / out, silent)
    return root / out / "expert.parquet"


def family(root: Path) -> Family:
    return load_family(FAMILY, {"data": FOLDER}, root)


def same(one: Columns, other: Columns) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in Columns.__dataclass_fields__)


def everything(path: Path) -> Columns:
    return module.joined(list(stream(path)))


def test_a_file_is_taken_as_it_is_and_stays(root: Path) -> None:
    before = digest(root / FOLDER)
    out = joined(root)
    assert same(everything(out), everything(root / FOLDER / "expert.parquet"))
    assert sorted(path.name for path in out.parent.iterdir()) == ["expert.parquet", "random.parquet"]
    assert digest(root / FOLDER) == before
    metadata = read_metadata(out)
    assert (metadata.family, metadata.quality, metadata.environment["data"]) == (FAMILY, "expert", FOLDER)
    (origin,) = metadata.origin
    assert (origin.source, origin.format) == ("expert.parquet", "parquet")
    assert len(origin.digest) == 64


def test_files_of_a_quality_are_joined_in_order(root: Path, expert: Path) -> None:
    """One more file of a task, one whose episodes lie between those of another, and one of a new task."""
    whole = columns_of(read(expert))
    (root / FOLDER / "expert.parquet").unlink()
    even = np.isin(whole.episode_id, (0, 2, 4))
    for name, rows in (("a", even), ("b", ~even)):
        write(root / FOLDER / f"{name}.parquet", metadata_of(expert), [whole.select(rows)])
    record(expert, root / FOLDER / "c.parquet", [1], shift=50)
    later = columns_of(read(expert, [0]))
    new = Columns(**(vars(later) | {"task_id": np.full_like(later.task_id, 8)}))
    write(root / FOLDER / "d.parquet", metadata_of(expert, goals={8: {}}), [new])
    out = joined(root)
    data = read(out)
    assert np.unique(data.task_id).tolist() == [0, 1, 2, 3, 4, 5, 8]
    assert data.episode_id[data.task_id == 1].tolist() == [*range(7), *range(50, 57)]
    made = everything(out)
    assert same(made.select((made.task_id < 8) & (made.episode_id < 50)), whole)
    assert {origin.source for origin in read_metadata(out).origin} == {f"{name}.parquet" for name in "abcd"}


def test_a_row_group_holds_one_task(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_PER_GROUP", 30)
    file = pq.ParquetFile(joined(root))
    assert file.num_row_groups > 12
    for group in range(file.num_row_groups):
        rows = file.read_row_group(group, columns=["task_id", "step"])
        assert len(set(rows["task_id"].to_pylist())) == 1
        assert rows["step"][0].as_py() == 0, "of whole episodes"
        assert rows.num_rows <= 36


def test_only_files_that_overlap_are_open_together(root: Path, expert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 9):
        record(expert, root / FOLDER / f"{number}.parquet", [5], shift=100 * number)
    open_now: set[Path] = set()
    most = 0
    real = episodes

    def watched(path: Path, of: Family | None = None) -> Iterator[Episode]:
        nonlocal most
        for episode in real(path, of):
            open_now.add(path)
            most = max(most, len(open_now))
            yield episode
        open_now.discard(path)

    monkeypatch.setattr(recorded, "episodes", watched)
    assert len(read(joined(root), [5]).task_id) == 9 * 6
    assert most == 1


def test_an_episode_in_two_files_is_refused(root: Path, expert: Path) -> None:
    record(expert, root / FOLDER / "again.parquet", [3])
    with pytest.raises(PipelineError, match=r"task 3, episode 0 is in (again|expert)\.parquet too: give it another"):
        joined(root)


def test_a_bad_step_is_refused_with_its_place(root: Path, expert: Path) -> None:
    bad = changed(columns_of(read(expert, [0]), 100), "observation", (17, 1), np.nan)
    values = metadata_of(expert, [0]).model_dump()
    raw(root / FOLDER / "bad.parquet", bad, **values)
    with pytest.raises(PipelineError, match=r"bad\.parquet: task 0, episode 101, step 5: observation is not finite"):
        joined(root)


def test_episodes_are_whole_across_batches(root: Path, expert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pd_pipeline.trajectories.reading.ROWS_PER_BATCH", 5)
    found = list(episodes(root / FOLDER / "expert.parquet"))
    data = read(expert)
    assert [(e.task, e.number) for e in found] == list(
        zip(data.task_id.tolist(), data.episode_id.tolist(), strict=True)
    )
    for episode, (first, last) in zip(found, pairwise(data.starts), strict=True):
        np.testing.assert_array_equal(episode.steps.observation, data.observations[first:last])


def test_contents_and_span(root: Path, expert: Path) -> None:
    path = root / FOLDER / "short.parquet"
    write(path, metadata_of(expert, [2, 3]), [short_episodes(columns_of(read(expert, [2, 3]), 9), 4)])
    assert span(path) == ((2, 9), (3, 14))
    found = contents(path)
    assert {task: lengths.tolist() for task, lengths in found.lengths.items()} == {2: [4] * 6, 3: [4] * 6}
    assert not found.succeeds
    assert contents(expert).succeeds
