"""cheetah_vel: run at a hidden speed."""

from typing import Any

import numpy as np

from pd_pipeline.families.base import ExpertBars
from pd_pipeline.families.cheetah import Cheetah, CheetahEnv, CheetahParams

SPEEDS = np.linspace(0.075, 3.0, 40)  # m/s
TARGETS = (2, 7, 15, 23, 26)  # 0.225, 0.6, 1.2, 1.8, 2.025 m/s


class CheetahVelEnv(CheetahEnv):
    """A cheetah whose reward falls with the distance of its speed from the hidden one. See `CheetahEnv`."""

    def speed_reward(self, speed: float) -> float:
        """Minus the distance in m/s."""
        return -abs(speed - self.goal)


class CheetahVel(Cheetah):
    """Reward `-|speed - goal| - 0.05 ||a||^2`; horizon 200; goals `linspace(0.075, 3, 40)` m/s.

    Splits: the papers' five targets, 35 tasks to train on; each target lies between two training goals 0.075 m/s
    away. What differs from the papers: MuJoCo's version, and the observation, which there had the torso's position
    too (`obs: paper20`).
    History: MACAW's tasks (Mitchell et al., 2021), taken up by Prompt-DT (Xu et al., 2022).
    """

    Params = CheetahParams
    environment = CheetahVelEnv
    test_tasks = TARGETS
    train_tasks = tuple(task for task in range(len(SPEEDS)) if task not in TARGETS)
    bars = ExpertBars(return_mean=-20.0)

    def goal_of(self, task: int) -> float:
        """Speed in m/s."""
        return float(SPEEDS[task])

    def goal(self, task: int) -> dict[str, Any]:
        """The speed along x, m/s."""
        return {"speed": self.goal_of(task)}

    def draw_goal(self, rng: np.random.Generator) -> float:
        """Uniform over the range of the tasks."""
        return float(rng.uniform(SPEEDS[0], SPEEDS[-1]))
