"""Meta-World ML1 pick-place-v3: grasp a puck, which lies elsewhere in every task, and carry it to a hidden goal."""

from typing import Any

import numpy as np
from pydantic import Field

from pd_pipeline.families.meta_world import GOAL, MetaWorld, MetaWorldParams

HAND, PUCK = slice(0, 3), slice(4, 7)  # positions in the observation

TASKS = range(50)
TARGETS = {
    "published": (10, 16, 24, 35, 40),  # 11, 17, 25, 36 and 41 of the papers, counted from one
    "validation": (3, 12, 21, 30, 44),
}


class PuckToGoal:
    """Wraps a script that moves the hand to the goal, so that it moves the puck there."""

    def __init__(self, script: Any):
        self._script = script

    def get_action(self, observation: np.ndarray) -> np.ndarray:
        """The action (4,) for an observation (39,) with the goal: the hand must move to goal + hand - puck."""
        moved = observation.copy()
        moved[GOAL] += observation[HAND] - observation[PUCK]
        return self._script.get_action(moved)


class PickPlaceParams(MetaWorldParams):
    """Parameters of ML1 pick-place."""

    horizon: int = Field(default=500, gt=0, le=500, description="as in the papers; Meta-World allows no more")
    benchmark_seed: int = Field(default=1, ge=0, description="seed of ML1: sets the goals and the puck's positions")


class PickPlace(MetaWorld):
    """ML1 pick-place-v3: 45 training tasks and the papers' 5 test tasks, benchmark seed 1, horizon 500.

    The puck must be seen to be grasped, so it is not masked, and its position differs by task: a policy may recognise a
    training task by it. Only the goal, in the air above the table, must come from the prompt. Success: the puck within
    7 cm of the goal; full reward within 5 cm.

    Two changes make the scripted data precise enough to learn from. Meta-World's script moves the hand to the goal, and
    so the puck, which hangs 4 to 5 cm below, to the edge of those 5 cm, where a policy that is a centimetre off earns
    little: here the script moves the puck to the goal. And the expert is pushed now and then while it holds the puck:
    undisturbed data shows no errors being corrected, and a policy trained on it stops beside the goal, even on training
    tasks.
    """

    Params = PickPlaceParams
    params: PickPlaceParams
    environment = "pick-place-v3"
    tasks = TASKS
    targets = TARGETS
    success_radius = 0.07

    def script(self) -> Any:
        """Move above the puck, down, close the gripper, move to the goal."""
        from metaworld.policies import SawyerPickPlaceV3Policy

        return PuckToGoal(SawyerPickPlaceV3Policy())

    def default_behaviors(self) -> dict[str, dict[str, Any]]:
        """Expert: the script with a little noise, so that episodes differ, and pushes. Medium: weak and noisy."""
        start = {"exploring_steps": 20}
        pushes = {"push_chance": 0.03, "push_steps": 8, "push_lifted": True}
        return {
            "expert": {"gain": 1.0, "noise": 0.1, "reset": start | pushes},
            "medium": {"gain": 0.5, "noise": 0.4, "reset": start},
            "random": {"random": True},
        }
