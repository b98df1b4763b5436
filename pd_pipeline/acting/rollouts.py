"""Rollouts: the actors of all methods and targets advance together, with one forward pass per group.

All environments are at the same step, so windows have equal length and nothing is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pd_pipeline.acting.actors import Actors, joined
from pd_pipeline.acting.environments import Outcome
from pd_pipeline.models.decision_transformer import Steps
from pd_pipeline.progress import Progress
from pd_pipeline.prompts.segments import Normalization

CPU_CHUNK = 2560  # steps of all windows in one forward pass


class BatchedEnvironments(Protocol):
    """n environments stepped together."""

    def reset(self, seeds: list[int] | None = None) -> np.ndarray:
        """Observations (n, d_s)."""

    def step(self, actions: np.ndarray) -> Outcome:
        """Apply actions (n, d_a)."""


@dataclass(frozen=True)
class Group:
    """Some of n environments, and the actors in them."""

    rows: np.ndarray  # (m,) indices of the environments
    actors: Actors  # m of them


def grouped(parts: Sequence[Actors]) -> list[Group]:
    """Actors of consecutive environments; those that one forward pass can serve are one group."""
    ends = np.cumsum([len(part) for part in parts])
    compatible: list[list[int]] = []
    for i, part in enumerate(parts):
        group = next((group for group in compatible if parts[group[0]].is_like(part)), None)
        if group is None:
            compatible.append([i])
        else:
            group.append(i)
    return [
        Group(
            np.concatenate([np.arange(ends[i] - len(parts[i]), ends[i]) for i in group]),
            joined([parts[i] for i in group]),
        )
        for group in compatible
    ]


@dataclass(frozen=True)
class Rollouts:
    """Results of n episodes."""

    returns: np.ndarray  # (n,)
    success: np.ndarray  # (n,) bool: at any step
    lengths: np.ndarray  # (n,)
    observations: np.ndarray  # (n, T, d_s) before each action; zeros after the end
    actions: np.ndarray  # (n, T, d_a) as executed; meaningless after the end


def rollout(
    groups: list[Group],
    target_returns: np.ndarray,
    normalization: Normalization,
    environments: BatchedEnvironments,
    progress: Progress,
    title: str,
    bf16: bool = False,
    seeds: list[int] | None = None,
) -> Rollouts:
    """Run one episode in each of n environments, which are reset with `seeds` if given.

    Every environment belongs to one of `groups`, whose policies share one window length; `target_returns` (n,) has one
    entry per environment. The return-to-go that a policy is given falls by the reward received. `bf16` autocasts the
    policies.
    """
    count, horizon = len(target_returns), normalization.horizon
    covered = np.sort(np.concatenate([group.rows for group in groups]))
    assert np.array_equal(covered, np.arange(count)), "every environment is in exactly one group"
    device = next(groups[0].actors.policy.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    with autocast:
        acting = [(part.actors.started(), part.rows) for group in groups for part in _parts(group, device)]
    context = groups[0].actors.policy.config.acting_window
    observations = np.zeros((count, horizon, normalization.observation_size), np.float32)
    actions = np.zeros((count, horizon, normalization.action_size), np.float32)
    returns_to_go = np.zeros((count, horizon), np.float32)
    returns, lengths = np.zeros(count), np.zeros(count, int)
    success, ended = np.zeros(count, bool), np.zeros(count, bool)
    observation = environments.reset(seeds)
    for step in range(horizon):
        observations[:, step] = np.where(ended[:, None], 0, observation)
        returns_to_go[:, step] = target_returns - returns
        first = max(0, step + 1 - context)
        window = Steps(
            torch.from_numpy(returns_to_go[:, first : step + 1] / normalization.return_scale),
            torch.from_numpy(normalization.observations(observations[:, first : step + 1])),
            torch.from_numpy(normalization.actions(actions[:, first : step + 1])),
            torch.arange(first, step + 1).expand(count, -1),
        )
        for started, rows in acting:
            picked = torch.from_numpy(rows)
            with autocast:
                normalized = started.act(Steps(*(part[picked].to(device) for part in window)))
            actions[rows, step] = normalization.to_actions(normalized.cpu().numpy())
        outcome = environments.step(actions[:, step])
        returns += outcome.rewards
        lengths += ~ended
        success |= outcome.success & ~ended
        observation, ended = outcome.observations, outcome.ended
        progress(title, step + 1, horizon)
        if ended.all():
            break
    return Rollouts(returns, success, lengths, observations, actions)


def _parts(group: Group, device: torch.device) -> list[Group]:
    """Split a group on a CPU, so that the activations of each part fit its cache."""
    steps = len(group.rows) * group.actors.policy.config.acting_window
    count = -(-steps // CPU_CHUNK) if device.type == "cpu" else 1
    split = np.array_split(np.arange(len(group.rows)), count)
    return [Group(group.rows[of], group.actors.select(of)) for of in split]
