"""The border between the pipeline and an environment or a policy written by somebody else.

Whatever foreign code raises becomes one line, and what it returns must have the shape that the family states: NumPy
would silently broadcast an observation of shape (1,) or a scalar action over a whole row. Values (finite, within the
bounds) are checked on whole episodes, where that costs nothing: see `trajectories.validation`.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import BatchPolicy, Family, Policy
from pd_pipeline.foreign import error_text, time_limit


class Step(NamedTuple):
    """The result of an environment's step."""

    observation: np.ndarray  # (d_s,)
    reward: float
    terminated: bool
    truncated: bool
    success: bool


@contextmanager
def refusals(family: Family, what: str) -> Iterator[None]:
    """Turn what foreign code raises, SystemExit included, into a PipelineError that says where."""
    try:
        yield
    except PipelineError:
        raise
    except (Exception, SystemExit) as error:
        raise PipelineError(
            f"family '{family.name}': {what} raised {error_text(error)}: fix it and run again"
        ) from error


def make(family: Family, task: int) -> gymnasium.Env:
    """A new environment of a task."""
    what = f"making the environment of task {task}"
    with refusals(family, what), time_limit(f"family '{family.name}': {what}"):
        return family.make(task)


def reset(family: Family, environment: gymnasium.Env, **arguments: Any) -> np.ndarray:
    """Start an episode; the first observation (d_s,)."""
    try:
        observation, _ = environment.reset(**arguments)
    except (Exception, SystemExit) as error:
        with refusals(family, "reset of the environment"):
            raise error
    return _checked(family, observation)


def step(family: Family, environment: gymnasium.Env, action: np.ndarray) -> Step:
    """Execute an action (d_a,) and check the result."""
    try:
        observation, reward, terminated, truncated, info = environment.step(action)
        result = Step(observation, float(reward), bool(terminated), bool(truncated), bool(info.get("success", False)))
    except (Exception, SystemExit) as error:
        with refusals(family, "step of the environment"):
            raise error
    _checked(family, observation)
    return result


def act(
    family: Family, policy: Policy, environment: gymnasium.Env, observation: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The action of a policy, (d_a,). Raises PipelineError where it has another shape."""
    try:
        action = policy(environment, observation, rng)
    except (Exception, SystemExit) as error:
        with refusals(family, "a behaviour policy"):
            raise error
    return _of_shape(family, action, (family.action_size,))


def act_together(
    family: Family,
    policy: BatchPolicy,
    environments: Sequence[gymnasium.Env],
    observations: np.ndarray,
    rngs: Sequence[np.random.Generator],
) -> np.ndarray:
    """Actions (n, d_a) of a policy in n environments at once. Raises PipelineError where they have another shape."""
    with refusals(family, "a behaviour policy"):
        actions = policy.together(environments, observations, rngs)
    return _of_shape(family, actions, (len(environments), family.action_size))


def goal(family: Family, task: int) -> dict[str, Any]:
    """The goal of a task, which is kept with its trajectories. Raises PipelineError where JSON cannot hold it."""
    with refusals(family, f"the goal of task {task}"):
        found = family.goal(task)
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PipelineError(
            f"family '{family.name}': goal({task}) is not plain ({error}): return lists, finite floats and text, such "
            "as array.tolist()"
        ) from None
    return found


def _of_shape(family: Family, actions: np.ndarray, expected: tuple[int, ...]) -> np.ndarray:
    if getattr(actions, "shape", None) != expected:
        raise PipelineError(
            f"family '{family.name}': a policy returned an action of shape {np.shape(actions)}, expected {expected}: "
            "fix the policy"
        )
    return actions


def _checked(family: Family, observation: np.ndarray) -> np.ndarray:
    if getattr(observation, "shape", None) != (family.observation_size,) or observation.dtype.kind != "f":
        kind = getattr(observation, "dtype", type(observation).__name__)
        raise PipelineError(
            f"family '{family.name}': the environment returned an observation of shape {np.shape(observation)} and "
            f"type {kind}, expected floats of shape ({family.observation_size},): fix the environment"
        )
    return observation
