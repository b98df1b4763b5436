"""What the MuJoCo locomotion families share: a hidden goal that sets the reward, and learned behaviour policies."""

from abc import abstractmethod
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from pydantic import Field

from pd_pipeline.config import MAX_HORIZON
from pd_pipeline.families import goal_policy
from pd_pipeline.families.base import ExpertBars, Family, FamilyParams, Policy
from pd_pipeline.families.descriptions import check_names

BARS_HORIZON = 200  # the papers' horizon, to which the bars for expert returns apply


class LocomotionParams(FamilyParams):
    """Parameters of every locomotion family."""

    horizon: int = Field(default=BARS_HORIZON, gt=0, le=MAX_HORIZON)


class Locomotion(Family):
    """Tasks that differ in the direction or speed of running. The goal sets the reward and nothing else.

    One policy is trained for all goals (stage behavior_policies), which is far cheaper than one per task: it sees the
    goal's features beside the observation, for goals drawn from `draw_goal`. Expert, medium and random data come from
    its last, an intermediate and its first checkpoint, each with its own exploration noise times `noise`. Stored are
    the action clipped to the bounds, and the observation without the goal. Episodes start from Gymnasium's noisy state.
    """

    params: LocomotionParams
    has_success = False
    lanes = 20
    goal_size: int
    """Width d_g of the goal's features."""
    bars: ClassVar[ExpertBars]
    """At the papers' horizon."""

    @property
    def expert_bars(self) -> ExpertBars:
        """The family's bars at 200 steps; returns at another horizon have another scale."""
        return self.bars if self.horizon == BARS_HORIZON else ExpertBars()

    @abstractmethod
    def goal_of(self, task: int) -> float:
        """The task's hidden goal, a number."""

    @abstractmethod
    def draw_goal(self, rng: np.random.Generator) -> float:
        """A goal to train the behaviour policy on: from the family's whole range, not only from its tasks."""

    @abstractmethod
    def goal_features(self, environment: gymnasium.Env) -> np.ndarray:
        """What the behaviour policy sees of the environment's goal, (d_g,) float32 of order one."""

    @abstractmethod
    def with_goal(self, goal: float) -> gymnasium.Env:
        """A new environment with this goal; its attribute `goal` may be changed between episodes."""

    def make(self, task: int) -> gymnasium.Env:
        """A new environment of one task."""
        return self.with_goal(self.goal_of(task))

    def retarget(self, environment: Any, task: int) -> bool:
        """Change the goal and keep the simulator: loading one takes as long as a hundred steps."""
        environment.unwrapped.goal = self.goal_of(task)
        return True

    def default_behaviors(self) -> dict[str, dict[str, Any]]:
        """One checkpoint per quality, beside `policies.json`."""
        return {q: {goal_policy.WEIGHTS: f"{q}.safetensors", "noise": 1.0} for q in self.qualities}

    def behavior(self, description: dict[str, Any]) -> Policy:
        """The goal-conditioned policy of a checkpoint."""
        check_names(description, (goal_policy.WEIGHTS, "noise"))
        return goal_policy.load(
            Path(description[goal_policy.WEIGHTS]),
            self.action_low,
            self.action_high,
            self.observation_size + self.goal_size,
            self.goal_features,
            float(description["noise"]),
        )

    def frame_pixels(self, environment: gymnasium.Env) -> np.ndarray:
        """The robot from the side, with the camera following it."""
        return picture(environment.unwrapped)

    def versions(self) -> dict[str, str]:
        """Includes MuJoCo's, on which trajectories depend."""
        return super().versions() | {"mujoco": version("mujoco")}


def picture(environment: Any, height: int = 240, width: int = 320) -> np.ndarray:
    """The scene (height, width, 3) uint8, centred on the torso; needs off-screen OpenGL."""
    import mujoco

    renderer = getattr(environment, "off_screen", None)
    if renderer is None:
        renderer = environment.off_screen = mujoco.Renderer(environment.model, height, width)
    camera = mujoco.MjvCamera()
    camera.lookat[:] = environment.data.body("torso").xpos  # MuJoCo's tracking camera lags behind
    camera.distance, camera.azimuth, camera.elevation = 4.0, 90.0, -25.0
    renderer.update_scene(environment.data, camera)
    for costly in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):  # most of the rendering time
        renderer.scene.flags[costly] = 0
    return renderer.render()
