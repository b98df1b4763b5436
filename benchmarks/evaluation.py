"""Batched rollouts against evaluating one environment at a time, with the same PLM.

The reference is what evaluation code commonly does: one episode after another, batch 1, the whole sequence through the
plain forward pass at every step, NumPy to tensors and back. Building the simulators is not counted on either side.
"""

import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from benchmarks.common import Figure, at_least, command, timed
from pd_pipeline.acting.actors import prompted
from pd_pipeline.acting.environments import make_batch
from pd_pipeline.acting.rollouts import Group, rollout
from pd_pipeline.families.base import Family, load_family
from pd_pipeline.models.decision_transformer import PolicyConfig, PromptingDecisionTransformer, Steps
from pd_pipeline.models.prompting import prompt_steps, prompt_tensors
from pd_pipeline.progress import silent
from pd_pipeline.prompts.segments import Normalization, Prompts

GOAL, HORIZON, PROMPT = 20, 200, 5


def plm(family: Family, window: int) -> tuple[PromptingDecisionTransformer, Normalization]:
    """A PLM of 128 x 3 that acts on `window` steps, with random weights: its speed does not depend on them."""
    size = family.observation_size
    channels = size + family.action_size + 1
    normalization = Normalization(
        np.zeros(channels, np.float32), np.ones(channels, np.float32), 1.0, HORIZON, size, family.action_size
    )
    config = PolicyConfig(
        observation_size=size,
        action_size=family.action_size,
        max_timestep=HORIZON,
        prompt_length=PROMPT,
        acting_context=window,
    )
    torch.manual_seed(0)
    return PromptingDecisionTransformer(config).eval(), normalization


def prompts(family: Family, count: int) -> Prompts:
    """Random prompts."""
    rng = np.random.default_rng(0)
    channels = family.observation_size + family.action_size + 1
    timesteps = np.broadcast_to(np.arange(PROMPT, dtype=np.float32), (count, PROMPT))
    return Prompts(
        rng.standard_normal((count, PROMPT, channels), np.float32),
        np.stack((np.ones((count, PROMPT), np.float32), timesteps), axis=-1),
        np.zeros(count, np.int32),
        np.full(count, -1, np.int64),
        np.zeros(count, np.int32),
    )


@torch.no_grad()
def one_episode(
    policy: PromptingDecisionTransformer, prompt: Prompts, normalization: Normalization, environment: gymnasium.Env
) -> None:
    """An episode in one environment."""
    steps = prompt_steps(*prompt_tensors(prompt, normalization), normalization)
    context = policy.config.acting_window
    observation, _ = environment.reset(seed=0)
    observations, actions, returns_to_go, rest = [], [], [], 1.0
    for step in range(HORIZON):
        observations.append(observation)
        actions.append(np.zeros(normalization.action_size, np.float32))
        returns_to_go.append(rest)
        first = max(0, step + 1 - context)
        window = Steps(
            torch.tensor([returns_to_go[first:]], dtype=torch.float32) / normalization.return_scale,
            torch.from_numpy(normalization.observations(np.array(observations[first:], np.float32)))[None],
            torch.from_numpy(normalization.actions(np.array(actions[first:], np.float32)))[None],
            torch.arange(first, step + 1)[None],
        )
        actions[-1] = normalization.to_actions(policy(steps, window)[0, -1].numpy())
        observation, reward, *_ = environment.step(actions[-1])
        rest -= float(reward)


def one_at_a_time(family: Family, window: int, episodes: int) -> float:
    """Steps per second of one environment after another."""
    policy, normalization = plm(family, window)
    environment, prompt = family.make(family.test_tasks[0]), prompts(family, 1)
    one_episode(policy, prompt, normalization, environment)
    seconds = timed(lambda: [one_episode(policy, prompt, normalization, environment) for _ in range(episodes)])
    return episodes * HORIZON / seconds


def batched(family: Family, block: dict[str, Any], window: int, count: int) -> tuple[float, float]:
    """Steps per second of `count` environments in parallel, and the seconds that building them took."""
    policy, normalization = plm(family, window)
    tasks = [family.test_tasks[i % len(family.test_tasks)] for i in range(count)]
    made: list[Any] = []
    building = timed(lambda: made.append(make_batch(family, block, Path.cwd(), tasks, list(range(count)))))
    groups = [Group(np.arange(count), prompted(policy, prompts(family, count), normalization))]
    try:
        seconds = timed(lambda: rollout(groups, np.ones(count), normalization, made[0], silent, ""))
    finally:
        made[0].close()
    return count * HORIZON / seconds, building


def measure(quick: bool) -> tuple[list[Figure], dict[str, Any]]:
    """One at a time, and batched as in the default configuration on reach and in the full benchmark."""
    few, many, episodes = (8, 16, 1) if quick else (180, 720, 4)
    figures: list[Figure] = []
    details: dict[str, float | None] = {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
    for name, window, count in (
        ("point_robot", 20, few),
        ("point_robot", 5, few),
        ("point_robot", 5, many),
        ("reach", 5, few),
    ):
        block = {"horizon": HORIZON}
        family = load_family(name, block, Path.cwd())
        reference = one_at_a_time(family, window, episodes)
        found, building = batched(family, block, window, count)
        title = f"{name}: {count} rollouts together, acting on {window} steps"
        figures.append(at_least(title, found, reference, "steps/s", goal=GOAL))
        details[f"{title}: seconds to build the environments"] = building
    return figures, details


if __name__ == "__main__":
    command("evaluation", measure)
