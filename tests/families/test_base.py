"""The registry: built-in families, a user's Family by entry point, and every mistake in between."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import BUILT_IN, Family, entry_point, load_family, source_files
from pd_pipeline.progress import silent
from pd_pipeline.storage import write_json
from pd_pipeline.trajectories.collection import TrajectoriesParams, collect
from pd_pipeline.trajectories.reading import read
from tests.builders import reach

HERE = Path(__file__).parent


def custom(cls: str, **block: Any) -> dict[str, Any]:
    return {"entry_point": f"custom_family:{cls}", "horizon": 6} | block


def test_every_built_in_family_is_registered() -> None:
    assert BUILT_IN.keys() == {"reach", "pick_place", "cheetah_dir", "cheetah_vel", "ant_dir", "point_robot"}


@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("name", [pytest.param("reach", marks=pytest.mark.xdist_group("reach")), "point_robot"])
def test_built_in_families_follow_the_protocol(name: str) -> None:
    family = reach() if name == "reach" else load_family(name, {}, HERE)
    assert family.name == name
    assert not set(family.train_tasks) & set(family.test_tasks)
    environment = family.make(family.test_tasks[0])
    observation, _ = environment.reset(seed=0)
    assert observation.shape == (family.observation_size,)
    assert observation.dtype == np.float32
    for quality, description in family.default_behaviors().items():
        action = family.behavior(description)(environment, observation, np.random.default_rng(0))
        assert action.shape == (family.action_size,), quality
        assert action.dtype == np.float32
        assert (action >= family.action_low).all()
        assert (action <= family.action_high).all()
    after, reward, terminated, truncated, info = environment.step(action)
    assert after.dtype == np.float32
    assert isinstance(reward, float)
    assert not terminated
    assert not truncated
    assert "success" in info
    assert {"gymnasium", "numpy"} <= family.versions().keys()


def test_custom_family_by_entry_point() -> None:
    family = load_family("line", custom("Line", tasks=3), HERE)
    assert type(family).__name__ == "Line"
    assert family.train_tasks == (0, 2)
    assert family.action_size == 1
    assert source_files("line", custom("Line"), {}, HERE) == [HERE / "custom_family.py"]


def test_custom_family_is_collected_in_worker_processes(tmp_path: Path) -> None:
    block = custom("Line")
    family = load_family("line", block, HERE)
    write_json(tmp_path / "policies.json", family.default_behaviors())
    params = TrajectoriesParams.model_validate({"workers": 2, "episodes": {"expert": {"train": 2, "test": 1}}})
    collect(family, block, HERE, tmp_path, params, tmp_path / "out", tmp_path / "work", silent)
    data = read(tmp_path / "out" / "expert.parquet")
    assert data.metadata.family == "line"
    assert data.task_id.tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert (data.episode_returns > -6).all()


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (custom("Missing"), "module 'custom_family' has no 'Missing'"),
        ({"entry_point": "no_such_module:Line", "horizon": 6}, "cannot import 'no_such_module'"),
        ({"entry_point": "custom_family.Line", "horizon": 6}, "is not 'module:Class'"),
        (custom("Unrelated"), "neither a Family, a gymnasium.Env nor a function"),
        (custom("Overlapping"), r"tasks \[1\] are both training and test tasks"),
        (custom("Repeating"), r"tasks \[0\] appear more than once among the training tasks"),
        (custom("NothingToTrain"), "at least one training and one test task"),
        (custom("Line", horizon=0), "environment.horizon: .*greater than 0"),
        (custom("Line", speed=1), "environment.speed: no such parameter"),
    ],
)
def test_mistakes_are_named(block: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        load_family("line", block, HERE)


def test_an_unknown_family_names_the_built_in_ones_and_what_to_do() -> None:
    with pytest.raises(PipelineError, match=r"unknown family: built in are reach, pick_place, .*entry_point"):
        entry_point("cheetah", {})


def test_source_file_of_a_missing_module() -> None:
    with pytest.raises(PipelineError, match="no module 'no_such_module'"):
        source_files("line", {"entry_point": "no_such_module:Line"}, {}, HERE)


def test_every_entry_point_of_a_block_is_code_that_the_family_depends_on() -> None:
    behaviors = {"expert": {"entry_point": "test_base:expert"}, "random": {"random": True}}
    block = {"gymnasium": "Pendulum-v1", "behaviors": behaviors}
    found = source_files("pendulum", block, {}, HERE)
    assert [file.name for file in found] == ["gymnasium_env.py", "test_base.py"]


def test_so_is_the_module_that_registers_an_id() -> None:
    found = source_files("line", {"gymnasium": "custom_family:mine/Line-v0"}, {}, HERE)
    assert [file.name for file in found] == ["gymnasium_env.py", "custom_family.py"]


@pytest.mark.parametrize("other", [{"gymnasium": "Pendulum-v1"}, {"meta_world": "push-v3"}])
def test_an_environment_named_twice_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(PipelineError, match=rf"line\.environment: entry_point and {next(iter(other))}: set only one"):
        load_family("line", custom("Line") | other, HERE)


def test_a_family_must_be_complete() -> None:
    class Half(Family):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Half("half", None)  # type: ignore[abstract, arg-type]
