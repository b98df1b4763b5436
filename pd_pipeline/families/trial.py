"""A trial of a user's environment before any work: it is made, and each of its policies acts in it once.

Whether an id is registered, a constructor takes the arguments of a task and a policy returns an action that fits, only
that code itself can tell. Without a trial the first stage of the family would, perhaps after hours of work on other
families. It runs in a process of its own, as all foreign environments do: they may hang or crash.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from pd_pipeline.config import PARAMS_FILE
from pd_pipeline.errors import PipelineError
from pd_pipeline.families import border
from pd_pipeline.families.base import Family, Policy, load_family
from pd_pipeline.families.descriptions import changed
from pd_pipeline.families.locomotion import Locomotion
from pd_pipeline.workers import Answer, Workers, beat

log = logging.getLogger("pd_pipeline")
SECONDS = 2.0  # once they have passed, no further task is tried


def qualities(
    name: str, block: dict[str, Any], levels: dict[str, dict[str, Any]], root: Path, patience: float
) -> list[str]:
    """Try the environment of a family; returns the qualities that the family itself has policies for.

    `block` is its `environment` block; `levels` changes descriptions of policies, or adds some. A process that sends no
    heartbeat for `patience` seconds is killed. Raises PipelineError, which names the block, for whatever goes wrong.
    """
    where, advice = f"{PARAMS_FILE}: families.{name}", "it was trying the environment before any work"
    with Workers(_trial, [(name, block, root)], where, advice, patience) as process:
        process.send([levels])
        (found,) = process.gather()
    return found


def _trial(name: str, block: dict[str, Any], root: Path) -> Answer:
    """Makes the family; answers `levels` with the family's own qualities, once all policies have acted."""
    return partial(_tried, load_family(name, block, root))


def _tried(family: Family, levels: dict[str, dict[str, Any]]) -> list[str]:
    block, began = f"{PARAMS_FILE}: families.{family.name}", time.monotonic()
    with _named(f"{block}.environment"), border.refusals(family, "default_behaviors"):
        own = family.default_behaviors()
    policies = []
    for quality in dict.fromkeys((*own, *levels)):
        if isinstance(family, Locomotion):
            break  # its policies are weights, which are trained by the first stage
        place = f"{block}.behavior_policies.levels.{quality}" if quality in levels else f"{block}.environment"
        description = changed(own.get(quality, {}), levels.get(quality, {}))
        with _named(place), border.refusals(family, f"the policy of quality '{quality}'"):
            policies.append((place, family.behavior(description), description.get("reset")))
    for number, task in enumerate(dict.fromkeys((*family.train_tasks, *family.test_tasks))):
        if number and time.monotonic() - began > SECONDS:
            break
        with _named(f"{block}.environment"):
            border.goal(family, task)
            environment = border.make(family, task)
            border.reset(family, environment, seed=0)
        for place, policy, options in policies:
            with _named(place):
                _act(family, environment, policy, options)
        if not number and policies and _hides_success(family, environment):
            log.warning(
                f"note: {block}.environment: its first step has neither info['success'] nor info['is_success']: unless "
                "a later one has, set `success: false`, or every episode counts as failed"
            )
        environment.close()
        beat()
    return list(own)


def _hides_success(family: Family, environment: gymnasium.Env) -> bool:
    told = "tells_success"
    return family.has_success and environment.has_wrapper_attr(told) and not environment.get_wrapper_attr(told)


def _act(family: Family, environment: gymnasium.Env, policy: Policy, options: dict[str, Any] | None) -> None:
    """The first step of an episode."""
    observation = border.reset(family, environment, seed=0, options=options)
    border.step(family, environment, border.act(family, policy, environment, observation, np.random.default_rng(0)))


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Name the place in params.yaml in errors that do not."""
    try:
        yield
    except PipelineError as error:
        raise PipelineError(str(error) if place in str(error) else f"{place}: {error}") from error
