"""Batched rollouts against one environment at a time, and environments in workers against local ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from pd_pipeline.acting.actors import Started, prompted
from pd_pipeline.acting.environments import LocalBatch, WorkerBatch, make_batch
from pd_pipeline.acting.rollouts import Group, Rollouts, rollout
from pd_pipeline.families.base import Family, load_family
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer, Steps
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors
from pd_pipeline.progress import silent
from pd_pipeline.prompts.segments import Normalization, Prompts
from tests.builders import policy as made_policy
from tests.families.test_gymnasium_env import block as line_block

ROOT = Path(__file__).parent.parent / "families"
PLANE: dict[str, Any] = {"horizon": 9, "tasks": 5, "test_tasks": [1]}


def family(name: str) -> tuple[Family, dict[str, Any]]:
    """The plane, or the line whose episodes end when the point leaves it."""
    block = PLANE if name == "point_robot" else line_block(horizon=9)
    return load_family(name, block, ROOT), block


def policy(of: Family, seed: int = 0, **changes: Any) -> PromptingDecisionTransformer:
    sizes: dict[str, Any] = {
        "observation_size": of.observation_size,
        "action_size": of.action_size,
        "max_timestep": of.horizon,
        "acting_context": 3,
    }
    return made_policy(seed, **sizes | changes)


def normalization(of: Family) -> Normalization:
    size = of.observation_size
    mean, std = np.zeros(size + of.action_size + 1, np.float32), np.ones(size + of.action_size + 1, np.float32)
    mean[:size], std[:size] = 0.1, 0.7
    std[size:-1] = of.action_high
    return Normalization(mean, std, 5.0, of.horizon, size, of.action_size)


def prompts(of: Family, count: int, seed: int = 0) -> Prompts:
    rng = np.random.default_rng(seed)
    start = rng.integers(0, of.horizon - 2, count).astype(np.int32)
    y = np.stack((rng.normal(size=(count, 2)), start[:, None] + np.arange(2)), axis=-1).astype(np.float32)
    x0 = rng.normal(size=(count, 2, of.observation_size + of.action_size + 1)).astype(np.float32)
    return Prompts(x0, y, np.zeros(count, np.int32), np.full(count, -1), start)


def one_at_a_time(
    model: PromptingDecisionTransformer,
    prompt: Prompts,
    *,
    target: float,
    normal: Normalization,
    environment: gymnasium.Env,
    seed: int,
) -> tuple[float, bool, int, np.ndarray]:
    """An episode as evaluation code usually does it: the whole sequence through the plain forward at every step."""
    steps = prompt_steps(*prompt_tensors(prompt, normal), normal)
    observation, _ = environment.reset(seed=seed)
    observations, actions, returns_to_go = [], [], []
    total, success = 0.0, False
    for step in range(normal.horizon):
        observations.append(observation)
        returns_to_go.append(target - total)
        actions.append(np.zeros(normal.action_size, np.float32))
        first = max(0, step + 1 - model.config.acting_window)
        window = Steps(
            torch.tensor(np.array(returns_to_go[first:], np.float32) / normal.return_scale)[None].float(),
            torch.from_numpy(normal.observations(np.array(observations[first:])))[None].float(),
            torch.from_numpy(normal.actions(np.array(actions[first:])))[None].float(),
            torch.arange(first, step + 1)[None],
        )
        with torch.no_grad():
            action = normal.to_actions(model(steps, window)[0, -1].numpy())
        actions[-1] = action
        observation, reward, terminated, truncated, info = environment.step(action)
        total += np.float32(reward)
        success = success or bool(info["success"])
        if terminated or truncated:
            break
    return total, success, step + 1, np.array(actions)


def rolled(
    of: Family,
    block: dict[str, Any],
    models: list[tuple[PromptingDecisionTransformer, np.ndarray]],
    tasks: list[int],
    given: Prompts,
    **changes: Any,
) -> Rollouts:
    """Prompt i in environment i, with target returns from -2 to 3."""
    groups = [Group(rows, prompted(model, given.select(rows), normalization(of))) for model, rows in models]
    return rolled_groups(of, block, groups, tasks, **changes)


def rolled_groups(of: Family, block: dict[str, Any], groups: list[Group], tasks: list[int], **changes: Any) -> Rollouts:
    seeds = [100 + i for i in range(len(tasks))]
    environments = make_batch(of, block, ROOT, tasks, seeds, 1)
    targets = np.linspace(-2, 3, len(tasks))
    try:
        return rollout(groups, targets, normalization(of), environments, silent, "test", **changes)
    finally:
        environments.close()


def nothing(of: Family, count: int) -> Prompts:
    """Prompts of zero steps."""
    full = prompts(of, count)
    return replace(full, x0=full.x0[:, :0], y=full.y[:, :0], start=np.zeros(count, np.int32))


@pytest.mark.parametrize("name", ["point_robot", "line"])
def test_batched_equals_one_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several policies, tasks and prompts together, in parts; the context is shorter than the episode."""
    monkeypatch.setattr("pd_pipeline.acting.rollouts.CPU_CHUNK", 6)  # two rows of three steps
    of, block = family(name)
    tasks = [0, 1, 2, 1, 0, 2]
    given = prompts(of, len(tasks))
    models = [(policy(of, 0), np.array([0, 2, 3])), (policy(of, 1), np.array([1, 4, 5]))]
    found = rolled(of, block, models, tasks, given)
    assert models[0][0].config.acting_window < models[0][0].config.context < of.horizon
    for model, rows in models:
        for i in rows:
            expected = one_at_a_time(
                model,
                given.select(np.array([i])),
                target=float(np.linspace(-2, 3, len(tasks))[i]),
                normal=normalization(of),
                environment=of.make(tasks[i]),
                seed=100 + int(i),
            )
            assert found.returns[i] == pytest.approx(expected[0], rel=1e-4, abs=1e-4)
            assert found.success[i] == expected[1]
            assert found.lengths[i] == expected[2]
            np.testing.assert_allclose(found.actions[i, : expected[2]], expected[3], atol=1e-4)
    if name == "line":
        assert found.lengths.min() < of.horizon, "some episode ended early"


def test_ended_episodes_collect_no_more_rewards() -> None:
    """One policy runs off the line, another stands still: the others go on, ended episodes no longer change."""
    of, block = family("line")
    runs, stands = policy(of), policy(of)
    for model, bias in ((runs, 3.0), (stands, 0.0)):  # always to the right, or standing still
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.fill_(bias)
    rows = np.array([0, 2])
    found = rolled(of, block, [(runs, rows), (stands, np.array([1]))], [0, 1, 2], prompts(of, 3))
    assert found.lengths.tolist() == [3, 9, 3], "1 per step, the line ends at 2"
    assert (found.observations[rows, 3:] == 0).all()
    assert (found.observations[rows, :3] != 0).all()
    assert (found.observations[1] == found.observations[1, 0]).all()
    assert found.success.tolist() == [False, False, True], "tasks -1, 0.5 and 1: one is passed on the way"
    environment = of.make(0)
    environment.reset(seed=100)
    expected = sum(np.float32(environment.step(np.array([2 * np.tanh(3.0)], np.float32))[1]) for _ in range(3))
    assert found.returns[0] == pytest.approx(expected, abs=1e-4)


def test_the_return_to_go_falls_by_the_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    of, block = family("point_robot")
    seen = []
    original = Started.act

    def spy(self: Started, window: Steps) -> torch.Tensor:
        seen.append(window)
        return original(self, window)

    monkeypatch.setattr(Started, "act", spy)
    found = rolled(of, block, [(policy(of), np.arange(2))], [0, 1], prompts(of, 2))
    assert [w.timesteps.shape[1] for w in seen] == [1, 2, 3, 3, 3, 3, 3, 3, 3], "the acting window"
    np.testing.assert_allclose(seen[0].returns_to_go[:, 0] * 5, [-2, 3])
    last = seen[-1].returns_to_go[:, -1].numpy() * 5
    environment = of.make(1)
    environment.reset(seed=101)
    rewards = [environment.step(action)[1] for action in found.actions[1]]
    assert last[1] == pytest.approx(3 - sum(rewards[:-1]), abs=1e-4)
    assert found.returns[1] == pytest.approx(sum(rewards), abs=1e-4)


def test_workers_give_the_same_as_one_process() -> None:
    of, block = family("line")
    tasks = [0, 1, 2, 1, 0]
    seeds = [3, 4, 5, 6, 7]
    local = LocalBatch(of, tasks, seeds)
    spread = WorkerBatch(of, block, ROOT, tasks, seeds, 2)
    try:
        for _ in range(2):  # a reset starts a new episode
            np.testing.assert_array_equal(local.reset(), spread.reset())
            rng = np.random.default_rng(0)
            for _ in range(6):
                actions = rng.uniform(-2, 2, (5, 1)).astype(np.float32)
                for one, other in zip(local.step(actions), spread.step(actions), strict=True):
                    np.testing.assert_array_equal(one, other)
    finally:
        local.close()
        spread.close()
    assert all(process.exitcode == 0 for process in spread._workers._processes)


def test_ended_environments_are_not_stepped() -> None:
    """One runs to the right until it leaves the line, the other stands still: each as if it were alone."""
    of, _ = family("line")
    batch = LocalBatch(of, [0, 0], [1, 2])
    alone = of.make(0), of.make(0)
    first = np.stack([environment.reset(seed=seed)[0] for environment, seed in zip(alone, (1, 2), strict=True)])
    np.testing.assert_array_equal(batch.reset(), first)
    over = False
    for step in range(5):
        outcome = batch.step(np.array([[2.0], [0.0]], np.float32))
        moved = (np.zeros(1), 0.0, True) if over else alone[0].step(np.array([2.0], np.float32))[:3]
        stands = alone[1].step(np.array([0.0], np.float32))
        np.testing.assert_array_equal(outcome.observations, np.stack((moved[0], stands[0])).astype(np.float32))
        np.testing.assert_array_equal(outcome.rewards, np.array([moved[1], stands[1]], np.float32))
        over = over or moved[2]
        assert outcome.ended.tolist() == [over, False]
        assert over == (first[0, 0] + step + 1 > 2), "the line ends at 2"
    batch.reset()
    assert batch.step(np.zeros((2, 1), np.float32)).ended.tolist() == [False, False]


def test_the_number_of_workers() -> None:
    of, block = family("point_robot")
    assert isinstance(make_batch(of, block, ROOT, [0], [1], None), LocalBatch)
    assert isinstance(make_batch(of, block, ROOT, [0, 1], [1, 2], 1), LocalBatch)


def test_prompts_matter_and_their_rewards_do_not() -> None:
    of, block = family("point_robot")
    models = [(policy(of), np.arange(2))]
    one = rolled(of, block, models, [0, 1], prompts(of, 2))
    np.testing.assert_array_equal(rolled(of, block, models, [0, 1], prompts(of, 2)).actions, one.actions)
    other = rolled(of, block, models, [0, 1], prompts(of, 2, seed=9))
    assert (one.actions != other.actions).any(axis=2).all(), "at every step of every episode"
    rewarded = replace(prompts(of, 2), x0=prompts(of, 2).x0 + np.eye(5, dtype=np.float32)[-1])
    np.testing.assert_array_equal(rolled(of, block, models, [0, 1], rewarded).actions, one.actions)


@pytest.mark.parametrize("heads", [1, 2])
def test_without_a_prompt_the_policy_acts_on_its_window_alone(heads: int) -> None:
    of, block = family("point_robot")
    model = policy(of, heads=heads)
    found = rolled(of, block, [(model, np.arange(3))], [0, 1, 2], nothing(of, 3))
    for i in range(3):
        expected = one_at_a_time(
            model,
            nothing(of, 1),
            target=float(np.linspace(-2, 3, 3)[i]),
            normal=normalization(of),
            environment=of.make(i),
            seed=100 + i,
        )
        np.testing.assert_allclose(found.actions[i], expected[3], atol=1e-5)
        assert found.returns[i] == pytest.approx(expected[0], abs=1e-4)


def test_results_do_not_depend_on_groups_of_other_lengths() -> None:
    """A group's episodes are bit-identical, whatever the prompts of the other group."""
    of, block = family("point_robot")
    model, given, tasks = policy(of), prompts(of, 5), [0, 1, 2, 1, 0]
    rows, others = np.array([0, 3, 4]), np.array([2, 1])
    alike = rolled(of, block, [(model, rows), (model, others)], tasks, given)
    parts = (rows, given.select(rows)), (others, nothing(of, 2))
    groups = [Group(each, prompted(model, under, normalization(of))) for each, under in parts]
    mixed = rolled_groups(of, block, groups, tasks)
    empty = rolled(of, block, [(model, others), (model, rows)], tasks, nothing(of, 5))
    for name in ("returns", "success", "lengths", "observations", "actions"):
        np.testing.assert_array_equal(getattr(mixed, name)[rows], getattr(alike, name)[rows])
        np.testing.assert_array_equal(getattr(mixed, name)[others], getattr(empty, name)[others])
    assert (alike.actions[others] != empty.actions[others]).any(axis=(1, 2)).all()


def test_every_environment_needs_exactly_one_policy() -> None:
    of, block = family("point_robot")
    for rows in (np.array([0]), np.array([0, 1, 1])):
        group = Group(rows, prompted(policy(of), prompts(of, len(rows)), normalization(of)))
        with pytest.raises(AssertionError, match="one group"):
            rolled_groups(of, block, [group], [0, 1])


def test_the_training_mode_of_a_policy_has_no_effect_and_stays() -> None:
    of, block = family("point_robot")
    expected = rolled(of, block, [(policy(of), np.arange(2))], [0, 1], prompts(of, 2))
    model = policy(of).train()
    found = rolled(of, block, [(model, np.arange(2))], [0, 1], prompts(of, 2))
    np.testing.assert_array_equal(found.actions, expected.actions)
    assert all(module.training for module in model.modules())


def test_bf16_is_used_where_asked_for() -> None:
    of, block = family("point_robot")
    models = [(policy(of), np.arange(2))]
    exact = rolled(of, block, models, [0, 1], prompts(of, 2))
    rounded = rolled(of, block, models, [0, 1], prompts(of, 2), bf16=True)
    assert (rounded.actions != exact.actions).any(axis=(1, 2)).all()
    np.testing.assert_allclose(rounded.actions, exact.actions, atol=0.1)
