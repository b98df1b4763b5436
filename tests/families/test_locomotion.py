"""cheetah_dir, cheetah_vel and ant_dir: rewards, ends and observations against MuJoCo stepped by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from pd_pipeline.families import goal_policy
from pd_pipeline.families.ant_dir import ANGLES, SECTOR, AntDir
from pd_pipeline.families.base import ExpertBars, load_family
from pd_pipeline.families.cheetah_vel import SPEEDS
from pd_pipeline.families.locomotion import Locomotion
from pd_pipeline.trajectories.collection import Pool, Shard, collect_episodes

NAMES = ("cheetah_dir", "cheetah_vel", "ant_dir")
DT = 0.05


def family(name: str, **block: Any) -> Locomotion:
    made = load_family(name, block, Path.cwd())
    assert isinstance(made, Locomotion)
    return made


def by_hand(environment: Any, actions: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Position before, position after and velocities of each step, from a separate simulator in the same state."""
    model = environment.unwrapped.model
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = environment.unwrapped.data.qpos, environment.unwrapped.data.qvel
    mujoco.mj_forward(model, data)
    rows = []
    for action in actions:
        before = data.qpos.copy()
        data.ctrl[:] = action
        for _ in range(5):  # frames per step
            mujoco.mj_step(model, data)
        rows.append((before, data.qpos.copy(), data.qvel.copy()))
    return rows


def random_actions(made: Locomotion, count: int, size: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(3)
    return (size * rng.uniform(made.action_low, made.action_high, (count, made.action_size))).astype(np.float32)


def cheetah_reward(task: int, name: str, speed: float) -> float:
    return (1, -1)[task] * speed if name == "cheetah_dir" else -abs(speed - (0.075 + 0.075 * task))


@pytest.mark.parametrize(
    ("name", "task"), [("cheetah_dir", 0), ("cheetah_dir", 1), ("cheetah_vel", 0), ("cheetah_vel", 26)]
)
def test_cheetah_steps_by_hand(name: str, task: int) -> None:
    made = family(name)
    environment = made.make(task)
    observation, _ = environment.reset(seed=5)
    qpos, qvel = environment.unwrapped.data.qpos, environment.unwrapped.data.qvel
    np.testing.assert_array_equal(observation, np.concatenate([qpos[1:], qvel]).astype(np.float32))
    actions = random_actions(made, 20)
    for action, (before, after, velocity) in zip(actions, by_hand(environment, actions), strict=True):
        observation, reward, terminated, truncated, info = environment.step(action)
        speed = (after[0] - before[0]) / DT
        expected = cheetah_reward(task, name, speed) - 0.05 * float((action.astype(float) ** 2).sum())
        assert reward == pytest.approx(expected, abs=1e-5)
        assert info["reward_forward"] + info["reward_ctrl"] == pytest.approx(reward)
        assert info["x_velocity"] == pytest.approx(speed, abs=1e-6)
        np.testing.assert_allclose(observation, np.concatenate([after[1:], velocity]), atol=1e-4)
        assert not terminated
        assert not truncated


def test_forward_cheetah_is_gymnasiums_own_with_half_its_control_cost() -> None:
    ours, theirs = family("cheetah_dir").make(0), gymnasium.make("HalfCheetah-v5", ctrl_cost_weight=0.05)
    ours.reset(seed=1)
    theirs.reset(seed=1)
    for action in random_actions(family("cheetah_dir"), 30):
        assert ours.step(action)[1] == pytest.approx(theirs.step(action)[1], abs=1e-9)


@pytest.mark.parametrize("task", [0, 17, 44])
def test_ant_steps_by_hand(task: int) -> None:
    made = family("ant_dir")
    environment = made.make(task)
    environment.reset(seed=2)
    actions = random_actions(made, 20)
    for action, (before, after, velocity) in zip(actions, by_hand(environment, actions), strict=True):
        observation, reward, terminated, _, info = environment.step(action)
        vx, vy = info["x_velocity"], info["y_velocity"]
        # Gymnasium uses the torso's velocity, which lags the joint's by the integrator's last frame
        assert np.abs([vx, vy] - (after[:2] - before[:2]) / DT).max() < 0.2
        forward = vx * np.cos(ANGLES[task]) + vy * np.sin(ANGLES[task])
        assert reward == pytest.approx(forward - 0.5 * float((action.astype(float) ** 2).sum()) + 1.0, abs=1e-5)
        np.testing.assert_allclose(observation, np.concatenate([after[2:], velocity]), atol=1e-4)
        assert terminated == (not 0.2 <= after[2] <= 1.0)


def test_ant_along_x_is_gymnasiums_own_without_contact_costs() -> None:
    ours = family("ant_dir").with_goal(0.0)
    theirs = gymnasium.make("Ant-v5", contact_cost_weight=0, include_cfrc_ext_in_observation=False)
    first, _ = ours.reset(seed=4)
    np.testing.assert_allclose(first, theirs.reset(seed=4)[0], atol=1e-6)
    for action in random_actions(family("ant_dir"), 30, 0.3):
        mine, reward, terminated, _, _ = ours.step(action)
        seen, expected, ended, _, _ = theirs.step(action)
        assert reward == pytest.approx(expected, abs=1e-9)
        assert terminated == ended
        np.testing.assert_allclose(mine, seen, atol=1e-6)


def test_ant_ends_outside_the_healthy_heights_and_is_rewarded_for_that_step() -> None:
    environment: Any = family("ant_dir").make(0)
    environment.reset(seed=0)
    qpos = environment.data.qpos.copy()
    qpos[2] = 1.5
    environment.set_state(qpos, np.zeros_like(environment.data.qvel))
    _, reward, terminated, _, info = environment.step(np.zeros(8, np.float32))
    assert terminated
    assert info["reward_survive"] == 1.0
    assert reward == pytest.approx(1.0 + info["reward_forward"])


@pytest.mark.parametrize("name", NAMES)
def test_two_tasks_in_the_same_state_look_the_same(name: str) -> None:
    """The goal sets the reward and nothing that a policy observes."""
    made = family(name)
    first, second = made.make(made.train_tasks[0]), made.make(made.train_tasks[1])
    np.testing.assert_array_equal(first.reset(seed=9)[0], second.reset(seed=9)[0])
    rewards = []
    for action in random_actions(made, 10, 0.5):
        one, other = first.step(action), second.step(action)
        np.testing.assert_array_equal(one[0], other[0])
        rewards.append(one[1] != other[1])
    assert any(rewards), "although their rewards differ"


@pytest.mark.parametrize(
    ("name", "block", "width"),
    [
        ("cheetah_dir", {}, 17),
        ("cheetah_vel", {"obs": "paper20"}, 20),
        ("cheetah_vel", {"obs": "gym17"}, 17),
        ("ant_dir", {}, 27),
    ],
)
def test_widths_and_types_are_as_declared(name: str, block: dict[str, Any], width: int) -> None:
    made = family(name, **block)
    environment = made.make(made.test_tasks[0])
    observation, _ = environment.reset(seed=0)
    assert observation.dtype == np.float32
    assert observation.shape == (made.observation_size,) == (width,)
    assert environment.observation_space.contains(observation)
    np.testing.assert_array_equal(environment.action_space.low, made.action_low)
    np.testing.assert_array_equal(environment.action_space.high, made.action_high)


def test_paper20_adds_the_torsos_position() -> None:
    plain, whole = family("cheetah_dir").make(0), family("cheetah_dir", obs="paper20").make(0)
    plain.reset(seed=3)
    whole.reset(seed=3)
    for action in random_actions(family("cheetah_dir"), 5):
        short, long = plain.step(action)[0], whole.step(action)[0]
        np.testing.assert_array_equal(long[:17], short)
    x, y, z = whole.unwrapped.data.body("torso").xpos
    np.testing.assert_allclose(long[17:], [x, y, z], atol=1e-6)
    assert y == 0.0


def test_splits_are_those_of_the_papers() -> None:
    vel = family("cheetah_vel")
    assert SPEEDS[list(vel.test_tasks)] == pytest.approx([0.225, 0.6, 1.2, 1.8, 2.025])
    assert len(vel.train_tasks) == 35
    both = family("cheetah_dir")
    assert both.train_tasks == both.test_tasks == (0, 1)
    ant = family("ant_dir")
    assert ant.test_tasks == (6, 17, 23, 30, 41)
    assert sorted((*ant.train_tasks, *ant.test_tasks)) == list(range(50))


@pytest.mark.parametrize("name", ["cheetah_vel", "ant_dir"])
def test_the_validation_split_excludes_the_published_targets(name: str) -> None:
    published, validation = family(name), family(name, split="validation")
    assert {*validation.train_tasks, *validation.test_tasks} == set(published.train_tasks)

    def nearest(made: Locomotion) -> float:
        known = np.array([made.goal_of(task) for task in made.train_tasks])
        return max(float(np.abs(known - made.goal_of(task)).min()) for task in made.test_tasks)

    assert nearest(validation) == pytest.approx(nearest(published), abs=0.05), "as far from the training tasks"


def test_the_sector_split_holds_out_every_direction_of_its_sector() -> None:
    made = family("ant_dir", split="sector")
    degrees = np.degrees(ANGLES)
    assert {int(i) for i in np.flatnonzero((degrees > 60) & (degrees < 140))} == set(made.test_tasks) == set(SECTOR)
    assert not set(made.train_tasks) & set(SECTOR)


def test_only_one_target_of_the_published_ood_split_is_outside_its_training_sector() -> None:
    made = family("ant_dir", split="published_ood")
    trained = np.array([ANGLES[task] for task in made.train_tasks])
    outside = [task for task in made.test_tasks if not trained.min() < ANGLES[task] < trained.max()]
    assert isinstance(made, AntDir)
    assert trained.max() - trained.min() < 2 * np.pi * 0.9
    assert outside == [1]


@pytest.mark.parametrize("name", NAMES)
def test_goals_are_drawn_from_the_range_of_the_tasks(name: str) -> None:
    made = family(name)
    rng = np.random.default_rng(0)
    drawn = np.array([made.draw_goal(rng) for _ in range(500)])
    tasks = np.array([made.goal_of(task) for task in {*made.train_tasks, *made.test_tasks}])
    assert drawn.min() <= tasks.min() + 0.1
    assert drawn.max() >= tasks.max() - 0.1
    features = made.goal_features(made.with_goal(float(drawn[0])))
    assert features.shape == (made.goal_size,)
    assert np.abs(features).max() <= 3


def test_expert_bars_apply_only_at_the_papers_horizon() -> None:
    assert family("cheetah_vel").expert_bars == ExpertBars(return_mean=-20.0)
    assert family("ant_dir").expert_bars.early_ends == 0.05
    assert family("cheetah_vel", horizon=100).expert_bars == ExpertBars()


@pytest.fixture
def weights(tmp_path: Path) -> Callable[[Locomotion], Path]:
    def save(made: Locomotion) -> Path:
        rng = np.random.default_rng(1)
        inputs = made.observation_size + made.goal_size
        sizes = [(8, inputs), (8, 8), (made.action_size, 8)]
        layers = [(rng.normal(size=size), rng.normal(size=size[0])) for size in sizes]
        path = tmp_path / f"{made.name}.safetensors"
        about = {
            "mean": np.full(inputs, 0.1),
            "deviation": np.full(inputs, 2.0),
            "log_std": np.full(made.action_size, -1.0),
        }
        goal_policy.save(path, layers, **about)
        return path

    return save


def test_a_learned_policy_acts_the_same_alone_and_in_a_batch(weights: Callable[[Locomotion], Path]) -> None:
    made = family("cheetah_vel")
    policy: Any = made.behavior({"weights": str(weights(made)), "noise": 1.0})
    environments = [made.make(task) for task in (0, 20, 39)]
    observations = np.stack([e.reset(seed=i)[0] for i, e in enumerate(environments)])
    rngs = lambda: [np.random.default_rng(i) for i in range(3)]  # noqa: E731
    together = policy.together(environments, observations, rngs())
    alone = [policy(*one) for one in zip(environments, observations, rngs(), strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert together.dtype == np.float32
    assert np.abs(together).max() <= 1.0
    assert not np.allclose(together[0], policy(environments[2], observations[0], rngs()[0])), "it sees the goal"


def test_weights_of_another_width_or_none_are_refused(weights: Callable[[Locomotion], Path]) -> None:
    made, other = family("cheetah_vel"), family("ant_dir")
    with pytest.raises(Exception, match="made for 18 inputs and 6 actions, but the family has 29 and 8"):
        other.behavior({"weights": str(weights(made)), "noise": 1.0})
    with pytest.raises(Exception, match="no such file"):
        made.behavior({"weights": "nowhere.safetensors", "noise": 1.0})


def test_an_environment_with_a_changed_goal_equals_a_new_one(weights: Callable[[Locomotion], Path]) -> None:
    made = family("ant_dir", horizon=20)
    behavior = {"weights": str(weights(made)), "noise": 1.0}
    pool, shard = Pool(made), Shard("expert", 3, 5, 2)
    collect_episodes(pool, behavior, Shard("expert", 0, 0, 3), seed=1)
    kept = pool.of(3, 3)
    used = collect_episodes(pool, behavior, shard, seed=1)
    assert pool.of(3, 3) == kept, "no simulator is built twice"
    for name, array in collect_episodes(Pool(made), behavior, shard, seed=1).items():
        np.testing.assert_array_equal(used[name], array)
