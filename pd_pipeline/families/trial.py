"""A trial of a user's environment before any work: it is made, and each of its policies acts in it once.

Whether an id is registered, a constructor takes the arguments of a task and a policy returns an action that fits, only
that code itself can tell. Without a trial the first stage of the family would, perhaps after hours of work on other
families. It runs in a process of its own, as all foreign environments do: they may hang or crash.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from pd_pipeline.config import PARAMS_FILE
from pd_pipeline.families import border
from pd_pipeline.families.base import Family, Policy, load_family
from pd_pipeline.families.locomotion import Locomotion
from pd_pipeline.workers import Answer, Workers, beat

SECONDS = 2.0  # once they have passed, no further task is tried


def qualities(
    name: str, block: dict[str, Any], levels: dict[str, dict[str, Any]], root: Path, patience: float
) -> list[str]:
    """Try the environment of a family; returns the qualities that the family itself has policies for.

    `block` is its `environment` block; `levels` changes descriptions of policies, or adds some. A process that sends no
    heartbeat for `patience` seconds is killed. Raises PipelineError, which names the block, for whatever goes wrong.
    """
    where = f"{PARAMS_FILE}: families.{name}.environment"
    with Workers(_trial, [(name, block, root)], where, "it was trying the environment", patience) as process:
        process.send([levels])
        (found,) = process.gather()
    return found


def _trial(name: str, block: dict[str, Any], root: Path) -> Answer:
    """Makes the family; answers `levels` with the family's own qualities, once all policies have acted."""
    family = load_family(name, block, root)

    def tried(levels: dict[str, dict[str, Any]]) -> list[str]:
        with border.refusals(family, "default_behaviors"):
            own = family.default_behaviors()
        described = own | {quality: own.get(quality, {}) | changes for quality, changes in levels.items()}
        policies = []
        for quality, description in described.items():
            if not isinstance(family, Locomotion):  # its policies are weights that are trained later
                with border.refusals(family, f"the policy of quality '{quality}'"):
                    policies.append((family.behavior(description), description.get("reset")))
        began = time.monotonic()
        for number, task in enumerate(dict.fromkeys((*family.train_tasks, *family.test_tasks))):
            if number and time.monotonic() - began > SECONDS:
                break
            _act(family, task, policies)
            beat()
        return list(own)

    return tried


def _act(family: Family, task: int, policies: list[tuple[Policy, dict[str, Any] | None]]) -> None:
    """Make the environment of a task, and take the first step of an episode with each of its policies."""
    environment, rng = border.make(family, task), np.random.default_rng(0)
    border.reset(family, environment, seed=0)
    for policy, options in policies:
        observation = border.reset(family, environment, seed=0, options=options)
        border.step(family, environment, border.act(family, policy, environment, observation, rng))
    environment.close()
