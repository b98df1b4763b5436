"""The plane: rewards by hand, hidden goals, behaviours of three qualities."""

from pathlib import Path

import numpy as np
import pytest

from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import load_family
from pd_pipeline.families.point_robot import PointRobot
from pd_pipeline.trajectories.collection import Pool, Shard, collect_episodes


def family(**block) -> PointRobot:
    made = load_family("point_robot", block, Path.cwd())
    assert isinstance(made, PointRobot)
    return made


def test_reward_by_hand() -> None:
    """Goal at (0, 1): from p, action (0, 1) moves 0.15 up, and the reward is minus the remaining distance."""
    dense, sparse = family(tasks=4, test_tasks=[3]).make(1), family(tasks=4, test_tasks=[3], reward="sparse").make(1)
    start, _ = dense.reset(seed=5)
    np.testing.assert_array_equal(start, sparse.reset(seed=5)[0])
    after, reward, _, _, info = dense.step(np.array([0.0, 1.0], np.float32))
    np.testing.assert_allclose(after - start, [0, 0.15], atol=1e-6)
    assert reward == pytest.approx(-np.hypot(start[0], 1 - start[1] - 0.15), abs=1e-6)
    assert not info["success"]
    rewards = [sparse.step(np.array([0.0, 1.0], np.float32))[1] for _ in range(12)]
    distances = [np.hypot(start[0], 1 - start[1] - 0.15 * (i + 1)) for i in range(12)]
    assert rewards == [float(d < 0.2) for d in distances]
    assert 0 < sum(rewards) < 12


def test_arrival_pays_once_and_ends_the_episode() -> None:
    """From the origin to (0, 1): the goal radius of 0.2 is reached on the sixth step of 0.15."""
    env = family(tasks=4, test_tasks=[3], reward="arrival").make(1)
    env.reset(seed=0)
    steps = [env.step(np.array([0.0, 1.0], np.float32))[1:4] for _ in range(6)]
    assert steps == [(0.0, False, False)] * 5 + [(10.0, True, False)]


def test_actions_are_clipped_to_the_bounds() -> None:
    environment = family().make(0)
    start, _ = environment.reset(seed=0)
    after = environment.step(np.array([100.0, -100.0], np.float32))[0]
    np.testing.assert_allclose(after - start, [0.15, -0.15], atol=1e-6)


def test_the_observation_hides_the_task() -> None:
    tasks = family().train_tasks
    starts = [family().make(task).reset(seed=3)[0] for task in tasks]
    np.testing.assert_array_equal(starts, np.broadcast_to(starts[0], (len(tasks), 2)))
    assert len({tuple(family().goal(task)["position"]) for task in tasks}) == len(tasks)


def test_resets_follow_the_seed() -> None:
    environment = family().make(0)
    first, again, other = (environment.reset(seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert np.abs(first).max() <= 0.05


def test_goals_lie_on_the_circle_and_splits_partition_them() -> None:
    made = family(tasks=8, test_tasks=[2, 6], radius=3.0)
    assert sorted((*made.train_tasks, *made.test_tasks)) == list(range(8))
    goals = np.array([made.goal(task)["position"] for task in range(8)])
    np.testing.assert_allclose(np.hypot(*goals.T), 3.0)
    np.testing.assert_allclose(goals[2], [0, 3], atol=1e-12)


def test_qualities_are_ordered_and_the_expert_reaches_the_goal() -> None:
    made = family()
    returns = {}
    for quality, description in made.default_behaviors().items():
        arrays = collect_episodes(Pool(made), description, Shard(quality, 3, 0, 8), seed=0)
        returns[quality] = arrays["reward"].sum() / 8
        assert np.abs(arrays["action"]).max() <= 1
        if quality == "expert":
            assert arrays["success"].reshape(8, -1).any(1).all()
    assert returns["expert"] > returns["medium"] + 1 > returns["random"] + 2


@pytest.mark.parametrize(
    "block", [{"tasks": 1}, {"radius": 0}, {"reward": "shaped"}, {"horizon": 0}, {"goal_radius": -1}]
)
def test_parameters_are_checked(block: dict) -> None:
    with pytest.raises(PipelineError, match=next(iter(block))):
        family(**block)


def test_test_tasks_must_exist() -> None:
    with pytest.raises(PipelineError, match=r"test_tasks.*\[12\]"):
        family(tasks=12, test_tasks=[12])
