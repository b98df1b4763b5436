"""HDF5 files as D4RL lays them out."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.exchange import d4rl
from pd_pipeline.trajectories.reading import read, return_to_go
from tests.exchange.builders import every, exported, imported, trajectory_file


def plain(path: Path, **changes: Any) -> Path:
    """Ten steps: an episode of four that terminates, one of six that times out; None leaves an array out."""
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(10, 3)),
        "actions": rng.uniform(-1, 1, (10, 2)).astype(np.float32),
        "rewards": rng.normal(size=10),
        "terminals": np.arange(10) == 3,
        "timeouts": np.arange(10) == 9,
    }
    with h5py.File(path, "w") as file:
        for name, values in (arrays | changes).items():
            if values is not None:
                file[name] = values
    return path


def test_a_file_of_another_program(tmp_path: Path) -> None:
    source = plain(tmp_path / "a.hdf5")
    with h5py.File(source, "a") as file:
        file["infos/qpos"] = np.zeros((10, 5))
        file["next_observations"] = np.zeros((10, 3))
    (made,), said = imported(tmp_path, source)
    found = every(made)
    with h5py.File(source) as file:
        np.testing.assert_array_equal(found.observation, file["observations"][:].astype(np.float32))
        np.testing.assert_array_equal(found.action, file["actions"][:])
        np.testing.assert_array_equal(found.reward, file["rewards"][:].astype(np.float32))
    np.testing.assert_array_equal(found.return_to_go[:4], return_to_go(found.reward[:4]))
    assert np.flatnonzero(found.terminated).tolist() == [3]
    assert np.flatnonzero(found.truncated).tolist() == [9]
    assert not found.success.any()
    assert read(made).lengths.tolist() == [4, 6]
    for line in ("a.hdf5: d4rl, 2 episodes of at most 6 steps", "observation: observations [3], as float32",
                 "left out: infos/qpos", "left out: next_observations", "success: not recorded"):  # fmt: skip
        assert line in said


def test_the_rest_after_the_last_end_is_an_episode(tmp_path: Path) -> None:
    (made,), said = imported(tmp_path, plain(tmp_path / "a.hdf5", timeouts=None))
    assert read(made).lengths.tolist() == [4, 6]
    assert np.flatnonzero(every(made).truncated).tolist() == [9]
    assert "left out: the end of the last episode is not recorded: it is taken as truncated" in said
    assert "no timeouts in the file" in said


def test_a_file_may_say_the_task_of_its_episodes_and_not_their_numbers(tmp_path: Path) -> None:
    source = plain(tmp_path / "a.hdf5")
    with h5py.File(source, "a") as file:
        file["infos/task_id"] = np.repeat([2, 5], [4, 6])
    (made,), _ = imported(tmp_path, source)
    assert read(made).task_id.tolist() == [2, 5]
    assert read(made).lengths.tolist() == [4, 6]


@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("name", ["infos/task_id", "infos/episode_id"])
def test_an_episode_ends_where_another_task_or_number_begins(
    tmp_path: Path, name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(d4rl, "ROWS", rows)
    source = plain(tmp_path / "a.hdf5", terminals=None, timeouts=None)
    with h5py.File(source, "a") as file:
        file["infos/task_id"] = np.zeros(10, int)
        if name in file:
            del file[name]
        file[name] = np.repeat([1, 2, 5], [3, 3, 4])
    (made,), _ = imported(tmp_path, source)
    assert read(made).lengths.tolist() == [3, 3, 4]
    assert getattr(read(made), name.removeprefix("infos/")).tolist() == [1, 2, 5]


def test_an_export_says_where_episodes_end_that_do_not_say_so_themselves(tmp_path: Path) -> None:
    original = trajectory_file(tmp_path / "medium.parquet")
    table = pq.read_table(original)
    never = pa.array(np.zeros(len(table), bool))
    for name in ("terminated", "truncated"):
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), never)
    pq.write_table(table, original)
    with h5py.File(exported("d4rl", tmp_path, original)) as file:
        assert not file["terminals"][:].any()
        assert np.diff(np.flatnonzero(file["timeouts"][:]), prepend=-1).tolist() == [5, 9, 1, 4, 7]


def test_ends_are_found_across_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = every(imported(tmp_path / "one", plain(tmp_path / "a.hdf5"))[0][0])
    monkeypatch.setattr(d4rl, "ROWS", 3)
    pieces = every(imported(tmp_path / "two", tmp_path / "a.hdf5")[0][0])
    np.testing.assert_array_equal(whole.step, pieces.step)
    np.testing.assert_array_equal(whole.action, pieces.action)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": np.zeros((10, 2), int)}, r"actions are int64 of shape \(10, 2\): this pipeline learns continuous"),
        ({"actions": np.zeros(10)}, r"actions are float64 of shape \(10,\)"),
        ({"observations": np.zeros((10, 8, 8, 3), np.uint8)}, "each must be a vector of numbers; images cannot"),
        ({"observations": None}, "no array 'observations': a D4RL file holds observations, actions"),
        ({"rewards": np.zeros(9)}, "rewards has 9 steps, but observations 10"),
        ({"rewards": np.zeros((10, 2))}, r"rewards has shape \(10, 2\): one number for each step is needed"),
        ({"infos/task_id": np.zeros((10, 2), int)}, r"infos/task_id has shape \(10, 2\): one number"),
        ({"infos/task_id": np.full(10, 0.2)}, "infos/task_id holds float64, but whole numbers are needed"),
        ({"infos/task_id": np.full(10, b"push")}, r"infos/task_id holds \|S4, but whole numbers are needed"),
        ({"infos/episode_id": np.full(10, -1)}, "infos/episode_id holds -1: tasks and episodes are numbered from 0 on"),
        ({"infos/episode_id": 3}, "infos/episode_id has no steps, but observations 10"),
        ({name: np.zeros((0, *shape)) for name, shape in (("observations", (3,)), ("actions", (2,)), ("rewards", ()),
          ("terminals", ()), ("timeouts", ()))}, "holds no steps"),
        ({"terminals": None, "timeouts": None}, "no terminals and no timeouts: they say where an episode ends"),
        ({"metadata/pd_pipeline/x": 3}, r"a\.hdf5: damaged, or not as its format says it is: "),
        ({"metadata/pd_pipeline": 3}, r"a\.hdf5: damaged"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_said(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        imported(tmp_path, plain(tmp_path / "a.hdf5", **changes))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    source = plain(tmp_path / "a.hdf5")
    source.write_bytes(source.read_bytes()[:100])
    with pytest.raises(PipelineError, match=r"a\.hdf5: not a readable HDF5 file"):
        imported(tmp_path, source)


def test_an_export_is_what_others_read(tmp_path: Path) -> None:
    """The arrays and types that D4RL documents."""
    original = trajectory_file(tmp_path / "medium.parquet")
    out, steps = exported("d4rl", tmp_path, original), every(original)
    with h5py.File(out) as file:
        assert {"observations", "actions", "rewards", "terminals", "timeouts"} < file.keys()
        np.testing.assert_array_equal(file["observations"][:], steps.observation)
        np.testing.assert_array_equal(file["timeouts"][:], steps.truncated)
        assert file["rewards"].dtype == np.float32
        assert file["terminals"].dtype == bool
        ends = np.flatnonzero(file["terminals"][:] | file["timeouts"][:])
    assert np.diff(ends, prepend=-1).tolist() == [5, 9, 1, 4, 7]
