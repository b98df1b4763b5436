"""Collection: the same bytes with any number of workers, resumed from finished shards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import load_family
from pd_pipeline.families.point_robot import PointRobot
from pd_pipeline.progress import silent
from pd_pipeline.storage import load_arrays, read_json, write_json
from pd_pipeline.trajectories import collection
from pd_pipeline.trajectories.collection import Pool, Shard, TrajectoriesParams, collect, collect_episodes, plan
from pd_pipeline.trajectories.reading import read, return_to_go

BLOCK: dict[str, Any] = {"horizon": 6, "tasks": 4, "test_tasks": [2]}
EPISODES = {"expert": {"train": 5, "test": 3}, "random": {"train": 2, "test": 2}}


def collected(root: Path, work: Path, *, family: PointRobot, block: dict[str, Any] = BLOCK, **changes: Any) -> Path:
    out = root / "out"
    out.mkdir(parents=True, exist_ok=True)
    write_json(root / "policies.json", family.default_behaviors())
    params = TrajectoriesParams.model_validate({"workers": 1, "episodes_per_shard": 2, "episodes": EPISODES} | changes)
    collect(family, block, root, root, params, out, work, silent)
    return out


@pytest.fixture
def plane() -> PointRobot:
    family = load_family("point_robot", BLOCK, Path.cwd())
    assert isinstance(family, PointRobot)
    return family


def test_the_plan_covers_every_episode_once(plane: PointRobot) -> None:
    params = TrajectoriesParams.model_validate({"episodes_per_shard": 2, "episodes": EPISODES})
    covered = [(s.quality, s.task, e) for s in plan(plane, params) for e in range(s.first, s.first + s.episodes)]
    assert len(covered) == len(set(covered))
    assert sum(quality == "expert" for quality, *_ in covered) == 3 * 5 + 3
    assert sum(quality == "random" and task == 2 for quality, task, _ in covered) == 2


def test_files_do_not_depend_on_the_number_of_workers_or_shards(tmp_path: Path, plane: PointRobot) -> None:
    one = collected(tmp_path / "one", tmp_path / "one" / "work", family=plane)
    two = collected(tmp_path / "two", tmp_path / "two" / "work", family=plane, workers=2, episodes_per_shard=3)
    for quality in EPISODES:
        assert (one / f"{quality}.parquet").read_bytes() == (two / f"{quality}.parquet").read_bytes()


def test_other_seeds_give_other_data(tmp_path: Path, plane: PointRobot) -> None:
    one = read(collected(tmp_path / "one", tmp_path / "w1", family=plane) / "expert.parquet")
    two = read(collected(tmp_path / "two", tmp_path / "w2", family=plane, seed=1) / "expert.parquet")
    assert (one.observations != two.observations).any()
    starts = one.observations[one.starts[:-1]]
    assert len(np.unique(starts, axis=0)) == len(starts), "episodes differ from each other too"


def test_finished_shards_are_not_collected_again(
    tmp_path: Path, plane: PointRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = collected(tmp_path / "whole", tmp_path / "w1", family=plane)
    ran: list[Shard] = []
    original = collect_episodes

    def interrupted(pool: Pool, behavior: Any, shard: Shard, seed: int) -> dict[str, np.ndarray]:
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append(shard)
        return original(pool, behavior, shard, seed)

    monkeypatch.setattr(collection, "collect_episodes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collected(tmp_path / "again", tmp_path / "w2", family=plane)
    first, ran[:] = list(ran), []
    assert not (tmp_path / "again" / "out" / "expert.parquet").exists()

    def spy(pool: Pool, behavior: Any, shard: Shard, seed: int) -> dict[str, np.ndarray]:
        ran.append(shard)
        return original(pool, behavior, shard, seed)

    monkeypatch.setattr(collection, "collect_episodes", spy)
    again = collected(tmp_path / "again", tmp_path / "w2", family=plane)
    assert not set(first) & set(ran)
    params = TrajectoriesParams.model_validate({"episodes_per_shard": 2, "episodes": EPISODES})
    assert sorted(first + ran) == sorted(plan(plane, params))
    for quality in EPISODES:
        assert (again / f"{quality}.parquet").read_bytes() == (whole / f"{quality}.parquet").read_bytes()


def test_stored_steps_match_the_environment(plane: PointRobot) -> None:
    arrays = collect_episodes(Pool(plane), plane.default_behaviors()["medium"], Shard("medium", 1, 3, 2), seed=0)
    assert arrays["episode_id"].tolist() == [3] * 6 + [4] * 6
    assert arrays["step"].tolist() == [*range(6), *range(6)]
    assert arrays["truncated"].tolist() == ([False] * 5 + [True]) * 2
    environment = plane.make(1)
    environment.reset(seed=0)
    environment.unwrapped._state = arrays["observation"][0].astype(np.float64)
    for step in range(6):
        after, reward, _, _, info = environment.step(arrays["action"][step])
        assert reward == pytest.approx(arrays["reward"][step], abs=1e-5)
        assert info["success"] == arrays["success"][step]
        if step < 5:
            np.testing.assert_allclose(after, arrays["observation"][step + 1], atol=1e-6)
    np.testing.assert_array_equal(arrays["return_to_go"][:6], return_to_go(arrays["reward"][:6]))


def test_an_episode_does_not_depend_on_its_shard(plane: PointRobot) -> None:
    """Episode 4 is the same alone and in a larger shard."""
    behavior = plane.default_behaviors()["expert"]
    alone = collect_episodes(Pool(plane), behavior, Shard("expert", 0, 4, 1), seed=7)
    among = collect_episodes(Pool(plane), behavior, Shard("expert", 0, 2, 3), seed=7)
    for name, array in alone.items():
        np.testing.assert_array_equal(array, among[name][12:])


def test_metadata_states_the_origin_of_the_data(tmp_path: Path, plane: PointRobot) -> None:
    about = read(collected(tmp_path, tmp_path / "work", family=plane, seed=5) / "random.parquet").metadata
    assert (about.family, about.quality, about.seed, about.horizon) == ("point_robot", "random", 5, 6)
    assert about.goals == {task: plane.goal(task) for task in range(4)}
    assert about.environment["tasks"] == 4
    assert about.versions == plane.versions()


def test_unknown_qualities_are_named(tmp_path: Path, plane: PointRobot) -> None:
    with pytest.raises(PipelineError, match=r"trajectories\.episodes\.superb: .*behavior_policies has no policy"):
        collected(tmp_path, tmp_path / "work", family=plane, episodes={"superb": {"train": 1, "test": 1}})


def test_a_policy_that_exceeds_the_bounds_is_refused(
    tmp_path: Path, plane: PointRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = lambda environment, observation, rng: np.full(2, 3.0, np.float32)  # noqa: E731
    monkeypatch.setattr(PointRobot, "behavior", lambda self, description: wild)
    with pytest.raises(PipelineError, match=r"policy 'expert': task 0, episode 0, step 0: action \[3\. 3\.\]"):
        collected(tmp_path, tmp_path / "work", family=plane)
    assert not list((tmp_path / "work").iterdir()), "a bad shard is not saved"


def test_summary(trained_project: Path) -> None:
    out = trained_project / "data/trajectories/point_robot"
    summary = read_json(out / "summary.json")
    data = read(out / "expert.parquet")
    assert summary["expert"]["steps"] == len(data.rewards)
    means = [data.episode_returns[data.task_id == task].mean() for task in np.unique(data.task_id)]
    assert summary["expert"]["return_mean"] == pytest.approx(float(np.mean(means)))
    assert summary["expert"]["tasks"]["1"]["episodes"] == 7
    assert summary["expert"]["return_mean"] > summary["random"]["return_mean"]


def test_shards_are_complete_files(tmp_path: Path, plane: PointRobot) -> None:
    collected(tmp_path, tmp_path / "work", family=plane)
    names = [path.name for path in (tmp_path / "work").iterdir()]
    assert all(name.endswith(".safetensors") and not name.startswith(".") for name in names)
    arrays, _ = load_arrays(tmp_path / "work" / Shard("expert", 1, 4, 1).file(Path()).name)
    assert arrays["episode_id"].tolist() == [4] * 6


def test_environments_are_closed_after_collection(
    tmp_path: Path, plane: PointRobot, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"made": 0, "closed": 0}
    make = type(plane).make

    def counted(self: PointRobot, task: int) -> Any:
        environment = make(self, task)
        counts["made"] += 1
        monkeypatch.setattr(environment, "close", lambda: counts.update(closed=counts["closed"] + 1))
        return environment

    monkeypatch.setattr(type(plane), "make", counted)
    collected(tmp_path / "out", tmp_path / "work", family=plane)
    assert counts["made"] == counts["closed"] > 0
