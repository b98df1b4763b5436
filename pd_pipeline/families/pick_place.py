"""Meta-World ML1 pick-place-v3: grasp a puck that lies elsewhere in every task and carry it to a hidden place."""

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
    """A script that takes the hand to the goal, made to take the puck there."""

    def __init__(self, script: Any):
        self._script = script

    def get_action(self, observation: np.ndarray) -> np.ndarray:
        """The action (4,) at an observation (39,) with the goal: goal + hand - puck is where the hand has to go."""
        moved = observation.copy()
        moved[GOAL] += observation[HAND] - observation[PUCK]
        return self._script.get_action(moved)


class PickPlaceParams(MetaWorldParams):
    """Parameters of ML1 pick-place."""

    horizon: int = Field(default=500, gt=0, le=500, description="as in the papers; Meta-World allows no more")
    benchmark_seed: int = Field(default=1, ge=0, description="seed of ML1: decides goals and places of the puck")


class PickPlace(MetaWorld):
    """ML1 pick-place-v3: 45 tasks to train on and the papers' 5 to test, benchmark seed 1, horizon 500.

    The puck must be seen to be grasped, so it is not masked, and its place differs by task: a policy may know a
    training task by it. Only the goal, in the air above the table, is for the prompt to tell. Success: the puck within
    7 cm of the goal; the full reward within 5.

    Two things make the scripted data fit to learn precision from. Meta-World's script takes the hand to the goal, and
    the puck, which hangs 4 to 5 cm below it, to the edge of those 5 cm, so that a policy as precise as a centimetre
    earns little: here it takes the puck there. And the expert is pushed now and then while it holds the puck, since
    data of an undisturbed one shows no error being corrected, and the policy learned from it comes to rest beside the
    goal, on the tasks it was trained on too.
    """

    Params = PickPlaceParams
    params: PickPlaceParams
    environment = "pick-place-v3"
    tasks = TASKS
    targets = TARGETS
    success_radius = 0.07

    def script(self) -> Any:
        """Above the puck, down, close, to the goal."""
        from metaworld.policies import SawyerPickPlaceV3Policy

        return PuckToGoal(SawyerPickPlaceV3Policy())

    def default_behaviors(self) -> dict[str, dict[str, Any]]:
        """Expert: the script with a little noise, so that episodes differ, and pushes. Medium: a weak and noisy one."""
        start = {"exploring_steps": 20}
        pushes = {"push_chance": 0.03, "push_steps": 8, "push_lifted": True}
        return {
            "expert": {"gain": 1.0, "noise": 0.1, "reset": start | pushes},
            "medium": {"gain": 0.5, "noise": 0.4, "reset": start},
            "random": {"random": True},
        }
