"""Data sets made and read by the package `minari`."""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from pd_pipeline.errors import PipelineError
from pd_pipeline.trajectories.reading import read, read_metadata
from tests.exchange.builders import ALL, every, exported, imported, trajectory_file

pytestmark = pytest.mark.filterwarnings("ignore:.*is set to None", "ignore:env_spec is None")

BOX = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
ACTIONS = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def made_by_minari(
    observation: Any = BOX, action: gymnasium.Space = ACTIONS, name: str = "lab/door-v1", infos: bool = False
) -> list[EpisodeBuffer]:
    """Episodes of 4 and 6 steps: the first terminates, the second is cut off."""
    rng, buffers = np.random.default_rng(0), []
    observation.seed(0)
    for length in (4, 6):
        many = [observation.sample() for _ in range(length + 1)]
        stacked = {key: [one[key] for one in many] for key in many[0]} if isinstance(many[0], dict) else many
        last = np.arange(length) == length - 1
        action.seed(length)
        buffers.append(
            EpisodeBuffer(
                observations=stacked,
                actions=[action.sample() for _ in range(length)],
                rewards=rng.normal(size=length).tolist(),
                terminations=(last & (length == 4)).tolist(),
                truncations=(last & (length == 6)).tolist(),
                infos={"success": [False] * length + [True]} if infos else None,
            )
        )
    minari.create_dataset_from_buffers(name, buffers, observation_space=observation, action_space=action)
    return buffers


def test_a_data_set_by_its_id(tmp_path: Path) -> None:
    buffers = made_by_minari(infos=True)
    (made,), said = imported(tmp_path, "lab/door-v1")
    data, steps = read(made), every(made)
    assert data.lengths.tolist() == [4, 6]
    assert buffers[0].observations is not None
    np.testing.assert_array_equal(steps.observation[:4], np.float32(buffers[0].observations[:4]))
    np.testing.assert_array_equal(steps.action[4:], np.float32(buffers[1].actions))
    np.testing.assert_array_equal(steps.reward[:4], np.float32(buffers[0].rewards))
    assert np.flatnonzero(steps.terminated).tolist() == [3]
    assert np.flatnonzero(steps.success).tolist() == [3, 9], "the first info is that of the reset"
    metadata = read_metadata(made)
    assert (metadata.action_low, metadata.quality, metadata.horizon) == ((-2.0, -2.0), "expert", 6)
    assert metadata.origin[0].source == "lab/door-v1"
    assert {"minari", "h5py"} < metadata.origin[0].versions.keys()
    assert "left out: the observation after the last action of each episode" in said
    assert "action: 2 numbers between -2 and 2 (as stated)" in said


@pytest.mark.parametrize(
    "success", [[None, [0, 0, 0, 0, 0, 0, 1]], [[0, 0, 0, 0, 1], None], [np.zeros((5, 2)), np.zeros((7, 2))]]
)
def test_success_is_recorded_for_all_episodes_or_not_at_all(tmp_path: Path, datasets: Path, success: list[Any]) -> None:
    made_by_minari(name="lab/part-v0")
    with h5py.File(datasets / "lab/part-v0/data/main_data.hdf5", "r+") as file:
        for number, found in enumerate(success):
            if found is not None:
                file[f"episode_{number}/infos/success"] = found
    _, said = imported(tmp_path, "lab/part-v0")
    assert "success: not recorded, never" in said
    with pytest.raises(PipelineError, match="success"):
        imported(tmp_path / "other", "lab/part-v0", reward="success")


def test_words_in_place_of_task_numbers_are_no_tasks(tmp_path: Path, datasets: Path) -> None:
    made_by_minari(name="lab/words-v0")
    with h5py.File(datasets / "lab/words-v0/data/main_data.hdf5", "r+") as file:
        for number in range(2):
            file[f"episode_{number}"].attrs["task_id"] = "pick-cube"
            file[f"episode_{number}"].attrs["episode_id"] = "5f0c"
    (made,), _ = imported(tmp_path, "lab/words-v0")
    assert (read(made).task_id.tolist(), read(made).lengths.tolist()) == ([0, 0], [4, 6])


def test_what_is_missing_in_a_file_is_one_line(tmp_path: Path, datasets: Path) -> None:
    made_by_minari(name="lab/lost-v0")
    with h5py.File(datasets / "lab/lost-v0/data/main_data.hdf5", "r+") as file:
        del file["episode_1/rewards"]
    with pytest.raises(PipelineError, match="lab/lost-v0: damaged, or not as its format says it is: "):
        imported(tmp_path, "lab/lost-v0")


def test_a_data_set_by_its_path(tmp_path: Path, datasets: Path) -> None:
    made_by_minari()
    for folder in (datasets / "lab/door-v1", datasets / "lab/door-v1/data"):
        (made,), said = imported(tmp_path / folder.name, folder)
        assert read_metadata(made).origin[0].dataset == "lab/door-v1"
        assert "success: not recorded" in said
        assert not every(made).success.any()


def test_dictionaries_are_flattened_in_a_stated_order(tmp_path: Path) -> None:
    space = gymnasium.spaces.Dict(
        {
            "state": gymnasium.spaces.Box(-1, 1, (2, 2), np.float32),
            "achieved": gymnasium.spaces.Box(-1, 1, (3,), np.float64),
            "camera": gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8),
            "goal": gymnasium.spaces.Box(-1, 1, (2,), np.float64),
            "mode": gymnasium.spaces.Discrete(3),
        }
    )
    buffers = made_by_minari(space)
    (made,), said = imported(tmp_path, "lab/door-v1", without=("goal",))
    assert "observation = achieved [3] + state [4], put together in this order" in said
    for line in ("left out: camera (an image)", "left out: goal (as asked)", "left out: mode (Discrete(3))"):
        assert line in said
    first = buffers[0].observations
    assert isinstance(first, dict)
    expected = np.concatenate((np.float32(first["achieved"][1]), np.float32(first["state"][1]).reshape(-1)))
    np.testing.assert_array_equal(every(made).observation[1], expected)
    with pytest.raises(PipelineError, match=r"--without gaol: no such part of an observation: it has achieved \[3\]"):
        imported(tmp_path, "lab/door-v1", "other", without=("gaol",))


def test_discrete_actions_are_refused(tmp_path: Path) -> None:
    made_by_minari(action=gymnasium.spaces.Discrete(5))
    with pytest.raises(PipelineError, match=r"lab/door-v1: actions are Discrete\(5\): this pipeline learns continuous"):
        imported(tmp_path, "lab/door-v1")


def test_images_alone_are_refused(tmp_path: Path) -> None:
    made_by_minari(gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8))
    with pytest.raises(PipelineError, match=r"no observation is a vector of numbers: observation \(an image\)"):
        imported(tmp_path, "lab/door-v1")


def test_bounds_that_are_not_finite_are_read_off(tmp_path: Path) -> None:
    made_by_minari(action=gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32))
    (made,), said = imported(tmp_path, "lab/door-v1")
    actions = every(made).action
    assert read_metadata(made).action_low == pytest.approx(actions.min(0))
    assert "(read off the actions)" in said


def test_an_unknown_id_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no Minari data set with this id on this machine: `minari download D4RL"):
        imported(tmp_path, "D4RL/door/human-v2")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_by_minari()
    for package in ("minari", "h5py"):
        with monkeypatch.context() as context:
            context.setitem(sys.modules, package, None)
            with pytest.raises(PipelineError, match=rf"{package} is not installed: pip install .*\[data\]"):
                imported(tmp_path, "lab/door-v1")


def test_minari_loads_an_export(tmp_path: Path, datasets: Path) -> None:
    original = trajectory_file(tmp_path / "medium.parquet")
    exported("minari", datasets, original)
    found = minari.load_dataset("robot/expert-v0")
    assert (found.total_episodes, found.total_steps) == (5, 26)
    assert found.observation_space.shape == (3,)
    assert found.action_space == gymnasium.spaces.Box(np.float32([-1, -2]), np.float32([1, 2]))
    assert "robot/expert-v0" in minari.list_local_datasets()
    for episode, steps in zip(found.iterate_episodes(), ALL, strict=True):
        np.testing.assert_array_equal(episode.observations[:-1], steps.observation)
        np.testing.assert_array_equal(episode.actions, steps.action)
        np.testing.assert_array_equal(episode.rewards, steps.reward)
        np.testing.assert_array_equal(episode.terminations, steps.terminated)
        np.testing.assert_array_equal(episode.truncations, steps.truncated)
        np.testing.assert_array_equal(episode.infos["success"][1:], steps.success)
    assert [about["task_id"] for about in found.storage.get_episode_metadata(range(5))] == [2, 2, 2, 5, 5]
