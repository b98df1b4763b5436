"""Conditions of the diffuser beyond return and time: by hand, and what of them is asked for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import load_family
from pd_pipeline.models.conditions import Conditions, ask, conditioned, conditions_of, for_target
from pd_pipeline.models.diffuser import Denoiser, DenoiserConfig
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors, to_prompts
from pd_pipeline.prompts.segments import Normalization, cut
from tests.builders import fill, trajectories

DATA = trajectories((6, 4, 6), (0, 0, 1))
SEGMENTS = cut(DATA, 3)  # starts 0 to 3, 0 to 1, 0 to 3
SCALE = Normalization.of([DATA])
TASKS = {0: (-1.0, 1.0), 1: (1.0, 0.5), 7: (3.0, 0.0)}
ALL = Conditions(names=("phase", "task", "effort"), tasks=TASKS)


def described(goals: dict[int, Any], train: tuple[int, ...] = (0, 1)) -> Any:
    return SimpleNamespace(name="mine", train_tasks=train, test_tasks=tuple(set(goals) - set(train)), goal=goals.get)


def test_none_leaves_y_as_the_policy_reads_it() -> None:
    for found, expected in zip(
        conditioned(SEGMENTS, Conditions(), SCALE), prompt_tensors(SEGMENTS, SCALE), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_channels_by_hand() -> None:
    x0, y = conditioned(SEGMENTS, ALL, SCALE)
    assert y.shape == (10, 3, 6)
    assert ALL.size == 4
    torch.testing.assert_close(y[..., :2], prompt_tensors(SEGMENTS, SCALE)[1])
    phase = torch.tensor([0, 1 / 3, 2 / 3, 1, 0, 1, 0, 1 / 3, 2 / 3, 1])
    torch.testing.assert_close(y[:, 0, ALL.channels("phase")], phase[:, None])
    tasks = torch.tensor([TASKS[0]] * 6 + [TASKS[1]] * 4)
    torch.testing.assert_close(y[:, 0, ALL.channels("task")], tasks)
    size, actions = SCALE.observation_size, SCALE.action_size
    effort = x0[..., size : size + actions].square().mean((1, 2))
    torch.testing.assert_close(y[:, 0, ALL.channels("effort")], effort[:, None])
    assert (y[:, :1, 2:] == y[..., 2:]).all(), "the same at every step"


def test_the_policy_does_not_read_them() -> None:
    x0, y = conditioned(SEGMENTS, ALL, SCALE)
    for found, expected in zip(prompt_steps(x0, y, SCALE), prompt_steps(x0, y[..., :2], SCALE), strict=True):
        torch.testing.assert_close(found, expected)
    np.testing.assert_allclose(to_prompts(x0, y, SCALE, 0).y, SEGMENTS.y, rtol=1e-5, atol=1e-6)


def test_the_denoiser_reads_each_of_them() -> None:
    model = Denoiser(DenoiserConfig(channels=2, prompt_length=3, width=8, blocks=2, frequencies=4, conditions=ALL))
    fill(model)
    y = torch.rand(2, 3, 6, requires_grad=True)
    model(torch.rand(2, 3, 2), y, torch.rand(2)).square().sum().backward()
    assert y.grad is not None
    assert (y.grad[:, 0, 2:] != 0).all()


def test_task_numbers_are_standardised_over_the_training_tasks() -> None:
    goals = {0: {"b": [1.0, 5], "a": 2.0}, 1: {"a": 4.0, "b": [3.0, 5]}, 2: {"a": 3.0, "b": [6.0, 6]}}
    found = conditions_of(["task", "phase", "task"], described(goals))
    assert found.names == ("task", "phase")
    assert found.tasks == {0: (-1.0, -1.0, 0.0), 1: (1.0, 1.0, 0.0), 2: (0.0, 4.0, 1.0)}, "a, then b"
    assert Conditions.model_validate_json(found.model_dump_json()) == found


def test_every_number_of_a_real_family() -> None:
    family = load_family("point_robot", {}, Path())
    found = conditions_of(["task"], family)
    assert set(found.tasks) == {*family.train_tasks, *family.test_tasks}
    assert found.size == 2
    known = np.array([found.tasks[task] for task in family.train_tasks])
    np.testing.assert_allclose(known.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(known.std(0), 1)


@pytest.mark.parametrize("goals", [{0: {}, 1: {}}, {0: {"a": 1.0}, 1: {"a": [1.0, 2.0]}}, {0: {"a": "up"}, 1: {}}])
def test_tasks_without_numbers_are_refused(goals: dict[int, Any]) -> None:
    with pytest.raises(PipelineError, match=r"families\.mine\.diffuser\.conditions: task: .* equally many numbers"):
        conditions_of(["task"], described(goals))


def test_a_target_stands_in_place_of_a_training_task() -> None:
    _, y = conditioned(SEGMENTS, ALL, SCALE)
    found = for_target(y, ALL, 7)
    assert (found[..., ALL.channels("task")] == torch.tensor(TASKS[7])).all()
    others = [0, 1, 2, 5]
    assert (found[..., others] == y[..., others]).all()
    assert for_target(y, Conditions(names=("phase",)), 7) is y
    with pytest.raises(PipelineError, match=r"task 9: the diffuser .* knows nothing of this task: it knows 0, 1, 7"):
        for_target(y, ALL, 9)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_is_asked_for_is_a_quantile_of_the_segments(share: float) -> None:
    _, y = conditioned(SEGMENTS, ALL, SCALE)
    before = y.clone()
    found = ask(y, ALL, {"effort": share}, "tuned")
    place = ALL.channels("effort")
    expected = np.quantile(y[:, 0, place].numpy(), share)
    np.testing.assert_allclose(found[..., place], expected, rtol=1e-6)
    assert (found[..., :5] == y[..., :5]).all()
    assert (y == before).all(), "the segments' own conditions stay"
    assert ask(y, ALL, {}, "tuned") is y


def test_to_ask_for_what_the_diffuser_does_not_know_is_refused() -> None:
    _, y = conditioned(SEGMENTS, Conditions(), SCALE)
    with pytest.raises(PipelineError, match=r"tuned: ask: the diffuser was pre-trained without .* `phase`"):
        ask(y, Conditions(), {"phase": 0.5}, "tuned")
