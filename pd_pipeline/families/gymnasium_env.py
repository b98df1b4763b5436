"""A user's Gymnasium environment as a task family, without a family class."""

import importlib.metadata
import pkgutil
from collections.abc import Hashable
from contextlib import suppress
from functools import cached_property, partial
from typing import Annotated, Any

import gymnasium
import numpy as np
from gymnasium.error import DeprecatedEnv, UnregisteredEnv
from pydantic import Field

from pd_pipeline.config import MAX_TASKS, PARAMS_FILE, Name, Parameters
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import EntryPoint, Family, FamilyParams, Policy
from pd_pipeline.families.descriptions import Plain
from pd_pipeline.foreign import error_text, time_limit
from pd_pipeline.parsing import parse


class BehaviorParams(Parameters):
    """How trajectories of one quality are collected."""

    entry_point: EntryPoint | None = Field(
        default=None, description="'module:function', called as function(environment, observation, rng, **arguments)"
    )
    random: bool = Field(default=False, description="uniform random actions within the bounds, instead of a function")
    noise: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="standard deviation of Gaussian noise, relative to half the range of an action",
    )
    arguments: Plain = {}


class GymnasiumParams(FamilyParams):
    """The tasks of the environment, and the policies that collect trajectories in it."""

    entry_point: EntryPoint | None = Field(
        default=None, description="'module:Class', or 'module:function' that creates it"
    )
    gymnasium: str | None = Field(
        default=None,
        pattern=r"^([\w.:-]+/)?[\w.:-]+-v\d+$",
        max_length=200,
        description="id of a registered environment, instead of entry_point; 'module:id' imports a module first",
    )
    tasks: tuple[Plain, ...] = Field(
        min_length=2, max_length=MAX_TASKS, description="keyword arguments that define a task: the hidden goal"
    )
    test_tasks: tuple[int, ...] = Field(min_length=1, description="indices into `tasks`, held out as targets")
    options: Plain = Field(default={}, description="keyword arguments that all tasks share")
    files: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] = Field(
        default=(),
        max_length=1000,
        description="files and folders that the environment reads, such as models of a robot, relative to params.yaml: "
        "what is made by it is made again when they change",
    )
    success: bool = Field(
        default=True, description="whether infos say when an episode succeeds; false: no rates of success are shown"
    )
    behaviors: dict[Name, BehaviorParams] = Field(min_length=1)


def _hashable(value: Any) -> Hashable:
    """Equal for values of params.yaml that are equal."""
    if isinstance(value, dict):
        return frozenset((name, _hashable(inner)) for name, inner in value.items())
    return tuple(_hashable(inner) for inner in value) if isinstance(value, list | tuple) else value


class FlatEnv(gymnasium.Wrapper):
    """The environment with float32 observations, float rewards and `info["success"]` at every step."""

    tells_success = False
    """Whether an info of the environment itself said so far whether the step succeeds."""

    def reset(self, **arguments: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode."""
        observation, info = self.env.reset(**arguments)
        return np.asarray(observation, np.float32), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Act with float32 actions, converted to the dtype of the action space and clipped to its bounds.

        The float32 nearest to a bound may lie beyond it by its last digit.
        """
        space = self.env.action_space
        assert isinstance(space, gymnasium.spaces.Box), "checked with the family"
        within = np.clip(np.asarray(action, space.dtype), space.low, space.high)
        observation, reward, terminated, truncated, info = self.env.step(within)
        success = bool(info.get("success", info.get("is_success", False)))
        self.tells_success |= bool({"success", "is_success"} & info.keys())
        return np.asarray(observation, np.float32), float(reward), terminated, truncated, info | {"success": success}


class GymnasiumFamily(Family):
    """The tasks of a Gymnasium environment that takes its hidden goal as keyword arguments.

    Name it in params.yaml by its class, by a function that creates it, or by its id (`gymnasium: Pendulum-v1`, created
    without a step limit). `tasks` lists what differs between tasks; no observation may reveal it:

        families:
          pendulum_targets:
            environment:
              entry_point: pendulum_targets:PendulumEnv    # pendulum_targets.py next to params.yaml, or installed
              horizon: 100
              tasks: [{angle: -1.0}, {angle: -0.5}, {angle: 0.5}, {angle: 1.0}]
              test_tasks: [1]                              # indices into tasks; the others are training tasks
              options: {damping: 0.1}                      # arguments that all tasks share
              behaviors:
                expert: {entry_point: "pendulum_targets:expert"}
                medium: {entry_point: "pendulum_targets:expert", noise: 0.5, arguments: {gain: 0.3}}
                random: {random: true}

    Observation: a one-dimensional Box. Action: a one-dimensional Box with finite bounds. Reward: the environment's own.
    Success: `info["success"]` or `info["is_success"]`; `success: false` where there is neither.
    End: the environment's own, or the horizon.
    No two tasks may be the same; an environment with a single task has `tasks: [{}, {}]`, to train on and as target.
    A behaviour is a function (environment, observation, rng, **arguments) -> action; `environment.unwrapped` is the
    user's object, so an expert can read the goal. Noise is added before actions are clipped to the bounds, and the
    clipped action is stored. A change to the file of the environment or of a behaviour, to a module or package next to
    params.yaml that one of them imports, or to one of `files`, makes the trajectories stale.
    """

    Params = GymnasiumParams
    params: GymnasiumParams

    def __init__(self, name: str, params: GymnasiumParams):
        super().__init__(name, params)
        self._where = f"{PARAMS_FILE}: families.{name}.environment"
        if unknown := [task for task in params.test_tasks if not 0 <= task < len(params.tasks)]:
            raise PipelineError(f"{self._where}.test_tasks: {unknown} are not among tasks 0 to {len(params.tasks) - 1}")
        self._refuse_equal_tasks()
        self.test_tasks = params.test_tasks
        self.train_tasks = tuple(task for task in range(len(params.tasks)) if task not in params.test_tasks)
        self.qualities = tuple(params.behaviors)

    def _refuse_equal_tasks(self) -> None:
        """Raise PipelineError if two tasks are the same, unless none has arguments: then there is a single task."""
        if not any(self.params.tasks):
            return
        seen: dict[Hashable, int] = {}
        for second, task in enumerate(self.params.tasks):
            given = self.params.options | task
            if (first := seen.setdefault(_hashable(given), second)) < second:
                use = ["a target" if n in self.params.test_tasks else "for training" for n in (first, second)]
                raise PipelineError(
                    f"{self._where}.tasks: {first} ({use[0]}) and {second} ({use[1]}) are the same task, {given}: "
                    "give each other arguments, or remove one (a single task has its arguments in `options`, and "
                    "`tasks: [{}, {}]`)"
                )

    @property
    def has_success(self) -> bool:  # type: ignore[override]
        """Whether episodes can succeed, as params.yaml says."""
        return self.params.success

    @property
    def named(self) -> str:
        """The name of the environment in params.yaml."""
        return str(self.params.gymnasium or self.params.entry_point)

    @property
    def is_foreign(self) -> bool:
        """Gymnasium's own environments are not code of this package either."""
        return self.params.gymnasium is not None or super().is_foreign

    @cached_property
    def _spaces(self) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
        """Observation and action space, validated. Lazy, since a simulator may take seconds to build."""
        environment = self.make(self.train_tasks[0])
        spaces = (
            self._box("observation", environment.observation_space),
            self._box("action", environment.action_space),
        )
        environment.close()
        return spaces

    def _box(self, kind: str, space: gymnasium.Space) -> gymnasium.spaces.Box:
        what = f"{self._where}: the {kind} space of {self.named} is {space}"
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise PipelineError(f"{what}: it must be a one-dimensional Box; flatten it in the environment")
        if kind == "action" and not np.issubdtype(space.dtype, np.floating):
            raise PipelineError(f"{what}: its numbers must be floating: convert them in the environment")
        if kind == "action" and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise PipelineError(f"{what}: it must have finite bounds, since actions are scaled by them")
        if kind == "action" and not (space.low < space.high).all():
            raise PipelineError(
                f"{what}: each lower bound must be below its upper bound: remove actions that cannot vary"
            )
        return space

    @property
    def observation_size(self) -> int:  # type: ignore[override]
        """Width d_s of an observation."""
        return self._spaces[0].shape[0]

    @property
    def action_low(self) -> np.ndarray:  # type: ignore[override]
        """Lower bounds (d_a,) float32."""
        return self._spaces[1].low.astype(np.float32)

    @property
    def action_high(self) -> np.ndarray:  # type: ignore[override]
        """Upper bounds (d_a,) float32."""
        return self._spaces[1].high.astype(np.float32)

    def goal(self, task: int) -> dict[str, Any]:
        """The constructor arguments of the task."""
        return dict(self.params.tasks[task])

    def make(self, task: int) -> gymnasium.Env:
        """The user's environment, created with the arguments of `task`. Raises PipelineError if that fails."""
        arguments = self.params.options | self.params.tasks[task]
        what = f"{self._where}.tasks.{task}: {self.named}(**{arguments})"
        if self.params.gymnasium is not None:
            build = partial(gymnasium.make, self.params.gymnasium, max_episode_steps=-1, disable_env_checker=True)
        else:
            build = self._load(str(self.params.entry_point), f"{self._where}.entry_point")
        try:
            with time_limit(what):
                environment = build(**arguments)
        except PipelineError:
            raise
        except (Exception, SystemExit) as error:
            if self.params.gymnasium is not None and isinstance(error, UnregisteredEnv | DeprecatedEnv):
                raise PipelineError(f"{self._where}.gymnasium: '{self.named}' is not registered: {error}") from error
            raise PipelineError(f"{what}: {error_text(error)}") from error
        if not isinstance(environment, gymnasium.Env):
            raise PipelineError(f"{what}: returned {type(environment).__name__}, not a gymnasium.Env")
        return FlatEnv(environment)

    def default_behaviors(self) -> dict[str, dict[str, Any]]:
        """`behaviors` from params.yaml, with every function and both spaces validated."""
        assert self._spaces
        described = {quality: behavior.model_dump() for quality, behavior in self.params.behaviors.items()}
        for description in described.values():
            self.behavior(description)
        return described

    def behavior(self, description: dict[str, Any]) -> Policy:
        """The user's function with noise, or uniform actions, clipped to the bounds."""
        where = f"{self._where}.behaviors"
        params = parse(BehaviorParams, description, where)
        if params.random == (params.entry_point is not None):
            raise PipelineError(f"{where}: set either entry_point 'module:function' or `random: true`: {description}")
        if params.random and (params.noise or params.arguments):
            raise PipelineError(f"{where}: `random: true` has no noise and no arguments: remove them: {description}")
        function = None if params.entry_point is None else self._load(params.entry_point, f"{where}.entry_point")
        low, high = self.action_low, self.action_high

        def act(environment: gymnasium.Env, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            if function is None:
                return rng.uniform(low, high).astype(np.float32)
            action = np.asarray(function(environment, observation, rng, **params.arguments), np.float32)
            if action.shape != low.shape:  # NumPy would broadcast a single number
                raise PipelineError(
                    f"{where}: {params.entry_point} returned an action of shape {action.shape}, expected {low.shape}"
                )
            if params.noise:
                action = action + params.noise * (high - low) / 2 * rng.standard_normal(len(low))
            return np.clip(action, low, high).astype(np.float32)

        return act

    def versions(self) -> dict[str, str]:
        """Adds the installed packages of the environment, which affect the trajectories too."""
        return super().versions() | self._packages

    @cached_property
    def _packages(self) -> dict[str, str]:
        """Name -> version. Looked up once, since some simulators can exist only once in a process."""
        environment = self.make(self.train_tasks[0])
        modules = {cls.__module__ for cls in type(environment.unwrapped).__mro__}
        environment.close()
        modules |= {"mujoco"} if any(name.startswith("gymnasium.envs.mujoco") for name in modules) else set()
        found = {}
        for package in {name.split(".")[0] for name in (*modules, str(self.params.entry_point))}:
            with suppress(importlib.metadata.PackageNotFoundError):  # a file of the project
                found[package] = importlib.metadata.version(package)
        return found

    def frame_pixels(self, environment: gymnasium.Env) -> np.ndarray | None:
        """The environment's own image, if `options` set `render_mode: rgb_array`."""
        frame = environment.render() if environment.render_mode == "rgb_array" else None
        return frame if isinstance(frame, np.ndarray) else None

    @staticmethod
    def _load(reference: str, where: str) -> Any:
        try:
            return pkgutil.resolve_name(reference)
        except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
            raise PipelineError(f"{where}: cannot load '{reference}': {error_text(error)}") from error
