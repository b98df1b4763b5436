"""cheetah_vel: run at a hidden speed."""

from typing import Any, Literal

import numpy as np
from pydantic import Field

from pd_pipeline.families.base import ExpertBars, split_tasks
from pd_pipeline.families.cheetah import Cheetah, CheetahEnv, CheetahParams

SPEEDS = np.linspace(0.075, 3.0, 40)  # m/s
TARGETS = {
    "published": (2, 7, 15, 23, 26),  # 0.225, 0.6, 1.2, 1.8, 2.025 m/s
    "validation": (4, 10, 18, 30, 36),
}


class CheetahVelParams(CheetahParams):
    """Parameters of cheetah_vel."""

    split: Literal["published", "validation"] = Field(
        default="published", description="validation: five of the training tasks are targets, for choosing settings"
    )


class CheetahVelEnv(CheetahEnv):
    """A cheetah whose reward falls with the difference of its speed from the hidden one. See `CheetahEnv`."""

    def speed_reward(self, speed: float) -> float:
        """Minus the absolute difference in m/s."""
        return -abs(speed - self.goal)


class CheetahVel(Cheetah):
    """Reward `-|speed - goal| - 0.05 ||a||^2`; horizon 200; goals `linspace(0.075, 3, 40)` m/s.

    Splits: the papers' five targets and 35 training tasks; each target lies between two training goals 0.075 m/s away.
    `validation` leaves these targets out and takes five of the 35 instead, placed in the same way. Differences from the
    papers: MuJoCo's version, and the observation, which there included the torso's position (`obs: paper20`).
    History: MACAW's tasks (Mitchell et al., 2021), also used by Prompt-DT (Xu et al., 2022).
    """

    Params = CheetahVelParams
    params: CheetahVelParams
    environment = CheetahVelEnv
    bars = ExpertBars(return_mean=-20.0)

    def __init__(self, name: str, params: CheetahVelParams):
        super().__init__(name, params)
        self.train_tasks, self.test_tasks = split_tasks(range(len(SPEEDS)), TARGETS, params.split)

    def goal_of(self, task: int) -> float:
        """Speed in m/s."""
        return float(SPEEDS[task])

    def goal(self, task: int) -> dict[str, Any]:
        """The speed along x, m/s."""
        return {"speed": self.goal_of(task)}

    def draw_goal(self, rng: np.random.Generator) -> float:
        """Uniform over the range of the tasks."""
        return float(rng.uniform(SPEEDS[0], SPEEDS[-1]))
