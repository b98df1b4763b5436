"""Pitfalls of Meta-World, one test per pitfall, and how the family handles them."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import nnls

from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import Policy, load_family
from pd_pipeline.families.meta_world import GOAL, OBJECT, MetaWorldEnv
from pd_pipeline.families.reach import Reach
from pd_pipeline.trajectories.collection import Pool, Shard, collect_episodes
from tests.builders import benchmark
from tests.builders import reach as family

pytestmark = [
    pytest.mark.xdist_group("reach"),  # only one process builds the benchmark
    pytest.mark.filterwarnings("ignore:Constant"),
]


@pytest.fixture(scope="module")
def reach() -> Reach:
    return family(horizon=200)


def expert(made: Reach) -> Policy:
    return made.behavior({"gain": 1.0, "noise": 0.0})


def run(environment: MetaWorldEnv, policy: Policy, steps: int) -> dict[str, np.ndarray]:
    """One episode: observations before each action, actions, rewards, success."""
    observation, _ = environment.reset()
    rows = []
    for _ in range(steps):
        action = policy(environment, observation, np.random.default_rng(0))
        after, reward, _, _, info = environment.step(action)
        rows.append((observation, action, reward, info["success"]))
        observation = after
    return {
        name: np.array(column)
        for name, column in zip(("observation", "action", "reward", "success"), zip(*rows, strict=True), strict=True)
    }


def test_tasks_are_those_of_the_training_split() -> None:
    """The environment registered with Gymnasium serves the test split; ours must not."""
    reach, train = family(), benchmark(0)
    simulator = train.train_classes["reach-v3"]()
    for task in (0, 7, 19):
        simulator.set_task(train.train_tasks[task])
        simulator.reset()
        assert reach.goal(task)["position"] == pytest.approx(simulator._target_pos.tolist())
        simulator.set_task(train.test_tasks[task])
        simulator.reset()
        assert reach.goal(task)["position"] != pytest.approx(simulator._target_pos.tolist())


def test_test_tasks_of_a_seed_are_the_training_tasks_of_the_next() -> None:
    """Why the targets come from `train_tasks`: Meta-World's own test split is another seed's training split."""
    this, following = benchmark(0), benchmark(1)
    assert [task.data for task in this.test_tasks] == [task.data for task in following.train_tasks]


def test_splits_are_those_of_the_papers(reach: Reach) -> None:
    assert [task + 1 for task in reach.test_tasks] == [6, 9, 15, 16, 20]
    assert len(reach.train_tasks) == 15
    assert sorted((*reach.train_tasks, *reach.test_tasks)) == list(range(20))
    goals = {tuple(reach.goal(task)["position"]) for task in range(20)}
    assert len(goals) == 20, "every task has its own goal"


def beyond_hull(point: np.ndarray, others: np.ndarray) -> float:
    """Distance from `point` (3,) to the convex hull of `others` (n, 3)."""
    heavy = 1e3  # makes the weights of the nearest point of the hull sum to one
    weights, _ = nnls(np.vstack([others.T, np.full(len(others), heavy)]), np.append(point, heavy))
    return float(np.linalg.norm(others.T @ weights - point))


def test_the_validation_split_is_as_hard_as_the_published_one_without_its_targets(reach: Reach) -> None:
    validation = family(split="validation")
    assert set(validation.train_tasks) | set(validation.test_tasks) == set(reach.train_tasks)

    def distances(made: Reach) -> np.ndarray:
        """To the nearest training goal and beyond their hull, each sorted over targets, (2, 5)."""
        known = np.array([made.goal(task)["position"] for task in made.train_tasks])
        targets = [np.array(made.goal(task)["position"]) for task in made.test_tasks]
        nearest = [np.linalg.norm(known - target, axis=1).min() for target in targets]
        return np.sort([nearest, [beyond_hull(target, known) for target in targets]])

    assert np.abs(distances(validation) - distances(reach)).max() < 0.01


def test_the_goal_of_the_metadata_is_that_of_the_environment(reach: Reach) -> None:
    for task in (0, 5, 19):
        environment = reach.make(task)
        environment.reset()
        assert reach.goal(task)["position"] == environment.unwrapped.goal.tolist()
    json.dumps(reach.goal(0))


def test_goals_depend_on_the_benchmark_seed(reach: Reach) -> None:
    built = load_family("reach", {"benchmark_seed": 1}, Path.cwd())
    assert built.goal(0) == family(benchmark_seed=1).goal(0)
    assert built.goal(0) != reach.goal(0)


def test_resets_are_deterministic_whatever_the_seed(reach: Reach) -> None:
    first, second = reach.make(2), reach.make(2)
    starts = [first.reset(seed=1)[0], first.reset(seed=2)[0], second.reset(seed=3)[0]]
    np.testing.assert_array_equal(starts[0], starts[1])
    np.testing.assert_array_equal(starts[0], starts[2])
    episodes = [run(environment, expert(reach), 30) for environment in (first, first, second)]
    np.testing.assert_array_equal(episodes[0]["observation"], episodes[1]["observation"])
    np.testing.assert_array_equal(episodes[0]["reward"], episodes[2]["reward"])


@pytest.mark.parametrize("mask_object", [False, True])
def test_the_goal_is_masked_from_the_first_reset_on(mask_object: bool) -> None:
    environment = family(mask_object=mask_object).make(5)
    for _ in range(2):
        observation, _ = environment.reset()
        assert not observation[GOAL].any()
        for _ in range(3):
            observation = environment.step(np.ones(4, np.float32))[0]
            assert not observation[GOAL].any()


def test_setting_partially_observable_by_hand_is_not_enough() -> None:
    """Set after construction it shows in resets but not in steps, whose bounds are cached: the wrapper must mask."""
    simulator = benchmark(0).train_classes["reach-v3"]()
    simulator.set_task(benchmark(0).train_tasks[5])
    assert simulator._partially_observable
    simulator._partially_observable = False
    assert simulator.reset()[0][GOAL].any()
    assert not simulator.step(np.zeros(4, np.float32))[0][GOAL].any()
    wrapped = MetaWorldEnv(simulator, mask_object=False, success_radius=0.05)
    assert not wrapped.reset()[0][GOAL].any()
    assert not wrapped.step(np.zeros(4, np.float32))[0][GOAL].any()
    assert wrapped.goal.any(), "while scripted policies still see it"


def test_two_tasks_in_the_same_state_look_the_same() -> None:
    """Only the prompt may reveal the task: with the puck masked the observation does not."""
    made = family(mask_object=True)
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 4)).astype(np.float32)
    seen = []
    for task in (0, 5, 11):
        environment = made.make(task)
        rows = [environment.reset()[0]]
        rows += [environment.step(action)[0] for action in actions]
        seen.append(np.array(rows))
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-6)
    np.testing.assert_allclose(seen[0], seen[2], atol=1e-6)


def test_the_puck_identifies_the_task_unless_masked() -> None:
    shown = [family(mask_object=False).make(task).reset()[0] for task in (0, 5)]
    assert (shown[0][OBJECT[0]] != shown[1][OBJECT[0]]).any()
    others = np.ones(39, bool)
    for part in OBJECT:
        others[part] = False
    np.testing.assert_allclose(shown[0][others], shown[1][others], atol=1e-6)
    masked = family(mask_object=True).make(0).reset()[0]
    for part in OBJECT:
        assert not masked[part].any()
    np.testing.assert_array_equal(masked[others], shown[0][others])


def test_the_script_sees_the_goal_in_a_copy(reach: Reach) -> None:
    environment = reach.make(5)
    observation, _ = environment.reset()
    kept = observation.copy()
    shown = environment.full_observation(observation)
    np.testing.assert_array_equal(shown[GOAL], reach.goal(5)["position"])
    np.testing.assert_array_equal(shown[:36], observation[:36])
    expert(reach)(environment, observation, np.random.default_rng(0))
    np.testing.assert_array_equal(observation, kept)


def test_stored_observations_stay_masked_and_stored_actions_are_clipped(reach: Reach) -> None:
    noisy = {"gain": 1.0, "noise": 0.8}
    arrays = collect_episodes(Pool(reach), noisy, Shard("expert", 5, 0, 1), seed=0)
    assert not arrays["observation"][:, GOAL].any()
    assert np.abs(arrays["action"]).max() == 1.0, "the bound is reached, so something was clipped"
    environment = reach.make(5)
    environment.reset()
    replayed = [environment.step(action)[0] for action in arrays["action"][:20]]
    np.testing.assert_array_equal(replayed, arrays["observation"][1:21])


def test_the_scripts_raw_actions_exceed_the_bounds(reach: Reach) -> None:
    """Its raw actions go beyond 1: unclipped, they would not be valid actions."""
    from metaworld.policies import SawyerReachV3Policy

    environment = reach.make(5)
    observation, _ = environment.reset()
    raw = SawyerReachV3Policy().get_action(environment.full_observation(observation))
    assert np.abs(raw).max() > 1
    action = expert(reach)(environment, observation, np.random.default_rng(0))
    np.testing.assert_allclose(action, np.clip(raw, -1, 1), atol=1e-6)


@pytest.mark.parametrize("task", [0, 19])
def test_the_expert_succeeds_and_without_the_goal_it_fails(reach: Reach, task: int) -> None:
    environment = reach.make(task)
    episode = run(environment, expert(reach), 200)
    assert episode["success"].any()
    assert np.argmax(episode["success"]) < 100
    assert 1600 < episode["reward"].sum() < 2000, "10 per step at the goal"

    def blind(environment: MetaWorldEnv, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        from metaworld.policies import SawyerReachV3Policy

        return np.clip(SawyerReachV3Policy().get_action(observation.astype(np.float64)), -1, 1).astype(np.float32)

    failed = run(environment, blind, 200)
    assert not failed["success"].any()
    assert failed["reward"].sum() < 0.3 * episode["reward"].sum()


def test_qualities_are_ordered(reach: Reach) -> None:
    returns = [
        collect_episodes(Pool(reach), description, Shard(quality, 8, 0, 1), seed=0)["reward"].sum()
        for quality, description in reach.default_behaviors().items()
    ]
    assert returns[0] > returns[1] > returns[2]


def test_exploring_starts_differ_by_seed_and_are_not_steps(reach: Reach) -> None:
    environment = reach.make(5)
    still = environment.reset()[0]
    starts = [environment.reset(seed=seed, options={"exploring_steps": 40})[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert np.linalg.norm(starts[0][:3] - starts[2][:3]) > 0.01
    assert np.linalg.norm(starts[0][:3] - still[:3]) > 0.01
    assert environment.unwrapped.simulator.curr_path_length == 0


def test_pushes_move_the_arm_between_steps_and_are_not_steps() -> None:
    made = family(horizon=500)
    pushed = {"push_chance": 0.2, "push_steps": 8}

    def episode(seed: int, options: dict[str, float] | None) -> tuple[np.ndarray, np.ndarray]:
        environment = made.make(5)
        observations = [environment.reset(seed=seed, options=options)[0]]
        rewards = []
        for _ in range(500):  # as many steps as the simulator allows, without pushes
            action = expert(made)(environment, observations[-1], np.random.default_rng(0))
            observation, reward, _, truncated, _ = environment.step(action)
            observations.append(observation)
            rewards.append(reward)
        assert truncated
        return np.array(observations), np.array(rewards)

    calm, (first, rewards), (same, _), (other, _) = (
        episode(seed, options) for seed, options in ((1, None), (1, pushed), (1, pushed), (2, pushed))
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)

    def jumps(observations: np.ndarray) -> np.ndarray:
        """Distance of the gripper between two steps at the goal, metres."""
        return np.linalg.norm(np.diff(observations[100:, :3], axis=0), axis=1)

    assert jumps(calm[0]).max() < 0.002
    assert 0.05 < (jumps(first) > 0.01).mean() < 0.25, "about as often as configured, unless a push is short"
    assert 0.5 * calm[1].sum() < rewards.sum() < calm[1].sum()
    after = made.make(5)
    after.reset(seed=1, options=pushed)
    again = after.reset(seed=1)[0]
    np.testing.assert_array_equal(again, calm[0][0])
    assert np.array_equal(after.step(np.zeros(4, np.float32))[0], _still(made)), "pushes end with the episode"


def _still(made: Reach) -> np.ndarray:
    environment = made.make(5)
    environment.reset()
    return environment.step(np.zeros(4, np.float32))[0]


def test_some_dimensions_never_change(reach: Reach) -> None:
    """Why the deviation is guarded when normalising."""
    observations = run(reach.make(0), expert(reach), 50)["observation"]
    constant = observations.std(0) < 1e-6
    assert constant[GOAL].all()
    assert constant.sum() > 10


def test_the_second_half_is_the_previous_step(reach: Reach) -> None:
    observations = run(reach.make(0), expert(reach), 10)["observation"]
    np.testing.assert_allclose(observations[1:, 18:36], observations[:-1, :18], atol=1e-6)


def test_horizons_above_500_are_refused_and_500_works() -> None:
    with pytest.raises(PipelineError, match=r"families\.reach\.environment\.horizon.*500.*501"):
        family(horizon=501)
    made = family(horizon=500)
    arrays = collect_episodes(Pool(made), {"gain": 1.0, "noise": 0.0}, Shard("expert", 5, 0, 2), seed=0)
    returns = arrays["reward"].reshape(2, 500).sum(1)
    assert (returns > 4500).all(), "4,830 on average over tasks"
    assert arrays["truncated"].reshape(2, 500)[:, -1].all()
    assert not arrays["terminated"].any()


def test_versions_name_the_simulator(reach: Reach) -> None:
    assert {"metaworld", "mujoco"} <= reach.versions().keys()
