"""A point in the plane that must find a hidden goal on a circle."""

from typing import Any, Literal

import gymnasium
import numpy as np
from pydantic import Field

from pd_pipeline.config import MAX_HORIZON, MAX_TASKS, PARAMS_FILE
from pd_pipeline.errors import PipelineError
from pd_pipeline.families.base import Family, FamilyParams, Policy
from pd_pipeline.families.descriptions import check_names

ARRIVAL = 10.0  # the reward of the bandits paper's task


class PointRobotParams(FamilyParams):
    """Parameters of the plane and its tasks."""

    horizon: int = Field(default=20, gt=0, le=MAX_HORIZON)
    tasks: int = Field(default=12, ge=2, le=MAX_TASKS, description="goals, evenly spaced on the circle")
    test_tasks: tuple[int, ...] = (3, 8)
    radius: float = Field(default=1.0, gt=0)
    step_size: float = Field(default=0.15, gt=0, description="distance moved by an action component of 1")
    goal_radius: float = Field(default=0.2, gt=0, description="success within this distance")
    reward: Literal["dense", "sparse", "arrival"] = Field(
        default="dense",
        description="minus the distance; or 1 per step at the goal; or 10 on arrival, which ends the episode",
    )


class PointRobotEnv(gymnasium.Env):
    """One task: walk from the origin to a goal that the observation does not show.

    ## Observation
    | index | meaning | unit |
    |---|---|---|
    | 0 | x | length |
    | 1 | y | length |

    ## Action
    Two numbers in [-1, 1], the step along x and y; the point moves by `step_size * action`.

    ## Reward
    dense: `-distance(point, goal)` after the move; sparse: 1 while the distance is below `goal_radius`, else 0;
    arrival: 10 when it first is, else 0.

    ## Start, end
    The origin plus uniform noise of 0.05. With `arrival` the goal is a terminal state; otherwise the horizon truncates.
    """

    def __init__(self, goal: np.ndarray, params: PointRobotParams):
        self.goal = goal
        self._params = params
        self._state = np.zeros(2)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Put the point near the origin."""
        super().reset(seed=seed)
        self._state = self.np_random.uniform(-0.05, 0.05, 2)
        return self._state.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the point."""
        self._state = self._state + self._params.step_size * np.clip(action, -1.0, 1.0)
        distance = float(np.hypot(*(self._state - self.goal)))
        success = distance < self._params.goal_radius
        arrived = success and self._params.reward == "arrival"
        reward = {"dense": -distance, "sparse": float(success), "arrival": ARRIVAL * success}[self._params.reward]
        return self._state.astype(np.float32), reward, arrived, False, {"success": success}

    def picture(self, size: int = 240) -> np.ndarray:
        """The plane (size, size, 3) uint8: the goal with its radius in green, the point in blue."""
        reach = 1.4 * self._params.radius
        axis = np.linspace(-reach, reach, size)
        x, y = axis[None, :], -axis[:, None]
        pixels = np.full((size, size, 3), 255, np.uint8)
        pixels[np.abs(np.hypot(x, y) - self._params.radius) < 0.006 * reach] = (217, 221, 227)
        for centre, radius, color in (
            (self.goal, self._params.goal_radius, (140, 209, 165)),
            (self._state, 0.05 * self._params.radius, (0, 114, 178)),
        ):
            pixels[np.hypot(x - centre[0], y - centre[1]) < radius] = color
        return pixels


class PointRobot(Family):
    """Goals on a circle around the start; needs no simulator, so the whole pipeline runs on it in a minute.

    Splits: `tasks` goals at angles 2 pi i / tasks; `test_tasks` are held out, each between two training goals.
    Behaviour: a step toward the goal times `gain`, Gaussian noise of `noise`, or uniform actions (`random`).
    History: the two-dimensional task of the prompt-tuning bandits paper (arXiv 2502.06358), with a dense reward too.
    """

    Params = PointRobotParams
    params: PointRobotParams
    observation_size = 2
    action_low = np.full(2, -1.0, np.float32)
    action_high = np.full(2, 1.0, np.float32)

    def __init__(self, name: str, params: PointRobotParams):
        super().__init__(name, params)
        if unknown := [task for task in params.test_tasks if not 0 <= task < params.tasks]:
            raise PipelineError(
                f"{PARAMS_FILE}: families.{name}.environment.test_tasks: {unknown} are not among tasks 0 to "
                f"{params.tasks - 1}"
            )
        self.test_tasks = params.test_tasks
        self.train_tasks = tuple(task for task in range(params.tasks) if task not in params.test_tasks)

    def goal(self, task: int) -> dict[str, Any]:
        """Position of the goal."""
        return {"position": self._goal(task).tolist()}

    def make(self, task: int) -> gymnasium.Env:
        """The plane with the goal of `task`."""
        return PointRobotEnv(self._goal(task), self.params)

    def default_behaviors(self) -> dict[str, dict[str, Any]]:
        """Expert goes straight to the goal, medium slowly and with noise, random anywhere."""
        return {
            "expert": {"gain": 6.0, "noise": 0.1},
            "medium": {"gain": 0.8, "noise": 0.5},
            "random": {"random": True},
        }

    def behavior(self, description: dict[str, Any]) -> Policy:
        """A proportional controller toward the goal."""
        check_names(description, ("gain", "noise", "random"))

        def act(environment: gymnasium.Env, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            if description.get("random"):
                return rng.uniform(self.action_low, self.action_high).astype(np.float32)
            toward = description["gain"] * (environment.unwrapped.goal - observation)  # type: ignore[attr-defined]
            toward = toward / max(1.0, float(np.abs(toward).max()))
            noisy = toward + description["noise"] * rng.standard_normal(2)
            return np.clip(noisy, self.action_low, self.action_high).astype(np.float32)

        return act

    def frame_pixels(self, environment: gymnasium.Env) -> np.ndarray:
        """The plane from above."""
        return environment.unwrapped.picture()  # type: ignore[attr-defined]

    def _goal(self, task: int) -> np.ndarray:
        angle = 2 * np.pi * task / self.params.tasks
        return self.params.radius * np.array([np.cos(angle), np.sin(angle)])
