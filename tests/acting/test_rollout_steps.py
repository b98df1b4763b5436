"""A rollout step by step: what the policies are given, in which parts, and when it ends."""

from typing import Any

import numpy as np
import pytest
import torch

from pd_pipeline.acting.actors import Actors, Started, prompted
from pd_pipeline.acting.environments import Outcome
from pd_pipeline.acting.rollouts import Group, rollout
from pd_pipeline.models.decision_transformer import PromptingDecisionTransformer, Steps
from tests.acting.test_rollouts import family, normalization, policy, prompts, rolled


def running_off() -> PromptingDecisionTransformer:
    """A policy that always moves to the right."""
    model = policy(family("line")[0])
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.fill_(3.0)
    return model


def test_on_a_cpu_groups_are_split_to_fit_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five windows of at most three steps: two of them fill a part of six steps."""
    monkeypatch.setattr("pd_pipeline.acting.rollouts.CPU_CHUNK", 6)
    of, block = family("point_robot")
    sizes: list[int] = []
    act = Started.act

    def watched(self: Started, window: Steps) -> torch.Tensor:
        sizes.append(len(window.timesteps))
        return act(self, window)

    monkeypatch.setattr(Started, "act", watched)
    rolled(of, block, [(policy(of), np.arange(5))], [0, 1, 2, 0, 1], prompts(of, 5))
    assert sizes == [2, 2, 1] * of.horizon


@pytest.mark.parametrize("bf16", [False, True])
def test_prompts_and_windows_are_read_in_the_same_precision(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    of, block = family("point_robot")
    autocast: dict[str, set[bool]] = {"prompt": set(), "window": set()}

    started, act = Actors.started, Started.act

    def prompts_read(self: Actors) -> Started:
        autocast["prompt"].add(torch.is_autocast_enabled("cpu"))
        return started(self)

    def window_read(self: Started, window: Steps) -> torch.Tensor:
        autocast["window"].add(torch.is_autocast_enabled("cpu"))
        return act(self, window)

    monkeypatch.setattr(Actors, "started", prompts_read)
    monkeypatch.setattr(Started, "act", window_read)
    rolled(of, block, [(policy(of), np.arange(2))], [0, 1], prompts(of, 2), bf16=bf16)
    assert autocast == {"prompt": {bf16}, "window": {bf16}}


class Rewarding:
    """Two environments that stand still; the first reward is 2 to the 24, then 1 per step."""

    def __init__(self) -> None:
        self.reward = np.float32(2**24)

    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        return np.zeros((2, 2), np.float32)

    def step(self, actions: np.ndarray) -> Outcome:
        reward, self.reward = self.reward, np.float32(1)
        return Outcome(self.reset(), np.full(2, reward, np.float32), np.zeros(2, bool), np.zeros(2, bool))


def test_progress_and_rewards_are_counted_step_by_step() -> None:
    """Added to 2 to the 24, a reward of 1 would be lost in float32."""
    of, _ = family("point_robot")
    reported: list[tuple[Any, ...]] = []
    group = Group(np.arange(2), prompted(policy(of), prompts(of, 2), normalization(of)))
    found = rollout(
        [group], np.zeros(2), normalization(of), Rewarding(), lambda *given: reported.append(given), "title"
    )
    assert reported == [("title", step, 9) for step in range(1, 10)]
    assert found.returns.tolist() == [2**24 + 8] * 2
    assert found.lengths.tolist() == [9, 9]


def test_rollouts_stop_once_every_episode_has_ended() -> None:
    of, block = family("line")
    found = rolled(of, block, [(running_off(), np.arange(2))], [0, 1], prompts(of, 2))
    assert found.lengths.tolist() == [3, 3]
    assert (found.actions[:, :3] != 0).all()
    assert (found.actions[:, 3:] == 0).all()
    assert (found.observations[:, 3:] == 0).all()
