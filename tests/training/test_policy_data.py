"""Batches for the PLM: every number of a sample is where it belongs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pd_pipeline.errors import PipelineError
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors
from pd_pipeline.prompts.segments import Normalization, Prompts, cut
from pd_pipeline.training.policy_data import PolicyData, TaskInterpolation, interpolate, policy_loss
from pd_pipeline.trajectories.reading import Trajectories
from tests.builders import D_A, D_S, trajectories
from tests.builders import policy as made_policy

LENGTHS, TASKS = (9, 4, 10, 2, 7), (0, 0, 3, 3, 3)


def labelled() -> Trajectories:
    """Observations say (task, episode, step), actions (row, 0)."""
    data = trajectories(LENGTHS, TASKS)
    row = 0
    for episode, (length, task) in enumerate(zip(LENGTHS, TASKS, strict=True)):
        for step in range(length):
            data.observations[row] = (task, episode, step)
            data.actions[row] = (row, 0)
            row += 1
    return data


def plain() -> Normalization:
    """A normalisation that changes nothing."""
    base = Normalization.of([trajectories(LENGTHS, TASKS)])
    return replace(base, mean=np.zeros(6, np.float32), std=np.ones(6, np.float32), return_scale=1.0)


@pytest.fixture
def data() -> PolicyData:
    return PolicyData(labelled(), plain())


def test_windows_are_those_met_when_acting(data: PolicyData) -> None:
    """A window starts at most K steps before its last step, and never before the episode."""
    source = labelled()
    rng = np.random.default_rng(0)
    ends = set()
    for _ in range(200):
        window, valid = data.any_windows(rng, 8, 4)
        for i in range(8):
            count = int(valid[i].sum())
            assert valid[i].tolist() == [True] * count + [False] * (4 - count), "padded on the right"
            task, episode, first = (int(x) for x in window.observations[i, 0])
            end = first + count
            assert first == max(0, end - 4)
            assert end <= LENGTHS[episode]
            assert TASKS[episode] == task
            ends.add((episode, end))
            rows = source.starts[episode] + np.arange(first, end)
            assert window.timesteps[i, :count].tolist() == list(range(first, end))
            np.testing.assert_array_equal(window.observations[i, :count], source.observations[rows])
            np.testing.assert_array_equal(window.actions[i, :count], source.actions[rows])
            np.testing.assert_array_equal(window.returns_to_go[i, :count], source.returns_to_go[rows])
    assert ends == {(episode, end) for episode, length in enumerate(LENGTHS) for end in range(1, length + 1)}


def test_padding_reads_nothing_beyond_the_data(data: PolicyData) -> None:
    """Windows of short episodes at the end of the data must not read beyond it."""
    window, valid = data.windows(np.array([4, 3]), np.random.default_rng(0), 20)
    assert window.timesteps.max() < 10
    assert window.observations.isfinite().all()
    assert not valid[:, -1].any()


def test_a_batch_is_balanced_over_tasks_and_prompts_are_of_the_same_task(data: PolicyData) -> None:
    rng = np.random.default_rng(1)
    same_episode, starts = 0, set()
    for _ in range(100):
        batch = data.batch(rng, per_task=3, prompt_length=3, context=4)
        tasks = batch.window.observations[:, 0, 0]
        assert tasks.tolist() == [0] * 3 + [3] * 3
        assert (batch.prompt.observations[..., 0] == tasks[:, None]).all()
        episodes, steps = batch.prompt.observations[..., 1], batch.prompt.observations[..., 2]
        assert (episodes == episodes[:, :1]).all(), "a prompt is of one trajectory"
        assert (steps.diff(dim=1) == 1).all(), "and consecutive"
        assert (batch.prompt.timesteps == steps.long()).all()
        assert set(episodes[:, 0].tolist()) <= {0, 1, 2, 4}, "episode 3 is shorter than a prompt"
        starts |= {(int(e), int(s)) for e, s in zip(episodes[:, 0], steps[:, 0], strict=True)}
        same_episode += int((episodes[:, 0] == batch.window.observations[:, 0, 1]).sum())
    assert starts == {(e, s) for e in (0, 1, 2, 4) for s in range(LENGTHS[e] - 2)}, "every segment is drawn"
    assert 0 < same_episode < 600


def test_prompts_may_come_from_other_episodes_of_the_same_tasks(data: PolicyData) -> None:
    """Windows stay those that are drawn without."""
    other = labelled()
    other.observations[:, 1] += 100
    shown = PolicyData(other, plain())
    batch, alone = (data.batch(np.random.default_rng(2), 5, 3, 4, prompts=given) for given in (shown, None))
    assert (batch.prompt.observations[..., 1] >= 100).all()
    assert (batch.prompt.observations[:, 0, 0] == batch.window.observations[:, 0, 0]).all(), "of the same task"
    for own, other_part in zip(batch.window, alone.window, strict=True):
        assert torch.equal(own, other_part)
    torch.testing.assert_close(batch.prompt.observations[..., 2], alone.prompt.observations[..., 2])


def test_a_task_without_an_episode_as_long_as_a_prompt_is_named(data: PolicyData) -> None:
    with pytest.raises(PipelineError, match=r"task 0: no episode .* is as long as a prompt of 10 steps: shorten"):
        data.batch(np.random.default_rng(0), 3, 10, 4)


def test_an_episode_as_long_as_a_prompt_gives_one_prompt(data: PolicyData) -> None:
    rng, drawn = np.random.default_rng(1), set()
    for _ in range(50):
        prompt = data.batch(rng, 3, 2, 4).prompt
        drawn |= {(int(e), int(s)) for e, s in prompt.observations[:, 0, 1:]}
    assert drawn == {(e, s) for e, length in enumerate(LENGTHS) for s in range(length - 1)}, "episode 3 gives one"


def test_prompts_are_full_and_shapes_are_as_documented(data: PolicyData) -> None:
    batch = data.batch(np.random.default_rng(0), 5, 2, 6)
    assert batch.prompt.observations.shape == (10, 2, D_S)
    assert batch.window.actions.shape == (10, 6, D_A)
    assert batch.valid.shape == batch.window.returns_to_go.shape == (10, 6)
    assert batch.valid.dtype == torch.bool
    assert batch.valid[:, 0].all()


def test_batches_are_pure_functions_of_the_generator(data: PolicyData) -> None:
    one, same, other = (data.batch(np.random.default_rng([0, step]), 3, 2, 4) for step in (5, 5, 6))
    assert torch.equal(one.window.observations, same.window.observations)
    assert torch.equal(one.prompt.actions, same.prompt.actions)
    assert not torch.equal(one.window.observations, other.window.observations)


def test_normalised_like_prompts() -> None:
    source = trajectories(LENGTHS, TASKS)
    normalization = Normalization.of([source])
    data = PolicyData(source, normalization)
    prompts = cut(source, 2)
    x0, y = prompt_tensors(prompts, normalization)
    steps = prompt_steps(x0, y, normalization)
    rows = source.starts[np.searchsorted(source.episode_id, prompts.episode_id)] + prompts.start
    np.testing.assert_allclose(steps.observations[:, 0], data.observations[rows], atol=1e-5)
    np.testing.assert_allclose(steps.actions[:, 0], data.actions[rows], atol=1e-5)
    np.testing.assert_allclose(steps.returns_to_go[:, 0], data.returns_to_go[rows], atol=1e-6)
    np.testing.assert_array_equal(steps.timesteps, prompts.y[..., 1].astype(int))


def test_the_reward_row_is_not_read_and_timesteps_stay_embedded() -> None:
    normalization = plain()
    x0, y = torch.randn(2, 3, D_S + D_A + 1), torch.rand(2, 3, 2)
    y[0, 0, 1], y[1, 2, 1] = -0.4, 1.7
    other = x0.clone()
    other[..., -1] += 100
    for a, b in zip(prompt_steps(x0, y, normalization), prompt_steps(other, y, normalization), strict=True):
        assert torch.equal(a, b)
    timesteps = prompt_steps(x0, y, normalization).timesteps
    assert timesteps.dtype == torch.long
    assert timesteps.min() == 0
    assert timesteps.max() == 9


def test_interpolation_is_the_weighted_mean_of_two_samples(data: PolicyData) -> None:
    one, other = (data.batch(np.random.default_rng([0, step]), 3, 2, 4) for step in (5, 6))
    mixed = interpolate(one, other, torch.tensor([1.0, 0.0, 0.25, 0.5, 1.5, -0.5]))
    for part in ("prompt", "window"):
        a, b, c = (getattr(batch, part) for batch in (one, other, mixed))
        torch.testing.assert_close(c.observations[0], a.observations[0])
        torch.testing.assert_close(c.observations[1], b.observations[1])
        torch.testing.assert_close(c.observations[2], 0.25 * a.observations[2] + 0.75 * b.observations[2])
        torch.testing.assert_close(c.returns_to_go[4], 1.5 * a.returns_to_go[4] - 0.5 * b.returns_to_go[4])
        torch.testing.assert_close(c.actions[5], (1.5 * b.actions[5] - 0.5 * a.actions[5]).clamp(-1, 1))
        torch.testing.assert_close(c.timesteps, a.timesteps)
    torch.testing.assert_close(mixed.valid, one.valid)


def test_interpolated_samples_mix_two_episodes_at_the_same_steps(data: PolicyData) -> None:
    """Observations are (task, episode, step): the step is that of the timestep, whatever the weight."""
    beyond = 0
    for step in range(50):
        batch = data.batch(np.random.default_rng([1, step]), 3, 2, 4, TaskInterpolation(share=1, extrapolation=0.5))
        for part, valid in ((batch.prompt, torch.ones(6, 2, dtype=torch.bool)), (batch.window, batch.valid)):
            torch.testing.assert_close(part.observations[..., 2][valid], part.timesteps[valid].float())
            tasks = part.observations[..., 0][valid]
            beyond += int(((tasks < 0) | (tasks > 3)).sum())
            assert tasks.min() >= -1.5
            assert tasks.max() <= 4.5
        assert batch.window.actions.abs().max() <= 1
    assert beyond > 0, "some lie beyond both tasks"


def test_without_interpolation_no_extra_random_numbers_are_drawn(data: PolicyData) -> None:
    plain_batch = data.batch(np.random.default_rng(3), 3, 2, 4)
    off = data.batch(np.random.default_rng(3), 3, 2, 4, TaskInterpolation())
    torch.testing.assert_close(plain_batch.window.observations, off.window.observations)


def test_interpolation_gives_prompt_and_window_the_same_weight(data: PolicyData) -> None:
    batch = data.batch(np.random.default_rng(5), 50, 2, 4, TaskInterpolation(share=1, extrapolation=0.3))
    tasks = batch.prompt.observations[:, 0, 0], batch.window.observations[:, 0, 0]
    torch.testing.assert_close(*tasks)


def test_windows_of_a_batch_end_at_every_step(data: PolicyData) -> None:
    rng, ends = np.random.default_rng(1), set()
    for _ in range(100):
        batch = data.batch(rng, 3, 2, 4)
        last = batch.valid.sum(1) - 1
        of_last = batch.window.observations[torch.arange(6), last]
        ends |= {(int(episode), int(step)) for episode, step in of_last[:, 1:]}
    assert ends == {(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)}


def test_interpolation_by_hand(data: PolicyData) -> None:
    """A partner too short for window or prompt is not used; each of the others has its own weight."""
    mixed, exact = 0, 0
    for seed in range(60):
        batch = data.batch(np.random.default_rng(seed), 3, 2, 4, TaskInterpolation(share=0.6, extrapolation=0.5))
        rng = np.random.default_rng(seed)
        windows, prompts = (np.concatenate([rng.choice(of, 3) for of in ([0, 1], [2, 3, 4])]) for _ in range(2))
        starts = rng.integers(0, np.array(LENGTHS)[prompts] - 1)
        ends = rng.integers(1, np.array(LENGTHS)[windows] + 1)
        partners, share, weights = rng.permutation(6), rng.random(6), rng.uniform(-0.5, 1.5, 6)
        for i, j in enumerate(partners):
            left = LENGTHS[windows[j]] - ends[i], LENGTHS[prompts[j]] - (starts[i] + 2)
            takes_part = share[i] < 0.6 and min(left) >= 0
            weight = weights[i] if takes_part else 1.0
            mixed += int(takes_part)
            exact += int(takes_part and min(left) == 0)
            other = j if takes_part else i
            for part, episodes, first in (
                (batch.prompt, prompts, starts[i]),
                (batch.window, windows, max(ends[i] - 4, 0)),
            ):
                own, its = ((TASKS[e], e, first) for e in (episodes[i], episodes[other]))
                expected = weight * np.array(own) + (1 - weight) * np.array(its)
                np.testing.assert_allclose(part.observations[i, 0], expected, atol=1e-5)
                assert part.timesteps[i, 0] == first
    assert mixed > 60
    assert exact > 5, "some partners end where the sample does"


def test_only_valid_steps_are_in_the_loss() -> None:
    """Beyond the end of an episode the last step repeats: predictions there do not count."""
    model = made_policy()
    data = PolicyData(trajectories((6, 2), (0, 1)), Normalization.of([trajectories((6, 2), (0, 1))]))
    batch = data.batch(np.random.default_rng(0), 3, 2, 4)
    with torch.no_grad():
        errors = (model(batch.prompt, batch.window) - batch.window.actions) ** 2
        assert float(policy_loss(model, batch)) == pytest.approx(float(errors[batch.valid].mean()), rel=1e-5)
    assert not batch.valid.all()


@pytest.mark.parametrize("horizon", [150, 500])
def test_every_timestep_is_recovered_from_its_share_of_the_horizon(horizon: int) -> None:
    """Some shares times the horizon are slightly below the timestep, by rounding."""
    normalization = replace(plain(), horizon=horizon)
    timesteps = np.arange(horizon, dtype=np.float32).reshape(1, -1)
    x0 = np.zeros((1, horizon, D_S + D_A + 1), np.float32)
    y = np.stack((np.zeros_like(timesteps), timesteps), axis=-1)
    zeros = np.zeros(1, np.int32)
    tensors = prompt_tensors(Prompts(x0, y, zeros, zeros.astype(np.int64), zeros), normalization)
    assert ((tensors[1][..., 1] * horizon).numpy() < timesteps).any()
    assert prompt_steps(*tensors, normalization).timesteps.tolist() == [list(range(horizon))]
