"""Gymnasium's HalfCheetah with another reward: the body that cheetah_dir and cheetah_vel share."""

from abc import abstractmethod
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from pydantic import Field

from pd_pipeline.families.locomotion import Locomotion, LocomotionParams

CONTROL_COST = 0.05
WIDTHS = {"gym17": 17, "paper20": 20}


class CheetahParams(LocomotionParams):
    """Parameters of the two cheetah families."""

    obs: Literal["gym17", "paper20"] = Field(
        default="gym17", description="paper20 adds the torso's position, whose x reveals the task"
    )


class CheetahEnv(HalfCheetahEnv):
    """HalfCheetah-v5 whose forward reward is replaced by a function of the speed and the hidden goal.

    ## Observation (float32)
    | index | meaning | unit |
    |---|---|---|
    | 0 | height of the torso's joint z | m |
    | 1 | pitch of the torso | rad |
    | 2-4 | angles of the back thigh, shin, foot | rad |
    | 5-7 | angles of the front thigh, shin, foot | rad |
    | 8-9 | speed of the torso along x, z | m/s |
    | 10 | angular speed of the torso | rad/s |
    | 11-13, 14-16 | angular speeds of the back and the front leg's joints | rad/s |
    | 17-19 | only `paper20`: position of the torso x, y, z | m |

    ## Action
    Six torques in [-1, 1]: back thigh, shin, foot, front thigh, shin, foot.

    ## Reward
    `speed_reward(dx / dt) - 0.05 * ||action||^2`, with dx the distance moved in a step and dt = 0.05 s.

    ## Start, end
    Gymnasium's noisy start; no terminal state, the horizon truncates.
    """

    def __init__(self, goal: float, obs: str):
        self.goal = goal
        self._with_position = obs == "paper20"
        super().__init__(ctrl_cost_weight=CONTROL_COST)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (WIDTHS[obs],), np.float32)

    @abstractmethod
    def speed_reward(self, speed: float) -> float:
        """Reward for running at `speed` (m/s along x) when the goal is `self.goal`."""

    def _get_rew(self, x_velocity: float, action: np.ndarray) -> tuple[float, dict[str, float]]:
        forward, cost = self.speed_reward(float(x_velocity)), float(self.control_cost(action))
        return forward - cost, {"reward_forward": forward, "reward_ctrl": -cost}

    def _get_obs(self) -> np.ndarray:
        parts = [self.data.qpos[1:], self.data.qvel]
        if self._with_position:
            parts.append(self.data.body("torso").xpos)
        return np.concatenate(parts, dtype=np.float32)


class Cheetah(Locomotion):
    """What both cheetah families share: sizes, and the goal as the policy's only goal feature."""

    params: CheetahParams
    environment: type[CheetahEnv]
    goal_size = 1
    action_low = np.full(6, -1.0, np.float32)
    action_high = np.full(6, 1.0, np.float32)

    def __init__(self, name: str, params: CheetahParams):
        super().__init__(name, params)
        self.observation_size = WIDTHS[params.obs]

    def with_goal(self, goal: float) -> gymnasium.Env:
        """A cheetah with this goal."""
        return self.environment(goal, self.params.obs)

    def goal_features(self, environment: Any) -> np.ndarray:
        """The goal itself."""
        return np.array([environment.unwrapped.goal], np.float32)
