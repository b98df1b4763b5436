"""cheetah_dir: run forward or backward, as fast as possible."""

from typing import Any

import numpy as np

from pd_pipeline.families.base import ExpertBars
from pd_pipeline.families.cheetah import Cheetah, CheetahEnv, CheetahParams

DIRECTIONS = (1.0, -1.0)


class CheetahDirEnv(CheetahEnv):
    """A cheetah whose reward is its speed in the hidden direction, +1 or -1. See `CheetahEnv`."""

    def speed_reward(self, speed: float) -> float:
        """Direction times speed."""
        return self.goal * speed


class CheetahDir(Cheetah):
    """Reward `direction * speed - 0.05 ||a||^2`; horizon 200; task 0 runs forward, task 1 backward.

    Splits: both tasks are trained on and both are targets, as in the papers: a target's prompt must distinguish the
    two, not show something new. Differences from the papers: MuJoCo's version, so that trajectories only agree in
    distribution, and the observation, which in the papers included the torso's position (`obs: paper20`). Their expert
    data has a mean return of 667 (forward) and 1,134 (backward).
    History: MACAW's tasks (Mitchell et al., 2021), also used by Prompt-DT (Xu et al., 2022).
    """

    Params = CheetahParams
    environment = CheetahDirEnv
    targets_are_trained = True
    train_tasks = test_tasks = (0, 1)
    bars = ExpertBars(return_mean=1300.0)

    def goal_of(self, task: int) -> float:
        """+1 or -1."""
        return DIRECTIONS[task]

    def goal(self, task: int) -> dict[str, Any]:
        """The direction along x."""
        return {"direction": self.goal_of(task)}

    def draw_goal(self, rng: np.random.Generator) -> float:
        """One of the two."""
        return float(rng.choice(DIRECTIONS))
