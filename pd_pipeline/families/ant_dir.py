"""ant_dir: run in a hidden direction of the plane."""

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from pydantic import Field

from pd_pipeline.families.base import ExpertBars, split_tasks
from pd_pipeline.families.locomotion import Locomotion, LocomotionParams

# fmt: off
ANGLES = (  # radians; those of the published data, so that the tasks are the same
    1.203360594568, 0.42663053294, 4.944775479235, 4.123865140631, 4.005661927041, 3.616619644799, 0.245439541053,
    2.2482091824, 5.941902704664, 0.377271853132, 5.428936649786, 5.512178944021, 0.321659287647, 4.099267058824,
    3.466756092623, 3.754286493597, 3.038099947865, 1.778067054402, 1.870665858803, 3.528064503797, 2.488439431117,
    4.955552710817, 2.629414941289, 0.904175000661, 0.948174725139, 0.347091640025, 4.511560745487, 1.836684106854,
    1.24893307326, 5.223613581581, 3.568793458062, 0.517355902449, 3.424327032155, 0.998767248313, 4.252223478301,
    0.744383193997, 2.795992744398, 5.57935818333, 5.009380886995, 0.427122946627, 6.03680751475, 4.141909635791,
    4.516203325268, 4.672030605451, 5.577812002817, 0.841605450473, 4.881875268913, 5.265255956967, 5.210675507763,
    0.183198812135,
)
# fmt: on
SECTOR = (0, 7, 17, 18, 27, 28)  # every angle between 60 and 140 degrees
TARGETS = {"published": (6, 17, 23, 30, 41), "validation": (12, 14, 24, 26, 27)}
SPLITS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "published": split_tasks(range(50), TARGETS, "published"),
    "validation": split_tasks(range(50), TARGETS, "validation"),
    "published_ood": ((8, 13, 16, 20, 22, 26, 32, 37), (1, 4, 41)),
    "sector": (tuple(t for t in range(50) if t not in SECTOR), SECTOR),
}
HEALTHY_HEIGHT = (0.2, 1.0)  # metres


class AntDirParams(LocomotionParams):
    """Parameters of ant_dir."""

    split: Literal["published", "validation", "published_ood", "sector"] = Field(
        default="published", description="which directions are for training and which are targets"
    )


class AntDirEnv(AntEnv):
    """Gymnasium's Ant-v5 whose forward reward is its speed along the hidden angle.

    ## Observation (27, float32)
    | index | meaning | unit |
    |---|---|---|
    | 0 | height of the torso | m |
    | 1-4 | orientation of the torso, a quaternion | |
    | 5-12 | angles of hip and ankle of the four legs | rad |
    | 13-15 | speed of the torso along x, y, z | m/s |
    | 16-18 | angular speed of the torso | rad/s |
    | 19-26 | angular speeds of the legs' joints | rad/s |

    ## Action
    Eight torques in [-1, 1], hip and ankle of each leg.

    ## Reward
    `vx cos(goal) + vy sin(goal) - 0.5 ||action||^2 + 1`, with the torso's mean velocity over a step of 0.05 s. The 1 is
    paid on every step, the last one included.

    ## Start, end
    Gymnasium's noisy start. Terminates when the torso's height leaves [0.2, 1] m; else the horizon truncates.
    """

    def __init__(self, goal: float):
        self.goal = goal
        self._y_before = 0.0
        super().__init__(
            contact_cost_weight=0.0,  # the MuJoCo of the published data returned no contact forces
            include_cfrc_ext_in_observation=False,
            healthy_z_range=HEALTHY_HEIGHT,
        )
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (27,), np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """One step of 0.05 s."""
        self._y_before = float(self.data.body("torso").xpos[1])
        return super().step(action)

    def _get_rew(self, x_velocity: float, action: np.ndarray) -> tuple[float, dict[str, float]]:
        y_velocity = (float(self.data.body("torso").xpos[1]) - self._y_before) / self.dt
        forward = float(x_velocity) * np.cos(self.goal) + y_velocity * np.sin(self.goal)
        cost = float(self.control_cost(action))
        return float(forward - cost + 1.0), {"reward_forward": forward, "reward_ctrl": -cost, "reward_survive": 1.0}

    def _get_obs(self) -> np.ndarray:
        return np.concatenate([self.data.qpos[2:], self.data.qvel], dtype=np.float32)


class AntDir(Locomotion):
    """Reward `v . (cos g, sin g) - 0.5 ||a||^2 + 1`; horizon 200; 50 published angles g.

    Splits: `published` holds out five directions of fifty, each 1 to 4 degrees from a training one; `validation`
    leaves these out and holds out five others, for choosing settings. `published_ood` trains on eight directions and
    tests on three, of which only task 1 lies outside the sector of the training ones, 44 degrees from the nearest.
    `sector` holds out every direction between 60 and 140 degrees, so that each of its six targets lies outside the
    training range.
    Differences from the papers: MuJoCo's version. Contact costs are zero here, as they were there, unnoticed.
    History: MACAW's tasks (Mitchell et al., 2021), also used by Prompt-DT (Xu et al., 2022).
    """

    Params = AntDirParams
    params: AntDirParams
    observation_size = 27
    goal_size = 2
    action_low = np.full(8, -1.0, np.float32)
    action_high = np.full(8, 1.0, np.float32)
    bars = ExpertBars(return_mean=700.0, early_ends=0.05)

    def __init__(self, name: str, params: AntDirParams):
        super().__init__(name, params)
        self.train_tasks, self.test_tasks = SPLITS[params.split]

    def goal_of(self, task: int) -> float:
        """Angle in radians."""
        return ANGLES[task]

    def goal(self, task: int) -> dict[str, Any]:
        """The angle from the x axis, radians."""
        return {"angle": self.goal_of(task)}

    def draw_goal(self, rng: np.random.Generator) -> float:
        """Any direction."""
        return float(rng.uniform(0.0, 2 * np.pi))

    def goal_features(self, environment: Any) -> np.ndarray:
        """Its cosine and sine."""
        angle = environment.unwrapped.goal
        return np.array([np.cos(angle), np.sin(angle)], np.float32)

    def with_goal(self, goal: float) -> gymnasium.Env:
        """An ant with this goal."""
        return AntDirEnv(goal)
