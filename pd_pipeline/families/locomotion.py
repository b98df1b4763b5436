"""What the MuJoCo locomotion families share: a hidden goal that decides the reward, and learned behaviour policies."""

from abc import abstractmethod
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from pydantic import Field

from pd_pipeline.config import LONGEST_HORIZON
from pd_pipeline.families import goal_policy
from pd_pipeline.families.base import ExpertBars, Family, FamilyParams, Policy

BARS_HORIZON = 200  # of the papers, and of the returns that expert data is held to


class LocomotionParams(FamilyParams):
    """Parameters of every locomotion family."""

    horizon: int = Field(default=BARS_HORIZON, gt=0, le=LONGEST_HORIZON)


class Locomotion(Family):
    """Tasks that differ in which way or how fast to run. The goal decides the reward and nothing else.

    One policy for all goals is trained (stage behavior_policies), which is far cheaper than one a task: it is shown
    the goal's features beside the observation, for goals drawn from `draw_goal`. Expert, medium and random data come
    from its last, an intermediate and its first checkpoint, each with its own exploration noise times `noise`; what is
    stored is the action clipped to the bounds, and the observation without the goal. Episodes start from Gymnasium's
    noisy state.
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
        """The family's bars at 200 steps; returns at another horizon are another scale."""
        return self.bars if self.horizon == BARS_HORIZON else ExpertBars()

    @abstractmethod
    def goal_of(self, task: int) -> float:
        """The number that the task hides."""

    @abstractmethod
    def draw_goal(self, rng: np.random.Generator) -> float:
        """A goal to train the behaviour policy on: any of the family's range, not of its tasks alone."""

    @abstractmethod
    def goal_features(self, environment: gymnasium.Env) -> np.ndarray:
        """What the behaviour policy sees of the environment's goal, (d_g,) float32 of order one."""

    @abstractmethod
    def with_goal(self, goal: float) -> gymnasium.Env:
        """A fresh environment with this goal; its attribute `goal` may be set to another between episodes."""

    def make(self, task: int) -> gymnasium.Env:
        """A fresh environment of one task."""
        return self.with_goal(self.goal_of(task))

    def retarget(self, environment: Any, task: int) -> bool:
        """Another goal in the same body: loading that takes as long as a hundred steps."""
        environment.unwrapped.goal = self.goal_of(task)
        return True

    def default_behaviors(self) -> dict[str, dict[str, Any]]:
        """A checkpoint a quality, beside `policies.json`."""
        return {q: {goal_policy.WEIGHTS: f"{q}.safetensors", "noise": 1.0} for q in self.qualities}

    def behavior(self, description: dict[str, Any]) -> Policy:
        """The goal-conditioned policy of a checkpoint."""
        return goal_policy.load(
            Path(description[goal_policy.WEIGHTS]),
            self.action_low,
            self.action_high,
            self.observation_size + self.goal_size,
            self.goal_features,
            float(description["noise"]),
        )

    def frame_pixels(self, environment: gymnasium.Env) -> np.ndarray:
        """The body from the side, the camera running along."""
        return picture(environment.unwrapped)

    def versions(self) -> dict[str, str]:
        """MuJoCo decides the trajectories too."""
        return super().versions() | {"mujoco": version("mujoco")}


def picture(environment: Any, height: int = 240, width: int = 320) -> np.ndarray:
    """The scene (height, width, 3) uint8, the torso in its middle; needs an OpenGL that renders off screen."""
    import mujoco

    renderer = getattr(environment, "off_screen", None)
    if renderer is None:
        renderer = environment.off_screen = mujoco.Renderer(environment.model, height, width)
    camera = mujoco.MjvCamera()
    camera.lookat[:] = environment.data.body("torso").xpos  # MuJoCo's tracking camera follows late
    camera.distance, camera.azimuth, camera.elevation = 4.0, 90.0, -25.0
    renderer.update_scene(environment.data, camera)
    for costly in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):  # most of a picture's time
        renderer.scene.flags[costly] = 0
    return renderer.render()
