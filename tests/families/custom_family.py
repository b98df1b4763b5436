"""What a user writes beside params.yaml: a Family, and plain Gymnasium environments. Imported by its entry point."""

from typing import Any

import gymnasium
import numpy as np

from pd_pipeline.families.base import Family, FamilyParams, Policy


class LineParams(FamilyParams):
    tasks: int = 4


class LineEnv(gymnasium.Env):
    """A point on a line; the hidden goal is a constructor argument. Ends when the point leaves [-2, 2]."""

    def __init__(self, goal: float, start: float = 0.0):
        self.goal, self.start, self.position = goal, start, start
        self.observation_space = gymnasium.spaces.Box(-5.0, 5.0, (1,), np.float64)
        self.action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.position = self.start + 0.01 * self.np_random.standard_normal()
        return np.array([self.position]), {}

    def step(self, action: np.ndarray):
        self.position += 0.5 * float(action[0])
        distance = abs(self.position - self.goal)
        info = {"is_success": distance < 0.1}
        return np.array([self.position]), -distance, abs(self.position) > 2, False, info


class WideActionEnv(LineEnv):
    """Actions without bounds."""

    def __init__(self, goal: float):
        super().__init__(goal)
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)


class ExactEnv(LineEnv):
    """Bounds that float32 rounds away from zero, and no action beyond them. Only one may exist in a process."""

    alive = 0

    def __init__(self, goal: float):
        super().__init__(goal)
        if ExactEnv.alive:
            raise RuntimeError("there is one already")
        ExactEnv.alive += 1
        self.action_space = gymnasium.spaces.Box(-0.1, 0.1, (1,), np.float64)

    def step(self, action: np.ndarray):
        assert self.action_space.contains(action), f"{action} is out of bounds"
        return super().step(action)

    def close(self) -> None:
        ExactEnv.alive -= 1


class IntegerActionEnv(LineEnv):
    def __init__(self, goal: float):
        super().__init__(goal)
        self.action_space = gymnasium.spaces.Box(-2, 2, (1,), np.int64)


class DiscreteActionEnv(LineEnv):
    def __init__(self, goal: float):
        super().__init__(goal)
        self.action_space = gymnasium.spaces.Discrete(3)


class ImageEnv(LineEnv):
    def __init__(self, goal: float):
        super().__init__(goal)
        self.observation_space = gymnasium.spaces.Box(0, 255, (4, 4), np.uint8)


def toward(environment: gymnasium.Env, observation: np.ndarray, rng: np.random.Generator, gain: float = 2.0):
    """Reads the goal from the environment; far away, its action exceeds the bounds."""
    return gain * (environment.unwrapped.goal - observation)


def make_line(goal: float, start: float = 0.0) -> gymnasium.Env:
    """A factory: wrapped, as a user's own often is."""
    return gymnasium.wrappers.TransformReward(LineEnv(goal, start), lambda reward: 2 * reward)


def make_nothing(goal: float) -> None:
    """Forgets to return what it made."""


class Line(Family):
    Params = LineParams
    params: LineParams
    observation_size = 1
    action_low = np.full(1, -2.0, np.float32)
    action_high = np.full(1, 2.0, np.float32)
    test_tasks = (1,)

    def __init__(self, name: str, params: LineParams):
        super().__init__(name, params)
        self.train_tasks = tuple(task for task in range(params.tasks) if task not in self.test_tasks)

    def goal(self, task: int) -> dict[str, Any]:
        return {"position": task / 4}

    def make(self, task: int) -> gymnasium.Env:
        return LineEnv(task / 4)

    def default_behaviors(self) -> dict[str, dict[str, Any]]:
        return {"expert": {"gain": 2.0}}

    def behavior(self, description: dict[str, Any]) -> Policy:
        def act(environment: gymnasium.Env, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return np.clip(toward(environment, observation, rng, **description), -2, 2).astype(np.float32)

        return act


class Overlapping(Line):
    def __init__(self, name: str, params: LineParams):
        super().__init__(name, params)
        self.train_tasks = (0, 1)


class Repeating(Line):
    def __init__(self, name: str, params: LineParams):
        super().__init__(name, params)
        self.train_tasks = (0, 2, 0)


class NothingToTrain(Line):
    def __init__(self, name: str, params: LineParams):
        super().__init__(name, params)
        self.train_tasks = ()


class Unrelated:
    """Neither a Family nor an environment."""
