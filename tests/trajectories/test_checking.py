"""A file is accepted only if it is of a family that the project knows, and agrees with it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.families.point_robot import PointRobot
from pd_pipeline.trajectories.checking import check_file
from pd_pipeline.trajectories.reading import open_file, read, stream, write
from tests.builders import changed, columns, metadata
from tests.conftest import run_stages
from tests.trajectories.test_reading import raw

LIKE_THE_FAMILY = {"observation_size": 2, "action_low": (-1.0, -1.0), "action_high": (1.0, 1.0), "horizon": 12}


def written(path: Path, **changes: object) -> Path:
    values = LIKE_THE_FAMILY | changes
    width = values["observation_size"]
    assert isinstance(width, int)
    write(path, metadata(**values), [columns(tasks=tuple(metadata(**values).goals), d_s=width)])
    return path


def test_a_valid_file_is_summarised(tmp_path: Path, point_robot: PointRobot) -> None:
    about, episodes, steps, tasks = check_file(written(tmp_path / "a.parquet"), {"point_robot": point_robot})
    assert (about.family, episodes, steps, tasks) == ("point_robot", 4, 20, (0, 1))


def test_collected_files_are_accepted(trained_project: Path, point_robot: PointRobot) -> None:
    for path in (trained_project / "data/trajectories/point_robot").glob("*.parquet"):
        assert check_file(path, {"point_robot": point_robot}).metadata.quality == path.stem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "cheetah"}, "unknown family 'cheetah': known are point_robot; add it to params.yaml"),
        ({"observation_size": 3}, "observation_size is 3, but family 'point_robot' of this project has 2"),
        ({"action_high": (2.0, 1.0)}, r"action_high is \(2\.0, 1\.0\), but family"),
        ({"horizon": 9}, "horizon is 9, but family"),
        ({"goals": {0: {}, 6: {}}}, "task 6 is not among the tasks of family 'point_robot'"),
    ],
)
def test_files_that_contradict_the_family_are_refused(
    tmp_path: Path, point_robot: PointRobot, changes: dict, message: str
) -> None:
    with pytest.raises(PipelineError, match=rf"a\.parquet: {message}"):
        check_file(written(tmp_path / "a.parquet", **changes), {"point_robot": point_robot})


@pytest.mark.parametrize("reader", [open_file, read, lambda path, family: list(stream(path, family=family))])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "cheetah"}, "holds trajectories of family 'cheetah', not of 'point_robot'"),
        ({"horizon": 9}, "horizon is 9, but family"),
        ({"observation_size": 3}, "observation_size is 3, but family"),
        ({"goals": {0: {}, 6: {}}}, "task 6 is not among the tasks"),
    ],
)
def test_stages_refuse_what_validate_refuses(
    tmp_path: Path, point_robot: PointRobot, reader: Callable[..., object], changes: dict, message: str
) -> None:
    """The check is made on opening."""
    with pytest.raises(PipelineError, match=rf"a\.parquet: {message}"):
        reader(written(tmp_path / "a.parquet", **changes), family=point_robot)
    reader(written(tmp_path / "a.parquet"), family=point_robot)


def test_training_stages_refuse_data_that_contradicts_the_family(project: Path) -> None:
    data = project / "data/trajectories/point_robot/expert.parquet"
    written(data, family="cheetah")
    for stage in ("prompts", "plm"):
        with pytest.raises(PipelineError, match=r"expert\.parquet: holds trajectories of family 'cheetah'"):
            run_stages(project, stage)


def test_every_step_is_checked(tmp_path: Path, point_robot: PointRobot) -> None:
    made = changed(columns(d_s=2), "action", (18, 1), np.nan)
    path = raw(tmp_path / "a.parquet", made, **LIKE_THE_FAMILY)
    with pytest.raises(PipelineError, match="task 1, episode 1, step 3: action is not finite"):
        check_file(path, {"point_robot": point_robot})
