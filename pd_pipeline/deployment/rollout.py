"""Trying a policy in the environment of its family, as `params.yaml` describes it."""

from pathlib import Path
from typing import Any

import numpy as np

from pd_pipeline import config
from pd_pipeline.acting.environments import episode_seed, make_batch
from pd_pipeline.deployment.folder import Description
from pd_pipeline.deployment.policy import Policy
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import Family, load_family
from pd_pipeline.families.registry import BUILT_IN
from pd_pipeline.reporting.rollouts import Episode


def starts(about: Description, episodes: int) -> list[int]:
    """The seeds of the resets: the first episodes of the policy's actor in evaluation."""
    return [episode_seed(about.seed, about.task, about.actor, episode) for episode in range(episodes)]


def environment_block(about: Description, root: Path) -> dict[str, Any]:
    """The `environment` block of the policy's family in the project at `root`. Raises PipelineError."""
    params = config.load(root)
    if about.family not in {*params.families, *BUILT_IN}:
        raise PipelineError(f"{config.PARAMS_FILE}: no family '{about.family}', which the policy was tuned for")
    return params.block(about.family, "environment")


def family_of(about: Description, block: dict[str, Any], root: Path) -> Family:
    """The policy's family. Raises PipelineError if `block` describes other environments than it was trained for."""
    family = load_family(about.family, block, root)
    where = f"{config.PARAMS_FILE}: families.{about.family}.environment"
    sizes = family.observation_size, family.action_size, family.horizon
    if sizes != (trained := (about.observation_size, about.action_size, about.horizon)):
        raise PipelineError(
            f"{where}: observation size, action size and horizon are {sizes}, but the policy was trained with {trained}"
        )
    if about.task not in (*family.train_tasks, *family.test_tasks):
        raise PipelineError(f"{where}: has no task {about.task}, which the policy was tuned for")
    return family


def roll_out(policy: Policy, root: Path, episodes: int, seeds: list[int] | None = None) -> list[Episode]:
    """Run episodes side by side with a policy loaded for as many, in the project at `root`. Raises PipelineError.

    `seeds` of the resets, one per episode; default: see `starts`.
    """
    about = policy.description
    block = environment_block(about, root)
    family = family_of(about, block, root)
    seeds, tasks = starts(about, episodes) if seeds is None else seeds, [about.task] * episodes
    environments = make_batch(family, block, root, tasks, seeds, workers=1, stage="rollout")
    observations: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    returns, lengths = np.zeros(episodes), np.zeros(episodes, int)
    success, ended = np.zeros(episodes, bool), np.zeros(episodes, bool)
    try:
        observation, reward = environments.reset(), None
        policy.reset()
        while len(actions) < about.horizon and not ended.all():
            observations.append(observation)
            actions.append(policy.act(observation, reward))
            outcome = environments.step(actions[-1])
            returns += outcome.rewards
            lengths += ~ended
            success |= outcome.success & ~ended
            observation, reward, ended = outcome.observations, outcome.rewards, outcome.ended
    finally:
        environments.close()
    seen, done = np.stack(observations, axis=1), np.stack(actions, axis=1)  # (episodes, T, .)
    return [
        Episode(
            about.method,
            about.task,
            about.seed,
            seen[row, :length],
            done[row, :length],
            float(returns[row]),
            bool(success[row]) if family.has_success else None,
        )
        for row, length in enumerate(lengths)
    ]
