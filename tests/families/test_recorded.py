"""A folder of trajectories is a family: what it is follows from its files, or is declared."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import load_family
from pd_pipeline.families.recorded import RecordedFamily
from pd_pipeline.trajectories.checking import check_file
from pd_pipeline.trajectories.reading import read, write
from tests.recorded_project import FAMILY, FOLDER, columns_of, metadata_of, record, record_project, short_episodes


@pytest.fixture
def root(trained_project: Path, tmp_path: Path) -> Path:
    return record_project(trained_project, tmp_path / "recorded")


@pytest.fixture
def expert(trained_project: Path) -> Path:
    return trained_project / "data/trajectories/point_robot/expert.parquet"


def family(root: Path, **changes: Any) -> RecordedFamily:
    found = load_family(FAMILY, {"data": FOLDER, **changes}, root)
    assert isinstance(found, RecordedFamily)
    return found


def test_what_is_not_declared_is_read_off_the_files(root: Path) -> None:
    found = family(root)
    assert (found.observation_size, found.action_size, found.horizon) == (2, 2, 12)
    assert found.action_low.tolist() == [-1.0, -1.0]
    assert found.action_high.dtype == np.float32
    assert found.qualities == ("expert", "random")
    assert (found.train_tasks, found.test_tasks) == ((0, 1, 2, 3, 4), (5,)), "the last fifth, at least one"
    assert found.goal(3).keys() == {"position"}
    assert found.is_recorded
    assert found.has_success
    assert found.episode_lengths["expert"][1].tolist() == [12] * 7


def test_targets_and_training_tasks_are_parameters(root: Path) -> None:
    found = family(root, targets=[4, 1])
    assert (found.train_tasks, found.test_tasks) == ((0, 2, 3, 5), (4, 1))
    fewer = family(root, targets=[1], train_tasks=[0, 2])
    assert (fewer.train_tasks, fewer.test_tasks) == ((0, 2), (1,))
    with pytest.raises(PipelineError, match=r"tasks \[1\] are both training and test tasks"):
        family(root, targets=[1], train_tasks=[0, 1])
    with pytest.raises(PipelineError, match=r"environment\.targets: contains duplicates"):
        family(root, targets=[1, 1])


def test_a_fifth_of_many_tasks_are_targets(tmp_path: Path, expert: Path) -> None:
    data = read(expert, [0])
    made = columns_of(data)
    steps = [made.__class__(**(vars(made) | {"task_id": np.full_like(made.task_id, task)})) for task in range(11)]
    (tmp_path / FOLDER).mkdir(parents=True)
    write(tmp_path / FOLDER / "a.parquet", metadata_of(expert, goals={t: {} for t in range(11)}), steps)
    assert family(tmp_path).test_tasks == (9, 10)


def test_what_is_declared_needs_no_files(tmp_path: Path) -> None:
    """So that a project loads where the data of its outs, but not the recordings, have been fetched."""
    declared = {"observation_size": 2, "action_low": [-1, -1], "action_high": [1, 1], "horizon": 12}
    found = family(tmp_path, targets=[1], train_tasks=[0, 2], **declared)
    assert (found.observation_size, found.action_size, found.horizon) == (2, 2, 12)
    assert (found.train_tasks, found.test_tasks) == ((0, 2), (1,))
    with pytest.raises(PipelineError, match=rf"data: .*{FOLDER}: no such folder: `pd-pipeline import SOURCE --family"):
        family(tmp_path)


def test_bounds_and_horizon_are_the_widest_of_the_files(root: Path, expert: Path) -> None:
    wide = record(expert, root / FOLDER / "wide.parquet", [0], 100, action_high=(1.0, 3.0), horizon=30)
    found = family(root)
    assert (found.action_high.tolist(), found.horizon) == ([1.0, 3.0], 30)
    for path in found.metadata:
        assert check_file(path, {FAMILY: found}).steps
    with pytest.raises(PipelineError, match=r"wide\.parquet: horizon is 30, but family .* has 12"):
        check_file(wide, {FAMILY: family(root, horizon=12)})
    with pytest.raises(PipelineError, match=r"wide\.parquet: action_high is \(1.0, 3.0\), but family"):
        check_file(wide, {FAMILY: family(root, action_low=[-1, -1], action_high=[1, 1])})


def test_bounds_are_compared_in_the_precision_that_they_are_kept_in(root: Path, expert: Path) -> None:
    """Of 1.1 and -1.1 the nearest numbers of float32 lie beyond them, of 1.3 and -1.3 within."""
    for bound in (1.1, 1.3):
        file = record(
            expert, root / FOLDER / "wide.parquet", [0], 100, action_low=(-bound, -bound), action_high=(bound, bound)
        )
        assert check_file(file, {FAMILY: family(root)}).steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "other"}, "holds trajectories of family 'other', not of 'my_robot'"),
        (
            {"goals": {0: {"position": [9.0, 9.0]}}},
            r"task 0 has the goal {'position': \[9.0, 9.0\]}, but .* in .*expert",
        ),
    ],
)
def test_files_that_contradict_each_other_are_named(root: Path, expert: Path, changes: Any, message: str) -> None:
    record(expert, root / FOLDER / "other.parquet", [0], 100, **changes)
    with pytest.raises(PipelineError, match=rf"other\.parquet: {message}"):
        family(root)


def test_another_width_is_another_family(root: Path, expert: Path) -> None:
    data = columns_of(read(expert, [0]), 100)
    wider = data.__class__(**(vars(data) | {"observation": np.repeat(data.observation, 2, axis=1)}))
    write(root / FOLDER / "wider.parquet", metadata_of(expert, [0], observation_size=4), [wider])
    with pytest.raises(PipelineError, match=r"wider\.parquet: observation_size is 4, but 2 in .*expert\.parquet"):
        family(root)


def test_one_task_and_no_file_are_refused(tmp_path: Path, expert: Path) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)
    with pytest.raises(PipelineError, match="holds no Parquet files"):
        family(tmp_path)
    record(expert, tmp_path / FOLDER / "a.parquet", [2])
    with pytest.raises(PipelineError, match="holds one task: pre-training and a target need at least two"):
        family(tmp_path)


def test_it_has_no_simulator_and_collects_nothing(root: Path) -> None:
    found = family(root)
    assert found.default_behaviors() == {}
    with pytest.raises(PipelineError, match="family 'my_robot' has no simulator"):
        found.make(0)
    with pytest.raises(PipelineError, match="nothing is collected for recorded trajectories"):
        found.behavior({})


def test_a_family_is_one_thing(root: Path) -> None:
    with pytest.raises(PipelineError, match="gymnasium and data: set only one of them"):
        family(root, gymnasium="Pendulum-v1")


def test_lengths_are_those_of_each_task_over_all_files(root: Path, expert: Path) -> None:
    short = short_episodes(columns_of(read(expert, [1]), 100), 5)
    write(root / FOLDER / "short.parquet", metadata_of(expert, [1]), [short])
    assert family(root).episode_lengths["expert"][1].tolist() == [12] * 7 + [5] * 7
    assert family(root).episode_lengths["expert"][0].tolist() == [12] * 6


def test_success_is_known_where_any_step_is_one(tmp_path: Path, expert: Path) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)
    data = columns_of(read(expert))
    never = data.__class__(**(vars(data) | {"success": np.zeros_like(data.success)}))
    write(tmp_path / FOLDER / "a.parquet", metadata_of(expert), [never])
    assert not family(tmp_path).has_success
