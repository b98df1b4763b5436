"""A step of a policy that was taken out (`pd_pipeline.load_policy`), in one environment on the CPU.

`act` checks its input, keeps the window, normalises, and computes more rows than are asked for, so that its actions
are evaluation's to the bit; the prompt is not computed again. The reference is the bare forward pass of the same PLM
on the same prompt and window, as tensors that are there already. The other limit is 5 ms, a control loop of 200 Hz.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Figure, alternate, at_most, command, timed
from benchmarks.evaluation import plm, prompts
from pd_pipeline.acting.actors import prompted
from pd_pipeline.deployment.folder import Description
from pd_pipeline.deployment.policy import Loaded, Policy
from pd_pipeline.families.base import load_family
from pd_pipeline.models.decision_transformer import Steps

LIMIT_MS = 5.0
FAMILY, HORIZON = "reach", 200


def policy_of(window: int) -> tuple[Policy, Loaded, Steps]:
    """A policy of 128 x 3 with random weights for the sizes of reach, its parts, and its prompt."""
    family = load_family(FAMILY, {"horizon": HORIZON}, Path.cwd())
    model, normalization = plm(family, window)
    actors = prompted(model, prompts(family, 1), normalization)
    prefix = actors.prefix(model, *actors.conditions)
    description = Description(
        family=FAMILY,
        task=0,
        seed=0,
        method="prompt_dt",
        varies="prompt_dt",
        module="pd_pipeline.tuning.prompt_dt",
        frozen=True,
        requires_grad=False,
        observation_size=family.observation_size,
        action_size=family.action_size,
        action_low=tuple(family.action_low.tolist()),
        action_high=tuple(family.action_high.tolist()),
        horizon=HORIZON,
        acting_context=window,
        target_return=1.0,
        precision="float32",
        actor=0,
        origin="generated",
        origin_step=0,
        actor_losses=(0.0,),
        chosen_by="benchmark",
        versions={},
        made_from={},
        files={},
    )
    loaded = Loaded(description, model.requires_grad_(False), normalization, prefix)
    return Policy(loaded), loaded, Steps(*actors.conditions)


def steps_per_second(policy: Policy, size: int) -> float:
    """Of one episode."""
    observations = np.random.default_rng(0).standard_normal((HORIZON, size), np.float32)
    policy.reset()
    return HORIZON / timed(lambda: [policy.act(observation, 0.0) for observation in observations])


@torch.no_grad()
def passes_per_second(loaded: Loaded, prompt: Steps, window: int) -> float:
    """Forward passes of the PLM on the prompt and a full window."""
    size, actions = loaded.description.observation_size, loaded.description.action_size
    given = Steps(
        torch.ones(1, window), torch.ones(1, window, size), torch.ones(1, window, actions), torch.arange(window)[None]
    )
    return HORIZON / timed(lambda: [loaded.plm(prompt, given) for _ in range(HORIZON)])


def measure(quick: bool) -> tuple[list[Figure], dict[str, Any]]:
    """Windows of 5 steps, as the published policies act on, and of 20, the default."""
    rounds = 2 if quick else 15
    figures = []
    for window in (5, 20):
        policy, loaded, prompt = policy_of(window)
        size = loaded.description.observation_size
        ours, bare, rate = alternate(
            lambda policy=policy, size=size: steps_per_second(policy, size),  # type: ignore[misc]
            lambda loaded=loaded, prompt=prompt, window=window: passes_per_second(loaded, prompt, window),  # type: ignore[misc]
            rounds,
        )
        title = f"one step, acting on {window} steps"
        against = f"{title}, against a bare forward pass"
        figures.append(at_most(against, 1e3 / ours, 1e3 / bare, "ms", goal=2, ratio=1 / rate))
        figures.append(at_most(f"{title}, against the limit", 1e3 / ours, LIMIT_MS, "ms", goal=1))
    return figures, {"threads": torch.get_num_threads()}


if __name__ == "__main__":
    command("policy_step", measure)
